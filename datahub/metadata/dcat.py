"""Datasets in DCAT 3 with HealthDCAT-AP's terms for health data, as JSON-LD, alone and as pages of
a catalogue. Knows nothing of HTTP or databases.

Source: W3C DCAT 3 (2024-08-22), HealthDCAT-AP release 5 (access level NON_PUBLIC), W3C DPV 2. Only
what is public of a dataset is said, and nothing is made up to fill a profile: HealthDCAT-AP also
wants applicable legislation, a health data access body and a health category of each dataset, which
no manifest says. A catalogue that takes these documents in has to add them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datahub.metadata.listed import MADE_UP, NEVER, Listed, urn
from fl_client.node.purposes import DISEASE, MODIFIERS, PERMISSIONS

CONTEXT = {
    "adms": "http://www.w3.org/ns/adms#",
    "dcat": "http://www.w3.org/ns/dcat#",
    "dct": "http://purl.org/dc/terms/",
    "dpv": "https://w3id.org/dpv#",
    "foaf": "http://xmlns.com/foaf/0.1/",
    "healthdcatap": "http://healthdataportal.eu/ns/health#",
    "hydra": "http://www.w3.org/ns/hydra/core#",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "skos": "http://www.w3.org/2004/02/skos/core#",
    "vcard": "http://www.w3.org/2006/vcard/ns#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
EU = "http://publications.europa.eu/resource/authority"
NON_PUBLIC, PUBLIC = f"{EU}/access-right/NON_PUBLIC", f"{EU}/access-right/PUBLIC"
HEALTH = f"{EU}/data-theme/HEAL"
CSV = "https://www.iana.org/assignments/media-types/text/csv"
PERSONAL = f"{EU}/dataset-type/PERSONAL_DATA"
# of what is counted, by the unit of a manifest; the other number is not public
COUNTED = {"patient": "numberOfUniqueIndividuals", "record": "numberOfRecords"}
ANY = "*"  # of an offer's purposes: whatever a buyer writes
MOST_KEYWORDS = 50
PAGE = 100  # datasets on one page of a catalogue


def document(listed: Listed) -> dict[str, Any]:
    """One dataset."""
    return {"@context": CONTEXT, **dataset(listed)}


def catalogue(
    hub: str, market: str, page: Sequence[Listed], after: int, last: bool
) -> dict[str, Any]:
    """A page of the catalogue: the datasets whose ids follow `after`, in order; `last` where no
    more come. Raises ValueError for more than PAGE of them.
    """
    if len(page) > PAGE:
        raise ValueError(f"a page of {len(page)} datasets; {PAGE} are the most")
    whole = f"{hub}/catalogue.jsonld"
    view = {
        "@id": f"{whole}?after={after}",
        "@type": "hydra:PartialCollectionView",
        "hydra:first": _at(f"{whole}?after=0"),
        **({} if last else {"hydra:next": _at(f"{whole}?after={page[-1].dataset_id}")}),
    }
    return {
        "@context": CONTEXT,
        "@id": whole,
        "@type": ["dcat:Catalog", "hydra:Collection"],
        "dct:identifier": market,
        "dct:title": _en("datahub: hospital data to train on where they are"),
        "dct:description": _en(
            "Datasets of hospitals, of which one training job over many can be ordered. " + NEVER
        ),
        "dct:publisher": _hub(hub),
        "dcat:themeTaxonomy": _at(f"{EU}/data-theme"),
        "dcat:service": service(hub),
        "foaf:homepage": _at(hub + "/"),
        "hydra:view": view,
        "dcat:dataset": [dataset(one) for one in page],
    }


def dataset(listed: Listed) -> dict[str, Any]:
    """A dcat:Dataset, to stand in a document with CONTEXT."""
    manifest = listed.manifest
    schema = manifest["schema"]
    names = [one["name"] for one in (schema["target"], *schema.get("features", ()))]
    facts = {
        "@id": listed.page,
        "@type": "dcat:Dataset",
        "dct:title": manifest["name"],
        "dct:description": [
            *([manifest["description"]] if manifest["description"] else []),
            _en(NEVER),
        ],
        "dct:identifier": [listed.identifier, urn(listed.identifier)],
        "dct:issued": {"@type": "xsd:dateTime", "@value": f"{listed.published:%Y-%m-%dT%H:%M:%SZ}"},
        "dct:publisher": {
            "@id": f"{listed.page}#hospital",
            "@type": "foaf:Agent",
            "foaf:name": manifest["hospital"],
            "dcat:contactPoint": _contact(listed),
        },
        "dcat:contactPoint": _contact(listed),
        "dcat:landingPage": _at(listed.page),
        "dcat:keyword": names[:MOST_KEYWORDS],
        "dcat:theme": {"@id": HEALTH, "@type": "skos:Concept"},
        "dct:type": {"@id": PERSONAL, "@type": "skos:Concept"},
        "dct:accessRights": {"@id": NON_PUBLIC, "@type": "dct:RightsStatement"},
        "dct:conformsTo": {
            "@id": f"{listed.hub}/api/v1/schemas/{listed.schema_hash}",
            "@type": "dct:Standard",
            "dct:identifier": f"sha256:{listed.schema_hash}",
        },
        "dct:provenance": {
            "@type": "dct:ProvenanceStatement",
            "rdfs:label": _en(
                "As the hospital says. The hash of what it says is in the registry that this "
                "dataset is listed in; nobody has looked at the records to confirm it."
            ),
        },
        "dct:rights": [
            {"@type": "dct:RightsStatement", "rdfs:label": _en(listed.privacy)},
            *_narrowed(listed.permits),
        ],
        "dpv:hasPersonalData": {
            "@id": "https://w3id.org/dpv/pd#MedicalHealth",
            "@type": "dpv:PersonalData",
        },
        f"healthdcatap:{COUNTED[manifest['unit']]}": {
            "@type": "xsd:nonNegativeInteger",
            "@value": str(manifest["persons"]),
        },
        "healthdcatap:populationCoverage": _en(listed.size),
        "dcat:distribution": [_job(listed), *([_made_up(listed)] if listed.table else [])],
        "rdfs:seeAlso": _at(f"{listed.page}/croissant.json"),
    }
    if listed.table:
        facts["adms:sample"] = _at(listed.table)
    if purposes := [*_permitted(listed.permits), *_said(listed.purposes)]:
        facts["dpv:hasPurpose"] = purposes
    return facts


def service(hub: str) -> dict[str, Any]:
    """Where a job is ordered: by a person's browser, or by a program."""
    return {
        "@id": f"{hub}/api",
        "@type": "dcat:DataService",
        "dct:title": _en("Orders of training jobs over hospitals' data"),
        "dct:description": _en(NEVER),
        "dct:publisher": _hub(hub),
        "dcat:endpointURL": _at(f"{hub}/api"),
        "dcat:endpointDescription": _at(f"{hub}/openapi.json"),
        "dcat:landingPage": _at(f"{hub}/order"),
    }


