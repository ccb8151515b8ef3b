"""What others harvest of the hub: every document is read by the library of its own format, and what
a hospital has written stays a value in it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import mlcroissant
import pytest
import rdflib
from sqlmodel import select

from datahub.index.tables import DatasetRow
from datahub.market import catalogue
from datahub.market.tables import EntryRow, ManifestRow
from datahub.metadata import dcat, feed
from datahub.metadata.listed import NEVER, Listed, urn
from datatokens.terms import canonical_json
from fl_client.data.features import Feature
from fl_client.data.pictures import PictureRules
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from tests.datahub.hub_world import SCHEMA, HubWorld, manifest
from tests.datahub.test_dataset_page import EVIL, largest, page
from tests.datahub.test_dataset_page import published as listed_as

ATOM = f"{{{feed.ATOM}}}"
RICH = Schema(
    (
        Feature("age", 55, 10, unit="a", missing=50.0, stands=True),
        Feature("ward", categories=("icu", "general"), other=True),
        Feature("grade", categories=(1, 2, 3)),
        Feature("admitted", 0, 365, kind="date", reference="2020-01-01", missing="refuse"),
        Feature("smoker", 0.5, 0.5, kind="yes/no"),
        Feature("note", 0.5, 0.5, kind="text", vocabulary=("pain", "fever")),
        Feature("many", categories=tuple(f"level {i}" for i in range(20))),
    ),
    Target("died", None),
)
PICTURES = Schema((), Target("ill", None), PictureRules(1, (8, 8)))
HOSTILE = EVIL + '\x00\x1b[31m\u2028\u202e\n---\n]]>{"@id": "https://evil.example"}\ud7ff\ufffe😀'
EVERY = Schema(
    (
        Feature(HOSTILE, 1, 2, unit=HOSTILE),
        Feature("@id", categories=(HOSTILE, "@type")),
        Feature("https://evil.example/", 0.5, 0.5, kind="yes/no"),
    ),
    Target(HOSTILE + "t", None),
)


def read(document: dict[str, Any], **files: Path) -> mlcroissant.Dataset:
    """The document as mlcroissant takes it, without anything to complain of."""
    given = {name.replace("_", "-") + ".csv": path for name, path in files.items()}
    dataset = mlcroissant.Dataset(jsonld=document, mapping=given)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    return dataset


def graph_of(document: dict[str, Any]) -> rdflib.Graph:
    return rdflib.Graph().parse(data=json.dumps(document), format="json-ld")


def rows(graph: rdflib.Graph, query: str) -> list[tuple[str, ...]]:
    prefixes = "".join(f"PREFIX {name}: <{where}>\n" for name, where in dcat.CONTEXT.items())
    found = graph.query(prefixes + query)
    return sorted(tuple(str(value) for value in row) for row in found)  # type: ignore[union-attr]


def listed(schema: Schema = SCHEMA, **changes: Any) -> Listed:
    document = manifest(3, schema=schema).as_dict()
    facts: dict[str, Any] = {
        "hub": "https://hub.example",
        "market": "eip155:1:0x00",
        "dataset_id": 3,
        "manifest": document,
        "schema_hash": schema.hash,
        "published": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Listed(**(facts | changes))


# -- Croissant -------------------------------------------------------------------------------------


def test_croissant__a_table__its_fields_load_from_the_made_up_file(
    hub: HubWorld, hub_url: str, tmp_path: Path
) -> None:
    with listed_as(hub, manifest(3, schema=RICH, description="People of one ward.")):
        answer = httpx.get(f"{hub_url}/datasets/3/croissant.json")
        table = httpx.get(f"{hub_url}/datasets/3/made-up.csv").content
    assert answer.headers["content-type"] == "application/ld+json"
    document = answer.json()
    (file,) = document["distribution"]
    assert file["sha256"] == hashlib.sha256(table).hexdigest()
    assert file["contentUrl"] == f"{hub_url}/datasets/3/made-up.csv"
    assert "nothing in them is anybody's data" in file["description"]
    assert document["description"].startswith("People of one ward.")
    assert (
        NEVER in document["description"] and "epsilon 8 at delta 1e-05" in (document["description"])
    )
    (tmp_path / "t.csv").write_bytes(table)
    dataset = read(document, made_up=tmp_path / "t.csv")
    records = list(dataset.records("made-up-records"))
    assert len(records) == 500
    fields = {one.id: one for one in dataset.metadata.record_sets[-1].fields}
    assert [one.name for one in fields.values()] == list(RICH.names)
    said = {one.name: one.description for one in fields.values()}
    assert said["age"] == "number; unit a; if missing: counts as 50, and one more input says so"
    assert said["ward"].startswith("one of 3 levels: icu, general, any other;")
    assert "level 7, ...;" in said["many"] and "level 8" not in said["many"]
    types = {one["name"]: one["dataType"] for one in document["recordSet"][-1]["field"]}
    assert types["age"] == types["grade"] == "sc:Float" and types["admitted"] == "sc:Date"
    assert document["recordSet"][-1]["field"][0]["sc:unitText"] == "a"
    levels = [next(iter(one.values())) for one in dataset.records("levels-6")]
    assert levels == [f"level {i}" for i in range(20)]
    assert {one["made-up-records/1"] for one in records} == {b"icu", b"general"}


def test_croissant__the_file_made_again_elsewhere__has_the_same_hash(hub_url: str) -> None:
    said = httpx.get(f"{hub_url}/datasets/1/croissant.json").json()["distribution"][0]["sha256"]
    script = (
        "import csv, hashlib, io; from datahub.synthetic import made_up\n"
        "from fl_client.data.schemas import Schema\n"
        f"schema = Schema.from_dict({SCHEMA.as_dict()!r})\n"
        "text = io.StringIO(); csv.writer(text).writerows(made_up(schema, 500))\n"
        "print(hashlib.sha256(text.getvalue().encode()).hexdigest())"
    )
    where = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=where, check=True
    )
    assert ran.stdout.strip() == said


def test_croissant__pictures__has_no_file(hub: HubWorld, hub_url: str) -> None:
    with listed_as(hub, manifest(3, schema=PICTURES)):
        document = httpx.get(f"{hub_url}/datasets/3/croissant.json").json()
    assert "distribution" not in document and "recordSet" not in document
    assert read(document).metadata.name == "Table 3"


def test_croissant__hostile_names__are_values(hub: HubWorld, hub_url: str, tmp_path: Path) -> None:
    schema = Schema(EVERY.features[1:], Target("t", None))
    with listed_as(hub, manifest(3, schema=schema, name=HOSTILE, hospital=HOSTILE)):
        document = httpx.get(f"{hub_url}/datasets/3/croissant.json").json()
        table = httpx.get(f"{hub_url}/datasets/3/made-up.csv").content
    (tmp_path / "t.csv").write_bytes(table)
    dataset = read(document, made_up=tmp_path / "t.csv")
    assert dataset.metadata.name == HOSTILE
    assert [one.name for one in dataset.metadata.record_sets[-1].fields] == list(schema.names)
    assert document["name"] == HOSTILE and len(list(dataset.records("made-up-records"))) == 500


def test_croissant__as_large_as_a_manifest_may_be__is_bounded(hub: HubWorld, hub_url: str) -> None:
    for schema in largest().values():
        with listed_as(hub, manifest(3, schema=schema)):
            answer = httpx.get(f"{hub_url}/datasets/3/croissant.json", timeout=30)
        assert answer.status_code == 200 and len(answer.content) < 2_000_000


# -- DCAT ------------------------------------------------------------------------------------------

REQUIRED = f"""SELECT DISTINCT ?title ?publisher ?unit ?service ?file ?schema WHERE {{
  ?d a dcat:Dataset ; dct:title ?title ; dct:identifier ?any ; dct:provenance ?p ; dct:type ?t ;
     dct:publisher/foaf:name ?publisher ; dct:conformsTo ?schema ; dcat:keyword "ill" ;
     dcat:contactPoint/vcard:hasURL ?page ; dcat:theme <{dcat.HEALTH}> ;
     dct:accessRights <{dcat.NON_PUBLIC}> ;
     dpv:hasPersonalData ?personal ; healthdcatap:numberOfRecords ?unit ;
     dcat:distribution/dcat:accessService ?service ; dcat:distribution/dcat:downloadURL ?file .
  ?service a dcat:DataService ; dcat:endpointURL ?url ; dcat:endpointDescription ?described .
  ?file dcat:mediaType ?media .
  FILTER (datatype(?unit) = xsd:nonNegativeInteger)
}}"""


def test_dcat__one_dataset__has_what_the_profile_asks(hub_url: str) -> None:
    answer = httpx.get(f"{hub_url}/datasets/2/dcat.jsonld")
    assert answer.headers["content-type"] == "application/ld+json"
    graph = graph_of(answer.json())
    here = f"{hub_url}/datasets/2"
    assert rows(graph, REQUIRED) == [
        (
            "Table 2",
            "Hospital 2",
            "200",
            f"{hub_url}/api",
            f"{here}/made-up.csv",
            f"{hub_url}/api/v1/schemas/{SCHEMA.hash}",
        )
    ]
    assert rows(graph, "SELECT ?n WHERE { ?d healthdcatap:numberOfUniqueIndividuals ?n }") == []
    (size,) = rows(graph, "SELECT ?n WHERE { ?d healthdcatap:populationCoverage ?n }")
    assert size == ("About 200 records (noised for their privacy), never fewer than 10.",)
    assert rows(graph, "SELECT ?p WHERE { ?d dpv:hasPurpose ?p }") == []
    (schema,) = rows(graph, "SELECT ?s WHERE { ?d dct:conformsTo ?s }")
    assert httpx.get(schema[0]).content == canonical_json(SCHEMA.as_dict())
    order = rows(graph, "SELECT ?u WHERE { ?j dcat:accessService ?s ; dcat:accessURL ?u }")
    assert httpx.get(order[0][0]).status_code == 200


def test_dcat__by_patient__says_how_many_persons_and_no_records() -> None:
    document = manifest(3, unit="patient", records_per_patient=4).as_dict()
    graph = graph_of(dcat.document(listed(manifest=document)))
    assert rows(graph, "SELECT ?n WHERE { ?d healthdcatap:numberOfUniqueIndividuals ?n }") == [
        ("300",)
    ]
    assert rows(graph, "SELECT ?n WHERE { ?d healthdcatap:numberOfRecords ?n }") == []


def test_dcat__pictures__are_reached_by_a_job_alone() -> None:
    graph = graph_of(dcat.document(listed(PICTURES)))
    assert rows(graph, "SELECT ?u WHERE { ?d dcat:distribution/dcat:accessURL ?u }") == [
        ("https://hub.example/order?dataset=3",)
    ]


def test_dcat__purposes_and_codes__are_purposes_and_rights() -> None:
    codes = ("DUO:0000007", "MONDO:0005148", "DUO:0000046")
    graph = graph_of(dcat.document(listed(purposes=("cardiology", "*"), permits=codes)))
    obo = "http://purl.obolibrary.org/obo/"
    assert rows(graph, "SELECT ?p ?c WHERE { ?d dpv:hasPurpose ?p . ?p skos:notation ?c }") == [
        (f"{obo}DUO_0000007", "DUO:0000007"),
        (f"{obo}MONDO_0005148", "MONDO:0005148"),
    ]
    assert rows(graph, "SELECT ?t WHERE { ?d dpv:hasPurpose/dct:description ?t }") == [
        ("cardiology",)
    ]
    assert rows(
        graph, "SELECT ?r ?l WHERE { ?d dct:rights ?r . ?r rdfs:label ?l ; skos:notation ?c }"
    ) == [(f"{obo}DUO_0000046", "no commercial use")]


def test_dcat__hostile_names__are_literals(hub: HubWorld, hub_url: str) -> None:
    document = manifest(3, schema=EVERY, name=HOSTILE, hospital=HOSTILE, description=HOSTILE * 3)
    calm = graph_of(httpx.get(f"{hub_url}/datasets/3/dcat.jsonld").json())
    with listed_as(hub, document):
        graph = graph_of(httpx.get(f"{hub_url}/datasets/3/dcat.jsonld").json())
    assert rows(graph, "SELECT ?t WHERE { ?d a dcat:Dataset ; dct:title ?t }") == [(HOSTILE,)]
    addresses = {str(one) for triple in graph for one in triple if isinstance(one, rdflib.URIRef)}
    known = {str(one) for triple in calm for one in triple if isinstance(one, rdflib.URIRef)}
    assert {one for one in addresses - known if "/api/v1/schemas/" not in one} == set()
    names = {name for (name,) in rows(graph, "SELECT ?k WHERE { ?d dcat:keyword ?k }")}
    assert names == {HOSTILE, HOSTILE + "t", "@id", "https://evil.example/"}


def test_catalogue__many_datasets__comes_in_pages_each_once(hub: HubWorld, hub_url: str) -> None:
    with hub.desk.session() as session:
        for table in (DatasetRow, EntryRow):
            first = session.get(table, 1)
            assert first is not None
            for i in range(1000, 1237):
                session.add(table(**(first.model_dump() | {"dataset_id": i})))
        session.commit()
        count = len(session.exec(select(DatasetRow.dataset_id)).all())
    url, seen, sizes = f"{hub_url}/catalogue.jsonld", [], []
    while url:
        graph = graph_of(httpx.get(url).json())
        found = rows(graph, "SELECT ?d WHERE { ?c a dcat:Catalog ; dcat:dataset ?d }")
        sizes.append(len(found))
        seen += [one for (one,) in found]
        view = "?c hydra:view ?v . ?v a hydra:PartialCollectionView"
        following = rows(graph, f"SELECT ?n WHERE {{ {view} ; hydra:next ?n }}")
        url = following[0][0] if following else ""
        assert rows(graph, "SELECT ?p WHERE { ?c a dcat:Catalog ; dct:publisher/foaf:name ?p }")
    assert sizes[:2] == [100, 100] and len(sizes) == 3
    assert len(seen) == len(set(seen)) == sum(sizes) and 240 <= len(seen) <= count


def test_catalogue__exactly_one_page__has_no_next_and_no_more_fit() -> None:
    one = [listed(dataset_id=i + 1) for i in range(101)]
    full = dcat.catalogue("https://hub.example", "eip155:1:0x00", one[:100], 0, True)
    assert "hydra:next" not in full["hydra:view"] and len(full["dcat:dataset"]) == 100
    with pytest.raises(ValueError, match="a page of 101 datasets; 100 are the most"):
        dcat.catalogue("https://hub.example", "eip155:1:0x00", one, 0, True)
    empty = dcat.catalogue("https://hub.example", "eip155:1:0x00", [], 7, True)
    assert rows(graph_of(empty), "SELECT ?d WHERE { ?c dcat:dataset ?d }") == []


# -- the feed --------------------------------------------------------------------------------------


def entries(raw: bytes) -> list[ElementTree.Element]:
    """Those of a feed that has what RFC 4287 (4.1) demands of it and of each."""
    root = ElementTree.fromstring(raw)
    assert root.tag == f"{ATOM}feed"
    for one in (root, *root.findall(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            (element,) = one.findall(f"{ATOM}{name}")
            assert element.text
        updated = one.findtext(f"{ATOM}updated")
        assert updated is not None and datetime.strptime(updated, "%Y-%m-%dT%H:%M:%S%z")
    found = root.findall(f"{ATOM}entry")
    for one in found:
        assert one.findtext(f"{ATOM}author/{ATOM}name")
        links = [link.get("rel") for link in one.findall(f"{ATOM}link")]
        assert links.count("alternate") == 1
    assert len({one.findtext(f"{ATOM}id") for one in found}) == len(found)
    return found


def test_feed__newest_first__with_names_that_stay(hub: HubWorld, hub_url: str) -> None:
    answer = httpx.get(f"{hub_url}/feed.atom")
    assert answer.headers["content-type"] == "application/atom+xml; charset=utf-8"
    found = entries(answer.content)
    titles = [one.findtext(f"{ATOM}title") for one in found]
    assert titles[-3:] == ["Table 3", "Table 2", "Table 1"]
    where = f"eip155:{hub.desk.config.chain_id}:{hub.desk.config.registry}"
    assert found[-1].findtext(f"{ATOM}id") == urn(f"{where}/1")
    at = hub_url.replace("127.0.0.1", "localhost")
    elsewhere = entries(httpx.get(f"{at}/feed.atom").content)
    names = [[one.findtext(f"{ATOM}id") for one in some] for some in (found, elsewhere)]
    assert names[0] == names[1], "another name of the host makes no new entries"
    link = found[-1].find(f"{ATOM}link[@rel='alternate']")
    assert link is not None and httpx.get(str(link.get("href"))).status_code == 200


def test_feed__a_changed_manifest__is_updated_and_no_new_entry(hub: HubWorld, hub_url: str) -> None:
    with hub.desk.session() as session:
        for row in session.exec(select(ManifestRow)).all():
            row.kept_at = 1_700_000_000.5
            session.add(row)
        session.commit()
    before = entries(httpx.get(f"{hub_url}/feed.atom").content)[-3]
    assert before.findtext(f"{ATOM}updated") == "2023-11-14T22:13:20Z"
    catalogue.put_manifest(hub.desk, 3, manifest(3).as_dict())
    again = entries(httpx.get(f"{hub_url}/feed.atom").content)[-3]
    assert again.findtext(f"{ATOM}updated") == "2023-11-14T22:13:20Z", "the same one, sent again"
    with listed_as(hub, manifest(3, description="Now with words.")):
        after = entries(httpx.get(f"{hub_url}/feed.atom").content)[-3]
    assert after.findtext(f"{ATOM}id") == before.findtext(f"{ATOM}id")
    assert str(after.findtext(f"{ATOM}updated")) > "2026" and "Now with words." in str(
        after.findtext(f"{ATOM}summary")
    )


def test_feed__hostile_names__are_text_in_valid_xml(hub: HubWorld, hub_url: str) -> None:
    document = manifest(3, schema=EVERY, name=HOSTILE, hospital=HOSTILE, description=HOSTILE * 9)
    with listed_as(hub, document):
        found = entries(httpx.get(f"{hub_url}/feed.atom").content)[-3]
    title = str(found.findtext(f"{ATOM}title"))
    assert title.startswith(EVIL) and "\x00" not in title and "\ufffd" in title
    assert {one.tag for one in found.iter()} == {
        f"{ATOM}{name}" for name in "entry id title updated author name summary link".split()
    }


def test_feed__more_than_it_holds__has_the_newest_fifty() -> None:
    some = [listed(dataset_id=i) for i in range(80, 0, -1)]
    found = entries(feed.document("https://hub.example", "eip155:1:0x00", some))
    assert len(found) == 50
    assert found[0].findtext(f"{ATOM}id") == urn("eip155:1:0x00/80")
    assert entries(feed.document("https://hub.example", "eip155:1:0x00", [])) == []


# -- where they are found --------------------------------------------------------------------------


def test_pages__link_to_feed_and_documents(hub_url: str) -> None:
    for path in ("/datasets", "/datasets/1"):
        links = [made for tag, made in page(f"{hub_url}{path}").tags if tag == "link"]
        assert {"alternate"} == {one["rel"] for one in links if one["href"] == "/feed.atom"}
    hrefs = [made.get("href") for tag, made in page(f"{hub_url}/datasets/1").tags if tag == "a"]
    for name in ("croissant.json", "dcat.jsonld"):
        assert f"/datasets/1/{name}" in hrefs
        assert httpx.get(f"{hub_url}/datasets/1/{name}").status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/datasets/99/croissant.json", 404, "dataset_id=99 is not listed here with a manifest"),
        ("/datasets/99/dcat.jsonld", 404, "dataset_id=99 is not listed here with a manifest"),
        ("/datasets/0/dcat.jsonld", 422, "dataset_id"),
        ("/catalogue.jsonld?after=-1", 422, "after"),
        ("/catalogue.jsonld?after=x", 422, "after"),
    ],
)
def test_documents__of_nothing__are_a_sentence(
    hub_url: str, path: str, status: int, said: str
) -> None:
    answer = httpx.get(hub_url + path)
    assert answer.status_code == status and said in answer.text
