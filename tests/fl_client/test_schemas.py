"""Schemas and manifests: public documents, refused in words, with hashes that do not move."""

import copy
import re
from typing import Any

import pytest

from fl_client.data.manifests import Manifest, check_cohort
from fl_client.data.schemas import Feature, Schema, Target
from fl_client.errors import DatasetError

SCHEMA = Schema((Feature("age", 50, 10), Feature("pain", 0.25, 0.5, (1, 2, 3))), Target("ill", 0))


def test_check_cohort__under_the_floor__refused() -> None:
    check_cohort(10, 10)
    with pytest.raises(DatasetError, match="persons=9 is under the floor of 10"):
        check_cohort(9, 10)
    with pytest.raises(DatasetError, match="floor of 10"):
        check_cohort(9, 1)  # an owner cannot lower the platform's floor


@pytest.mark.parametrize(
    "broken", [{}, {"features": [], "target": {"name": "x", "positive_above": 0}}, None, []]
)
def test_schema__broken__refused(broken: object) -> None:
    with pytest.raises(DatasetError):
        Schema.from_dict(broken)


def test_schema__published_before_there_were_kinds__keeps_its_hash() -> None:
    # worked out by the version of 2026-11-25
    assert SCHEMA.hash == "ec8bdbf687ae05fede3bf0ea6c5ea5a35e6c92046bc0ca08e21ea3f863b71574"


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"kind": "colour"}, "kind of a='colour' must be one of number, category, yes/no, date"),
    ({"sclae": 1}, "'sclae' is not known"),
    ({"centre": 0}, "scale of a=None must be a finite number"),
    ({"centre": 0, "scale": 0}, "must be a finite number above 0"),
    ({"categories": ["x"]}, "1 levels"),
    ({"categories": ["x", "x"]}, "a level is there twice"),
    ({"categories": ["x", 1]}, "must be text"),
    ({"categories": [1, "x"]}, "must be a finite number"),
    ({"kind": "yes/no", "categories": ["a", "b"]}, "a yes/no has none"),
    ({"kind": "date", "centre": 0, "scale": 1}, "must be a day like 2000-01-01"),
    ({"centre": 0, "scale": 1, "reference": "2000-01-01"}, "only a date is counted from a day"),
    ({"centre": 0, "scale": 1, "other": True}, "only a category has other levels"),
    ({"centre": 0, "scale": 1, "other": 1}, "must be true or false"),
    ({"centre": 0, "scale": 1, "missing": "guess"}, 'must be "drop", "refuse" or'),
    ({"centre": 0, "scale": 1, "missing": {"value": "x"}}, "missing of a='x' must be a finite"),
    ({"categories": ["x", "y"], "missing": {"value": "z"}}, "a=z is not one of x, y"),
    ({"kind": "yes/no", "missing": {"value": "maybe"}}, "a='maybe' must be yes or no"),
]


@pytest.mark.parametrize(("feature", "said"), BROKEN)
def test_feature__what_is_wrong__is_named(feature: dict[str, Any], said: str) -> None:
    target = {"name": "y", "kind": "yes/no"}
    with pytest.raises(DatasetError, match=re.escape(said)):
        Schema.from_dict({"features": [{"name": "a"} | feature], "target": target})


def test_manifest__round_trip__keeps_its_hash() -> None:
    manifest = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA)
    again = Manifest.from_dict(manifest.as_dict())
    assert again == manifest and again.hash == manifest.hash


def test_manifest__minimum_under_the_platforms_floor__refused() -> None:
    manifest = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict() | {
        "minimum_persons": 5
    }
    with pytest.raises(DatasetError, match="minimum_persons=5"):
        Manifest.from_dict(manifest)


def test_manifest__published_before_there_was_a_constant__keeps_its_hash() -> None:
    old = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict()
    del old["records_per_patient"]
    old = old | {"version": 1, "unit": "patient"}
    again = Manifest.from_dict(old)
    assert (again.records_per_patient, again.as_dict()) == (4, old)
    assert Manifest.from_dict(old | {"unit": "record"}).records_per_patient == 1


@pytest.mark.parametrize(
    ("unit", "records", "said"),
    [
        ("patient", 0, "from 1 to 64 where the unit is a patient"),
        ("patient", 65, "from 1 to 64 where the unit is a patient"),
        ("record", 2, "from 1 to 1 where the unit is a record"),
        ("patient", True, "records_per_patient=True"),
        ("patient", "4", "records_per_patient='4'"),
    ],
)
def test_manifest__records_per_patient_out_of_range__refused(
    unit: str, records: object, said: str
) -> None:
    given = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict()
    with pytest.raises(DatasetError, match=said):
        Manifest.from_dict(given | {"unit": unit, "records_per_patient": records})


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**70,
    "",
    "x" * 300,
    [],
    {},
    [[]],
    {"a": 1},
    "\x1b[31m",
]
GOOD: list[dict[str, Any]] = [
    {
        "features": [
            {"name": "a", "centre": 1, "scale": 2, "unit": "kg", "missing": {"value": 3}},
            {"name": "b", "categories": ["x", "y"], "other": True, "missing": "refuse"},
            {"name": "c", "kind": "yes/no"},
            {"name": "d", "kind": "date", "reference": "2000-01-01", "centre": 0, "scale": 9},
        ],
        "target": {"name": "y", "kind": "yes/no"},
    },
    {
        "picture": {"channels": 1, "size": [4, 4], "window": [0, 9], "fit": "pad"},
        "target": {"name": "y", "positive_above": 0},
    },
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


@pytest.mark.parametrize("good", GOOD, ids=("table", "picture"))
def test_schema__one_value_of_a_good_one_is_another__a_schema_or_a_sentence(
    good: dict[str, Any],
) -> None:
    tried = 0
    for path in places(good):
        for odd in ODD:
            changed = copy.deepcopy(good)
            at = changed
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = odd
            tried += 1
            try:
                made = Schema.from_dict(changed)
                assert Schema.from_dict(made.as_dict()) == made and made.width > 0
            except DatasetError as error:
                assert "\n" not in str(error)
    assert tried > 150
