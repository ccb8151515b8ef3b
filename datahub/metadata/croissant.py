"""A dataset in ML Commons' Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec).
Knows nothing of HTTP or databases.

Croissant describes files that a program then loads. The only file here is the table of made-up
records, and the document says so wherever it says anything of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from datahub.metadata.listed import MADE_UP, NEVER, Listed
from fl_client.data import words
from fl_client.data.features import NO, YES, Feature
from fl_client.data.schemas import Schema

VERSION = "http://mlcommons.org/croissant/1.0"
# the names that the specification gives (its appendix 1)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format "
            "includes isLiveDataset jsonPath key md5 parentField path recordSet references regex "
            "repeated replace samplingRate separator source subField transform"
        ).split()
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
TYPES = {"number": "sc:Float", "date": "sc:Date"}  # of a column's kind; text otherwise
SHOWN = 8  # levels of a column in its description; all of them are beside it
FILE, RECORDS = "made-up.csv", "made-up-records"


def document(listed: Listed, table: bytes | None) -> dict[str, Any]:
    """The JSON-LD document; `table` is the file of made-up records as the hub gives it out, None
    where there is none.
    """
    manifest = listed.manifest
    schema = Schema.from_dict(manifest["schema"])
    about = (manifest["description"], listed.size, f"{schema.target.name}: {schema.target.words}.")
    found = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": listed.page,
        "conformsTo": VERSION,
        "name": manifest["name"],
        "description": " ".join(filter(None, (*about, NEVER, listed.privacy))),
        "url": listed.page,
        "identifier": listed.identifier,
        "creator": {"@type": "sc:Organization", "name": manifest["hospital"]},
        "datePublished": f"{listed.published:%Y-%m-%d}",
        "version": f"1.0.0+{listed.schema_hash[:12]}",
        "keywords": [schema.target.name, "federated learning", "differential privacy"],
        "isAccessibleForFree": False,
        "conditionsOfAccess": NEVER,
        "license": f"None for the records; what a job may do is in its terms. {listed.page}",
        "citeAs": f"{manifest['hospital']}: {manifest['name']}. {listed.page}",
        "rai:personalSensitiveInformation": "Data about people's health. " + listed.privacy,
        "rai:dataReleaseMaintenancePlan": NEVER,
    }
    if table is None:
        return found
    columns = [*schema.features, *schema.target.reads]
    levels = {i: _levels(one) for i, one in enumerate(columns)}
    return found | {
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": FILE,
                "name": FILE,
                "description": MADE_UP,
                "contentUrl": listed.table,
                "encodingFormat": "text/csv",
                "contentSize": f"{len(table)} B",
                "sha256": hashlib.sha256(table).hexdigest(),
            }
        ],
        "recordSet": [
            *(_enumeration(i, columns[i].name, one) for i, one in levels.items() if one),
            {
                "@type": "cr:RecordSet",
                "@id": RECORDS,
                "name": RECORDS,
                "description": MADE_UP,
                "field": [_field(i, one, bool(levels[i])) for i, one in enumerate(columns)],
            },
        ],
    }


def _levels(column: Feature) -> Sequence[str | float]:
    return (NO, YES) if column.kind == "yes/no" else column.categories


def _field(i: int, column: Feature, enumerated: bool) -> dict[str, Any]:
    """Columns are told apart by their places: a name may hold anything."""
    said = words.column(column)
    shown = [*said.levels[:SHOWN], "..."] if len(said.levels) > SHOWN else said.levels
    facts = (
        said.kind + (f": {', '.join(shown)}" if shown else ""),
        f"unit {said.unit}" if said.unit else "",
        f"if missing: {said.missing}",
    )
    number = any(isinstance(level, float) for level in column.categories)
    return {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{i}",
        "name": column.name,
        "description": "; ".join(filter(None, facts)),
        "dataType": "sc:Float" if number else TYPES.get(column.kind, "sc:Text"),
        "source": {"fileObject": {"@id": FILE}, "extract": {"column": column.name}},
        **({"sc:unitText": said.unit} if said.unit else {}),
        **({"references": {"field": {"@id": f"levels-{i}/level"}}} if enumerated else {}),
    }


def _enumeration(i: int, name: str, levels: Sequence[str | float]) -> dict[str, Any]:
    where = f"levels-{i}"
    number = isinstance(levels[0], float)
    return {
        "@type": "cr:RecordSet",
        "@id": where,
        "name": where,
        "description": f"What {name} may be.",
        "dataType": "sc:Enumeration",
        "key": {"@id": f"{where}/level"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{where}/level",
                "name": "level",
                "dataType": "sc:Float" if number else "sc:Text",
            }
        ],
        "data": [{f"{where}/level": level} for level in levels],
    }
