"""What a buyer sees of a dataset before paying, and the schema by which another hospital joins:
whatever a hospital has written, it is shown and not obeyed.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from datahub.cli import app
from datahub.errors import HubError, NotFound
from datahub.index.tables import DatasetRow
from datahub.market import catalogue
from datatokens.terms import canonical_json
from fl_client.data.features import Feature
from fl_client.data.manifests import MAX_MANIFEST_BYTES, Manifest
from fl_client.data.pictures import PictureRules
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.errors import ConfigError, DatasetError
from fl_client.node.listing import fetch_schema
from fl_client.office.table_cli import read_schema
from tests.datahub.hub_world import SCHEMA, HubWorld, manifest

OTHER = Schema((Feature("bmi", 26, 5, unit="kg/m2"),), Target("ill", 0.5))
EVIL = '<script>alert("x")</script><img src=x onerror=y>\'"&{{ 7*7 }}'


@contextmanager
def published(hub: HubWorld, document: Manifest) -> Iterator[None]:
    """Dataset 3 under another manifest, on the chain and at the hub."""
    mine = hub.bank.registry(hub.bank.hospitals[2])
    mine.set_manifest(3, document.hash, "https://h3")
    try:
        catalogue.put_manifest(hub.desk, 3, document.as_dict())
        yield
    finally:
        mine.set_manifest(3, manifest(3).hash, "https://h3")


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(url: str) -> Page:
    answer = httpx.get(url)
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    return Page(answer.text)


def test_schema__by_its_hash__is_the_document_that_has_it(hub: HubWorld, hub_url: str) -> None:
    raw = httpx.get(f"{hub_url}/api/v1/schemas/{SCHEMA.hash}").content
    assert hashlib.sha256(raw).hexdigest() == SCHEMA.hash and raw == canonical_json(
        SCHEMA.as_dict()
    )
    answer = httpx.get(f"{hub_url}/api/v1/schemas/{OTHER.hash}")
    assert answer.status_code == 404
    assert answer.json()["detail"] == f"schema {OTHER.hash} is of no dataset here"
    with published(hub, manifest(3, schema=OTHER)):
        assert httpx.get(f"{hub_url}/api/v1/schemas/{OTHER.hash}").status_code == 200
        assert catalogue.sharing(hub.desk, SCHEMA.hash) == [1, 2]
    hub.desk.index.catch_up()  # the manifest is no longer the one on the chain
    with pytest.raises(NotFound):
        catalogue.schema(hub.desk, OTHER.hash)


def test_fetch_schema__another_document_or_no_hash__refuses(
    hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch_schema(hub_url, SCHEMA.hash) == SCHEMA
    with pytest.raises(ConfigError, match="is of no dataset here"):
        fetch_schema(hub_url, OTHER.hash)
    with pytest.raises(ConfigError, match=r"schema hash '\.\./network' must be 64 hexadecimal"):
        fetch_schema(hub_url, "../network")
    monkeypatch.setattr("fl_client.node.listing.hub_request", lambda *_: OTHER.as_dict())
    with pytest.raises(ConfigError, match="sent another schema"):
        fetch_schema(hub_url, SCHEMA.hash)


def test_node_schema__one_command__writes_what_add_dataset_takes(
    hub_url: str, tmp_path: Path
) -> None:
    out = tmp_path / "schema.json"
    said = ["node", "schema", SCHEMA.hash, "--hub", hub_url, "--out", str(out)]
    answer = CliRunner().invoke(app, said, catch_exceptions=False)
    assert answer.exit_code == 0 and "it wants 3 columns" in answer.output
    assert read_schema(out) == SCHEMA


def test_catalogue__one_schema_asked_for__shows_those_that_fit_one_order(
    hub: HubWorld, hub_url: str
) -> None:
    with published(hub, manifest(3, schema=OTHER)):
        whole, mine, none = (
            httpx.get(f"{hub_url}/datasets", params={"schema": one}).text
            for one in ("", SCHEMA.hash, "nothing")
        )
    assert whole.count("shared by 2 datasets") == 2 and "Table 3" in whole
    assert mine.count("<article>") == 2 and "Table 3" not in mine
    assert none.count("<article>") == 0 and "No dataset here has that schema" in none


def test_dataset__says_what_a_buyer_pays_for(hub: HubWorld, hub_url: str) -> None:
    schema = Schema(
        (
            Feature("age", 55, 10, unit="a", missing=50.0, stands=True),
            Feature("ward", categories=("icu", "general"), other=True),
            Feature("admitted", 0, 365, kind="date", reference="2020-01-01", missing="refuse"),
            Feature("smoker", 0.5, 0.5, kind="yes/no"),
        ),
        Target("died", None),
    )
    with published(hub, manifest(3, schema=schema, unit="patient", records_per_patient=4)):
        found = page(f"{hub_url}/datasets/3")
        same = httpx.get(f"{hub_url}/api/v1/datasets/3").json()
    text = " ".join(found.text.split())
    with hub.desk.session() as session:  # other modules have jobs attested in this world too
        row = session.get(DatasetRow, 3)
    assert row is not None
    n, spent = row.jobs_attested, row.epsilon_micro / 10**6
    for sentence in (
        "about 300 (noised), never fewer than 10",
        "each patient, the first 4 records of whom count",
        "epsilon 8.0 at delta 1e-05",
        f"{n} job{'' if n == 1 else 's'} attested on the chain",
        "died: yes or no",
        "4 columns, 6 inputs of a model",
        "counts as 50, and one more input says so",
        "one of 3 levels: icu, general, any other",
        "days since 2020-01-01",
        "not allowed",
        "nothing here is anybody's data",
        f"datahub node schema {schema.hash} --hub {hub_url}",
        "--dataset 3 --epsilon",
    ):
        assert sentence in text, sentence
    assert same["privacy"] == {"epsilon_spent": spent, "jobs_attested": n}
    assert "Left out" not in text, "this manifest does not say how many"
    with published(hub, manifest(3, schema=schema, left_out=17)):
        text = " ".join(page(f"{hub_url}/datasets/3").text.split())
    assert "about 17 more records (noised) lack a value that the schema needs" in text


def test_dataset__jobs_attested__spent_is_what_the_chain_has_seen(
    hub: HubWorld, hub_url: str
) -> None:
    with hub.desk.session() as session:
        row = session.get(DatasetRow, 1)
        assert row is not None
        row.epsilon_micro, row.jobs_attested = 2_250_000, 2
        session.commit()
    text = " ".join(page(f"{hub_url}/datasets/1").text.split())
    assert "epsilon 2.250, as its node has attested" in text and "2 jobs attested" in text
    said = CliRunner().invoke(app, ["data", "show", "1", "--hub", hub_url]).output
    assert "spent: epsilon 2.250, as its node has attested for 2 jobs" in said


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, [1, 2, 3]),
        ({"q": "hospital 2"}, [2]),
        ({"q": "AGE ill"}, [1, 2, 3]),
        ({"q": "age lung"}, []),
        ({"patients": "150"}, [2, 3]),
        ({"most": "1"}, []),
        ({"most": "1.000001"}, [1, 2, 3]),
        ({"epsilon": "8"}, [1, 2, 3]),
        ({"epsilon": "8.1"}, []),
        ({"online": "true"}, []),
        ({"kind": "pictures"}, []),
        ({"unit": "record"}, [1, 2, 3]),
        ({"unit": "patient"}, []),
        ({"sort": "size"}, [3, 2, 1]),
        ({"sort": "newest", "patients": "150"}, [3, 2]),
    ],
)
def test_catalogue__searched_and_filtered__shows_what_fits_in_that_order(
    hub_url: str, asked: dict[str, str], shown: list[int]
) -> None:
    text = httpx.get(f"{hub_url}/datasets", params=asked).text
    found = [int(one) for one in re.findall(r'<h2><a href="/datasets/(\d+)"', text)]
    # other modules list datasets in this world too, in whatever order tests run
    assert [one for one in found if one <= 3] == shown


def test_catalogue__by_country_and_condition__exactly_and_in_any_letters(
    hub: HubWorld, hub_url: str
) -> None:
    said = manifest(3, country="DE", conditions=("Heart failure", "I50"))
    found = re.compile(r'<h2><a href="/datasets/(\d+)"')
    with published(hub, said):

        def ids(**asked: str) -> list[str]:
            return found.findall(httpx.get(f"{hub_url}/datasets", params=asked).text)

        assert ids(country="de") == ids(condition="heart  FAILURE") == ids(condition="i50") == ["3"]
        assert ids(country="DE", condition="I50", q="heart") == ["3"]
        assert ids(country="FR") == ids(condition="heart") == ids(q="country") == []
        shown = " ".join(page(f"{hub_url}/datasets/3").text.split())
        assert "Heart failure , I50" in shown or "Heart failure, I50" in shown
        rows = httpx.get(f"{hub_url}/api/v1/datasets", params={"condition": "I50"}).json()
        assert [row["manifest"]["country"] for row in rows] == ["DE"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"country": "de"}, "country='de' must be two capital letters"),
        ({"country": "DEU"}, "two capital letters"),
        ({"country": 3}, "country=3"),
        ({"conditions": ("",)}, "condition='' must be text"),
        ({"conditions": ("a", "a")}, "at most 8 different ones"),
        ({"conditions": tuple("abcdefghi")}, "at most 8"),
    ],
)
def test_manifest__a_country_or_condition_that_is_none__is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DatasetError, match=re.escape(said)):
        manifest(1, **changes)


def test_manifest__with_and_without_them__is_read_back_and_an_older_one_keeps_its_hash() -> None:
    new = manifest(1, country="CH", conditions=("J45",))
    assert Manifest.from_dict(new.as_dict()) == new
    assert {"country", "conditions"} & set(manifest(1).as_dict()) == set()


def test_catalogue__nonsense_for_a_number__is_a_sentence(hub_url: str) -> None:
    for name in ("most", "patients", "epsilon"):
        answer = httpx.get(f"{hub_url}/datasets", params={name: "cheap"})
        assert answer.status_code == 422 and "must be a number like 2.5" in answer.text


def test_dataset__hostile_text__is_text(hub: HubWorld, hub_url: str) -> None:
    schema = Schema(
        (
            Feature(EVIL, 1, 2, unit=EVIL),
            Feature("c", categories=(EVIL, "\u202ereversed", "x" * 200)),
        ),
        Target(EVIL + "t", None),
    )
    document = manifest(3, schema=schema, name=EVIL, hospital=EVIL, description=EVIL * 30)
    with published(hub, document):
        paths = ("datasets/3", "datasets", "order", "order?dataset=3")
        for one in [page(f"{hub_url}/{path}") for path in paths]:
            assert EVIL in one.text, "as it was written, {{ 7*7 }} too"
            assert "img" not in {tag for tag, _ in one.tags}
            scripts = [attributes for tag, attributes in one.tags if tag == "script"]
            assert all(str(one.get("src")).startswith("/static/") for one in scripts)
            names = [name for _, attributes in one.tags for name in attributes]
            assert not any(name.startswith("on") for name in names)


def largest() -> dict[str, Schema]:
    wide = tuple(Feature(f"f{i}", i, 1) for i in range(1980))
    tall = (Feature("t", categories=tuple(f"{i:x}" + "y" * 100 for i in range(1000))),)
    return {
        "2,000 columns": Schema(wide, Target("y", 0)),
        "1,000 levels of 100 letters": Schema(tall, Target("y", 0)),
    }


@pytest.mark.parametrize("name", largest())
def test_dataset__as_large_as_may_be__is_a_page_of_bounded_size(
    hub: HubWorld, hub_url: str, name: str
) -> None:
    document = manifest(3, schema=largest()[name])
    size = len(canonical_json(document.as_dict()))
    assert 0.7 * MAX_MANIFEST_BYTES < size <= MAX_MANIFEST_BYTES, size
    with published(hub, document):
        for path in ("/datasets/3", "/datasets/3/made-up.csv"):
            assert httpx.get(hub_url + path).status_code == 200
        assert len(httpx.get(f"{hub_url}/datasets/3").content) < 2_000_000


def test_made_up_table__reads_by_the_schema(hub: HubWorld, hub_url: str, tmp_path: Path) -> None:
    answer = httpx.get(f"{hub_url}/datasets/2/made-up.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (tmp_path / "t.csv").write_bytes(answer.content)
    found = load(plain(tmp_path / "t.csv"), SCHEMA)
    assert (len(found.targets), found.dropped) == (500, 0)
    header = next(csv.reader(answer.text.splitlines()))
    assert header == ["age", "sex", "ill"]


def test_made_up_table__of_pictures__is_a_sentence(hub: HubWorld, hub_url: str) -> None:
    pictures = replace(SCHEMA, features=(), picture=PictureRules(1, (8, 8)))
    with published(hub, manifest(3, schema=pictures)):
        assert "8 x 8 in grey" in " ".join(page(f"{hub_url}/datasets/3").text.split())
        answer = httpx.get(f"{hub_url}/datasets/3/made-up.csv")
    assert answer.status_code == 409 and "any picture files will do" in answer.text


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/datasets/99", 404, "dataset_id=99 is not listed"),
        ("/datasets/nothing", 422, "dataset_id"),
        ("/datasets/0", 422, "dataset_id"),
        ("/datasets/99/made-up.csv", 404, "dataset_id=99 is not listed"),
    ],
)
def test_dataset__that_is_none__is_a_sentence_on_a_page(
    hub_url: str, path: str, status: int, said: str
) -> None:
    answer = httpx.get(hub_url + path)
    assert answer.status_code == status and said in Page(answer.text).text
    assert "text/html" in answer.headers["content-type"]


def test_dataset__no_manifest_yet__says_so_and_no_more(bare_hub: HubWorld) -> None:
    bare_hub.desk.index.catch_up()
    assert catalogue.dataset(bare_hub.desk, 1)["manifest"] is None
    with pytest.raises(HubError, match="not listed here with a manifest"):
        catalogue.schema_of(bare_hub.desk, 1)
