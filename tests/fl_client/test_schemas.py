"""Schemas and manifests: public documents, refused in words, with hashes that do not move."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client.data.features import Feature, words_of
from fl_client.data.manifests import Manifest, check_cohort
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.data.targets import Target
from fl_client.errors import DatasetError
from fl_client.model.losses import LOSSES

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
    ({"kind": "colour"}, "kind of a='colour' must be one of number, category, yes/no, date, text"),
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
    ({"kind": "text"}, "vocabulary of a must be a list of 1 to 1000 words"),
    ({"kind": "text", "vocabulary": "pain"}, "vocabulary of a must be a list of 1 to 1000 words"),
    ({"kind": "text", "vocabulary": ["x"] * 1001}, "must be a list of 1 to 1000 words"),
    ({"kind": "text", "vocabulary": ["Pain"]}, "one word of letters, in small ones: 'pain'"),
    ({"kind": "text", "vocabulary": ["straße"]}, "in small ones: 'strasse'"),
    ({"kind": "text", "vocabulary": ["no pain"]}, "'no pain' must be one word of letters"),
    ({"kind": "text", "vocabulary": ["covid19"]}, "'covid19' must be one word of letters"),
    ({"kind": "text", "vocabulary": ["pain", "pain"]}, "a word is there twice"),
    ({"kind": "text", "vocabulary": [1]}, "vocabulary of a=1 must be text"),
    ({"kind": "text", "vocabulary": ["x"], "categories": ["a", "b"]}, "a text has none"),
    ({"kind": "text", "vocabulary": ["x"], "missing": {"value": 1}}, "missing of a=1 must be text"),
    ({"kind": "yes/no", "vocabulary": ["x"]}, "vocabulary of a: a yes/no has none"),
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


def test_manifest__left_out__is_in_the_document_only_where_it_was_counted() -> None:
    before = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA)
    assert "left_out" not in before.as_dict()
    now = replace(before, left_out=0)
    assert now.hash != before.hash and now.as_dict()["left_out"] == 0
    for manifest in (before, now):
        assert Manifest.from_dict(manifest.as_dict()) == manifest
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(DatasetError, match="left_out"):
            Manifest.from_dict(before.as_dict() | {"left_out": wrong})


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
TARGETS: list[dict[str, Any]] = [
    {"name": "y", "kind": "yes/no"},
    {"name": "y", "positive_above": 2.5},
    {"name": "y", "kind": "classes", "levels": ["I", "II", "III"]},
    {"name": "y", "kind": "classes", "levels": [0, 1.5, 7]},
    {"name": "y", "kind": "number", "low": -3, "high": 30, "unit": "d"},
    {"name": "y", "kind": "several yes/no", "columns": ["b", "c"]},
    {
        "name": "y",
        "kind": "time to event",
        "time": "t",
        "event": "e",
        "edges": [1, 2.5],
        "unit": "",
    },
]
GOOD: list[dict[str, Any]] = [
    {
        "features": [
            {"name": "a", "centre": 1, "scale": 2, "unit": "kg", "missing": {"value": 3}},
            {"name": "b", "categories": ["x", "y"], "other": True, "missing": "refuse"},
            {"name": "c", "kind": "yes/no"},
            {"name": "d", "kind": "date", "reference": "2000-01-01", "centre": 0, "scale": 9},
            {"name": "e", "kind": "text", "vocabulary": ["x", "y"], "missing": {"value": ""}},
        ],
        "target": {"name": "y", "kind": "yes/no"},
    },
    {
        "picture": {"channels": 1, "size": [4, 4], "window": [0, 9], "fit": "pad"},
        "target": {"name": "y", "positive_above": 0},
    },
    *(
        {"features": [{"name": "a", "centre": 1, "scale": 2}], "target": target}
        for target in TARGETS
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


@pytest.mark.parametrize("good", GOOD, ids=lambda g: "-".join(g))
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
    assert tried > 100


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.get("kind", "above"))
def test_target__as_json_and_back__is_the_same_with_the_same_hash(target: dict[str, Any]) -> None:
    features = [{"name": "a", "centre": 0, "scale": 1}]
    schema = Schema.from_dict({"features": features, "target": target})
    again = Schema.from_dict(copy.deepcopy(schema.as_dict()))
    assert again == schema and again.hash == schema.hash
    assert len(schema.target.labels) == max(1, *schema.target.shape, 0)
    assert schema.target.words


WHEN = {"name": "y", "kind": "time to event", "time": "t", "event": "e", "edges": [1, 2.5]}
SEVERAL = {"name": "y", "kind": "several yes/no"}
WRONG_TARGETS: list[tuple[dict[str, Any], str]] = [
    ({"name": "y", "kind": "rank"}, "kind of y='rank' must be one of yes/no, classes, number"),
    ({"name": "y", "kind": ["classes"]}, "kind of y="),
    ({"name": "y", "kind": "classes", "levels": ["I"]}, "1 levels"),
    ({"name": "y", "kind": "classes", "levels": list(range(65))}, "65 levels; .* 2 to 64"),
    ({"name": "y", "kind": "classes", "levels": "I II"}, "levels of y must be a list"),
    ({"name": "y", "kind": "classes", "levels": ["I", "I"]}, "a level is there twice"),
    ({"name": "y", "kind": "classes"}, "target y: a target of kind classes must say levels, too"),
    ({"name": "y", "kind": "time to event", "time": "t"}, "must say edges, event, too"),
    ({"name": "y"}, "a target without a kind must say positive_above, too"),
    ({"name": "y", "kind": "number", "low": 3, "high": 3}, "high of y=3 must be .* above 3"),
    ({"name": "y", "kind": "number", "low": 0, "high": 1e400}, "high of y=inf must be a finite"),
    ({"name": "y", "kind": "number", "low": 0, "high": 1, "unit": 3}, "unit of y=3 must be text"),
    ({"name": "y", "kind": "number", "low": 0, "high": 1, "levels": []}, "'levels' is not known"),
    (SEVERAL | {"columns": ["b"]}, "there must be 2 to 40"),
    (SEVERAL | {"columns": ["b", "b"]}, "names must be there, all diff"),
    (SEVERAL | {"columns": ["a", "b"]}, "not contain the target"),
    (WHEN | {"event": "t"}, "all different"),
    (WHEN | {"edges": []}, "1 to 64"),
    (WHEN | {"edges": [2, 1]}, "each above"),
    (WHEN | {"edges": [0]}, "above 0"),
    ({"name": "y", "kind": "yes/no", "positive_above": 1}, "'positive_above' is not known"),
]


@pytest.mark.parametrize(("target", "said"), WRONG_TARGETS)
def test_target__what_is_wrong__is_named(target: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        Schema.from_dict({"features": [{"name": "a", "centre": 0, "scale": 1}], "target": target})


def of_text(*vocabulary: str, **more: Any) -> Feature:
    said = {"name": "note", "kind": "text", "vocabulary": list(vocabulary)} | more
    return Feature.from_dict(said)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Fever, no PAIN.", {"fever", "pain"}),
        ("painless fevers", set()),
        ("pain2fever_pain", {"pain", "fever"}),
        ("STRASSE Stra\u00dfe", {"strasse"}),
        ("e\u0301te\u0301", {"\u00e9t\u00e9"}),  # the accents as marks of their own
        ("\uff30\uff21\uff29\uff2e", {"pain"}),  # full-width letters
        ("\U0001d40f\U0001d400\U0001d408\U0001d40d", {"pain"}),  # bold capitals of mathematics
        (
            "\u0906\u092a\u0915\u094b \u092c\u0941\u0916\u093e\u0930",
            {"\u092c\u0941\u0916\u093e\u0930"},
        ),
        ("", set()),
        ("...", set()),
    ],
)
def test_text__words_of_whatever_script_and_case__are_found(said: str, found: set[str]) -> None:
    vocabulary = ("fever", "pain", "strasse", "\u00e9t\u00e9", "\u092c\u0941\u0916\u093e\u0930")
    feature = of_text(*vocabulary)
    assert feature.inputs(said) == [1.0 if word in found else -1.0 for word in vocabulary]
    assert feature.labels[0] == "note says fever" and feature.width == 5


def test_text__missing__stands_or_not_and_the_document_says_all() -> None:
    assert of_text("a", "b", centre=0, scale=1, missing={"value": "b"}).inputs(None) == [0, 1, 1]
    silent = of_text("a", "b", missing={"value": ""})
    assert silent.inputs(None) == [-1, -1, 1] and silent.width == 3
    assert silent.as_dict() == {
        "name": "note",
        "centre": 0.5,
        "scale": 0.5,
        "categories": [],
        "kind": "text",
        "missing": {"value": ""},
        "vocabulary": ["a", "b"],
    }
    assert Feature.from_dict(silent.as_dict()) == silent


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30))
def test_words_of__whatever_text__is_written_one_way(said: str) -> None:
    words = words_of(said)
    assert words_of(" ".join(words)) == words
    for word in words:  # so that each can be in a vocabulary, and is found
        assert of_text(word).inputs(said) == [1.0]


def test_readme__its_targets__are_every_kind_and_are_taken() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (said,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    found = [Target.from_dict(one) for one in json.loads(said)]
    kinds = {"yes/no", "classes", "number", "several yes/no", "time to event"}
    assert {one.kind for one in found} == kinds
    assert {loss for one in found for loss in one.losses} == set(LOSSES) - {OUTPUT}
