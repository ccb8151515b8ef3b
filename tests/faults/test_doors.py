"""What a stranger sends to the hub, one request each: a sentence and a 4xx; the process lives."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datahub.web import bounds
from datatokens.errors import SignatureError, TermsError
from datatokens.terms import (
    CURVE_ORDER,
    acceptance_message,
    check_signature,
    parse_canonical_json,
    sign,
    well_formed,
)
from datatokens.wire import parse
from tests.conftest import NODE_KEYS, terms

DEEP = "[" * 100_000 + "]" * 100_000
BAD = {
    "brackets 100,000 deep": DEEP,
    "objects 100,000 deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep in an unclosed string": '"' + "[" * 100_000,
    "NaN": '{"epsilon": NaN}',
    "infinity": '{"epsilon": -Infinity}',
    "1e400": '{"epsilon": 1e400}',
    "5000 digits": '{"epsilon": ' + "9" * 5000 + "}",
    "half a surrogate": '{"purpose": "\\ud800"}',
    "no JSON": "{",
    "nothing": "null",
    "a list": "[1]",
}
ROUTES = [
    ("POST", "/api/v1/quotes"),
    ("POST", "/api/v1/jobs"),
    ("POST", "/api/v1/nodes"),
    ("PUT", "/api/v1/datasets/1/manifest"),
    ("PUT", "/api/v1/datasets/1/contributors"),
    ("PUT", "/api/v1/datasets/1/offer"),
]


@pytest.fixture
def client(hub_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub_url, timeout=30) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("body", BAD, ids=str)
def test_a_body_that_no_honest_client_sends__is_one_sentence(
    client: httpx.Client, method: str, path: str, body: str
) -> None:
    answer = client.request(
        method, path, content=BAD[body], headers={"content-type": "application/json"}
    )
    assert answer.status_code in (413, 422), answer.text
    assert len(answer.json()["detail"]) < 400


@pytest.mark.parametrize("number", ["0", "-1", str(2**63), str(2**64), "9" * 400, "x", "%00"])
@pytest.mark.parametrize("what", ["manifest", "contributors", "offer"])
def test_a_dataset_number_that_none_can_be__is_a_sentence(
    client: httpx.Client, number: str, what: str
) -> None:
    answer = client.put(f"/api/v1/datasets/{number}/{what}", json={})
    assert answer.status_code in (404, 422) and answer.json()["detail"]


def test_more_bytes_than_a_route_takes__are_refused_while_they_arrive(client: httpx.Client) -> None:
    answer = client.post("/api/v1/nodes", content=(b" " * 10_000 for _ in range(7)))
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413 and "65536 bytes" in answer.json()["detail"]
    declared = client.post("/api/v1/nodes", content=b" " * 70_000)
    assert declared.status_code == 413
    assert bounds.limit("/api/v1/datasets/1/manifest") == bounds.MANIFEST_BYTES
    assert bounds.limit("/api/v1/quotes") == bounds.MODEL_BYTES


@pytest.mark.parametrize("path", ["/", "/healthz", "/api/v1/datasets", "/jobs", "/openapi.json"])
def test_head__answers_as_get_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert answer.status_code == client.get(path).status_code == 200 and answer.content == b""


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/api/v1/jobs"), ("GET", "/api/v1/nope")])
def test_a_route_or_method_that_there_is_not__is_a_sentence_too(
    client: httpx.Client, method: str, path: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code in (404, 405) and path in answer.json()["detail"]


def test_terms_of_100_000_brackets__are_one_sentence_at_every_reader() -> None:
    for read in (parse, parse_canonical_json):
        with pytest.raises(TermsError, match="at most 12 levels"):
            read(DEEP.encode())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**200), 2**200)
        | st.text(st.characters(codec="utf-8"))
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_honest_json__is_read_as_it_was_written(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize("raw", [b'{"a": 1, "a": 2}', b'[{"b": {"a": 1, "c": 2, "a": 1}}]'])
def test_a_name_twice__is_one_sentence_at_every_reader(raw: bytes) -> None:
    """Two readers would take two values of it, and one of them signs."""
    for read in (parse, parse_canonical_json):
        with pytest.raises(TermsError, match="'a' is there twice"):
            read(raw)


def test_a_signature__has_one_form_at_every_door() -> None:
    job = terms()
    message, line = acceptance_message(job), job.datasets[0]
    key = next(k for k in NODE_KEYS if _signs(message, k, line.node))
    good = sign(message, key)
    check_signature(message, good, line.node)
    high = CURVE_ORDER - int.from_bytes(good[32:64], "big")
    others = {
        "v 0": good[:64] + bytes([good[64] - 27]),
        "v 35": good[:64] + bytes([good[64] + 8]),
        "high s": good[:32] + high.to_bytes(32, "big") + bytes([55 - good[64]]),
        "zeros": bytes(65),
        "64 bytes": good[:64],
        "66 bytes": good + b"\0",
        "none": b"",
    }
    for name, other in others.items():
        assert not well_formed(other), name
        with pytest.raises(SignatureError, match="malformed"):
            check_signature(message, other, line.node)


def _signs(message: object, key: bytes, node: str) -> bool:
    try:
        check_signature(message, sign(message, key), node)  # type: ignore[arg-type]
    except SignatureError:
        return False
    return True


def test_a_body_that_comes_too_slowly__is_ended(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "PATIENCE_S", 0.3)

    def drop_by_drop() -> Iterator[bytes]:
        for _ in range(40):
            yield b" "
            time.sleep(0.1)

    answer = client.post("/api/v1/jobs", content=drop_by_drop())
    assert answer.status_code == 408
    assert answer.json()["detail"] == "the body came too slowly; send it again"


def test_more_bodies_at_once_than_fit__are_refused(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MEMORY_BYTES", 1000)
    answer = client.post("/api/v1/jobs", content=b" " * 2000)
    assert answer.status_code == 429 and "at once" in answer.json()["detail"]
    assert client.post("/api/v1/jobs", json={"terms": "{}"}).status_code == 422  # it was given back


def test_whatever_is_refused_or_changes_something__is_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="datahub.hub")
    client.get("/api/v1/datasets")
    client.get("/api/v1/jobs/%0a%1b[31mred")
    (line,) = [one.getMessage() for one in caplog.records if "after" in one.getMessage()]
    assert line.startswith("GET '/api/v1/jobs/") and "404" in line and "\x1b" not in line
