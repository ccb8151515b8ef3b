"""What the hub's own specification allows, and what it does not, sent to every route: no answer but
those that it documents, and none that says that the hub has failed.

Schemathesis makes the requests from /openapi.json; the hub is the real application over the real
contracts, behind real HTTP.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from datahub.market import orders
from datahub.web import live
from tests.datahub.hub_world import HubWorld, manifest

EXAMPLES = 40  # of each route
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
def test_whatever_is_sent__the_answer_is_a_documented_one(
    hub: HubWorld, hub_url: str, mode: GenerationMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSITIVE sends what the specification allows, NEGATIVE what it does not."""
    monkeypatch.setattr(live, "LIVES_S", 0.1)  # a job that never ends is watched for so long
    job, terms = hub.job()
    real = {"job_id": job.job_id, "dataset_id": 2, "node": terms.datasets[0].node}
    real["account"] = terms.buyer
    schema = schemathesis.openapi.from_url(f"{hub_url}/openapi.json")
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
        def ask(case: Case, data: st.DataObject) -> None:
            if data.draw(st.booleans()) and mode is GenerationMode.POSITIVE:
                known = {name: one for name, one in real.items() if name in case.path_parameters}
                case.path_parameters.update(known)
            statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

        try:
            ask()
        except Unsatisfiable:  # a route without a body that takes any text is never asked wrongly
            assert mode is GenerationMode.NEGATIVE and not operation.body
    if mode is GenerationMode.POSITIVE:
        assert set(statuses) >= {200, 404, 422}
    else:
        assert set(statuses) == {422}


def test_specification__names_every_route(hub_url: str) -> None:
    paths = httpx.get(f"{hub_url}/openapi.json").json()["paths"]
    assert {
        "/api/v1/quotes",
        "/api/v1/jobs",
        "/api/v1/claims/{account}",
        "/healthz",
        "/readyz",
    } <= set(paths)
    assert all("422" in answer["responses"] for one in paths.values() for answer in one.values())


PROBLEM = ["type", "title", "status", "detail"]  # RFC 9457
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**63, 2**64, -1, 0, 10**77])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "0x", "\0", "\u202e", "\u0661", "NaN", "__class__", "0x" + "1" * 40]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a document something can be put in place of what is there."""
    found = [where] if where else []
    inner = enumerate(value) if isinstance(value, list) else ()
    for key, one in value.items() if isinstance(value, dict) else inner:
        found += places(one, (*where, key))
    return found


def replaced(value: Any, where: tuple[Any, ...], by: Any) -> Any:
    """`value` with what is at `where` replaced."""
    if not where:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[where[0]] = replaced(copy[where[0]], where[1:], by)
    return copy


@pytest.mark.parametrize("what", ["order", "terms", "manifest", "contributors", "offer"])
def test_one_value_of_a_good_document_is_another__the_answer_is_a_documented_one(
    hub: HubWorld, hub_url: str, what: str
) -> None:
    terms = orders.quote(hub.desk, hub.order())[0]
    routes: dict[str, tuple[str, str, Any]] = {
        "order": ("POST", "/api/v1/quotes", hub.order().body()),
        "terms": ("POST", "/api/v1/jobs", json.loads(terms.to_json())),
        "manifest": ("PUT", "/api/v1/datasets/1/manifest", manifest(1).as_dict()),
        "contributors": (
            "PUT",
            "/api/v1/datasets/1/contributors",
            {"epoch": 1, "entries": [[terms.buyer, 1]]},
        ),
        "offer": ("PUT", "/api/v1/datasets/1/offer", {"offer": "{}", "signature": "00" * 65}),
    }
    method, path, good = routes[what]
    with httpx.Client(base_url=hub_url, timeout=60) as client:

        @settings(max_examples=200, deadline=None, derandomize=True, database=None)
        @given(where=st.sampled_from(places(good)), by=JSON)
        def ask(where: tuple[Any, ...], by: Any) -> None:
            document = replaced(good, where, by)
            if what == "terms":
                document = {"terms": json.dumps(document, sort_keys=True, separators=(",", ":"))}
            answer = client.request(method, path, json=document)
            assert answer.status_code in (200, 201, 400, 404, 409, 422), (where, by, answer.text)
            assert answer.status_code < 300 or list(answer.json()) == PROBLEM

        ask()