def _job(listed: Listed) -> dict[str, Any]:
    return {
        "@id": f"{listed.page}#job",
        "@type": "dcat:Distribution",
        "dct:title": _en("A training job at the hospital"),
        "dct:description": _en(NEVER),
        "dcat:accessURL": _at(f"{listed.hub}/order?dataset={listed.dataset_id}"),
        "dcat:accessService": service(listed.hub),
    }


def _made_up(listed: Listed) -> dict[str, Any]:
    return {
        "@id": listed.table,
        "@type": "dcat:Distribution",
        "dct:title": _en("Made-up records"),
        "dct:description": _en(MADE_UP),
        "dcat:accessURL": _at(listed.table),
        "dcat:downloadURL": _at(listed.table),
        "dcat:mediaType": _at(CSV),
        "dct:rights": {"@id": PUBLIC, "@type": "dct:RightsStatement"},
    }


def _contact(listed: Listed) -> dict[str, Any]:
    return {
        "@id": f"{listed.page}#contact",
        "@type": ["vcard:Kind", "vcard:Organization"],
        "vcard:fn": listed.manifest["hospital"],
        "vcard:hasURL": _at(listed.page),
    }


def _hub(hub: str) -> dict[str, Any]:
    return {
        "@id": hub + "/",
        "@type": "foaf:Agent",
        "foaf:name": hub,
        "foaf:homepage": _at(hub + "/"),
    }


def _permitted(permits: Sequence[str]) -> list[dict[str, Any]]:
    known = {code: PERMISSIONS[code][1] for code in permits if code in PERMISSIONS}
    known |= {code: "a disease" for code in permits if DISEASE.fullmatch(code)}
    return [
        {**_code(code), "@type": "dpv:Purpose", "skos:prefLabel": _en(known[code])}
        for code in known
    ]


def _said(purposes: Sequence[str]) -> list[dict[str, Any]]:
    return [{"@type": "dpv:Purpose", "dct:description": said} for said in purposes if said != ANY]


def _narrowed(permits: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**_code(code), "@type": "dct:RightsStatement", "rdfs:label": _en(MODIFIERS[code][1])}
        for code in permits
        if code in MODIFIERS
    ]


def _code(code: str) -> dict[str, Any]:
    """The OBO Foundry's address of a code like DUO:0000006."""
    return {
        "@id": f"http://purl.obolibrary.org/obo/{code.replace(':', '_')}",
        "skos:notation": code,
    }


def _at(address: str) -> dict[str, str]:
    return {"@id": address}


def _en(sentence: str) -> dict[str, str]:
    return {"@language": "en", "@value": sentence}
