"""Made-up records are what the schema says, and nothing else."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datahub.synthetic import made_up
from fl_client.data.pictures import PictureRules
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.errors import DatasetError

number = st.floats(-1e6, 1e6)
KINDS = st.one_of(
    st.fixed_dictionaries({"centre": number, "scale": st.floats(1e-3, 1e6)}),
    st.fixed_dictionaries({"categories": st.lists(number, min_size=2, max_size=4, unique=True)}),
    st.fixed_dictionaries(
        {
            "categories": st.lists(
                st.text("abcdefgh -", min_size=1, max_size=8).map(lambda s: f"x{s.strip()}"),
                min_size=2,
                max_size=4,
                unique=True,
            ),
            "other": st.booleans(),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("yes/no"), "missing": st.just({"value": "no"})}),
    st.fixed_dictionaries(
        {
            "kind": st.just("date"),
            "reference": st.just("2000-01-01"),
            "centre": st.floats(-3000, 3000),
            "scale": st.floats(1, 1000),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("text"),
            # "na" and "nan" alone in a cell would be a missing value
            "vocabulary": st.lists(
                st.sampled_from(["na", "nan", "fever", "schmerz", "été"]), min_size=1, unique=True
            ),
        }
    ),
)
TARGETS: list[dict[str, Any]] = [
    {"name": "out come", "kind": "yes/no"},
    {"name": "out come", "positive_above": 0.5},
]


def numbered(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": f"c{i}"} | kind for i, kind in enumerate(kinds)]


@settings(max_examples=60, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=5), st.sampled_from(TARGETS), st.integers(0, 2**31))
def test_made_up__any_schema__reads_back_whole(
    tmp_path_factory: Any, kinds: list[dict[str, Any]], target: dict[str, Any], seed: int
) -> None:
    schema = Schema.from_dict({"features": numbered(kinds), "target": target})
    path = tmp_path_factory.mktemp("made-up") / "t.csv"
    write(path, schema, 20, seed)
    found = load(plain(path), schema)
    assert (len(found.targets), found.dropped) == (20, 0)
    assert found.features.shape == (20, schema.width)
    assert np.abs(found.features[:]).max() <= 10


def write(path: Path, schema: Schema, count: int, seed: int = 0) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(made_up(schema, count, seed))


def test_made_up__a_model_has_something_to_learn(tmp_path: Path) -> None:
    kinds = [{"centre": 50, "scale": 10}, {"categories": ["a", "b"]}, {"kind": "yes/no"}]
    schema = Schema.from_dict({"features": numbered(kinds), "target": TARGETS[0]})
    write(tmp_path / "t.csv", schema, 2000)
    found = load(plain(tmp_path / "t.csv"), schema)
    x = np.column_stack([found.features[:], np.ones(2000)])
    fitted = x @ np.linalg.lstsq(x, found.targets, rcond=None)[0]
    assert np.corrcoef(fitted, found.targets)[0, 1] > 0.2
    assert 0.2 < found.targets.mean() < 0.8


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ({"kind": "date", "reference": "2000-01-01", "centre": 0, "scale": 1e7}, TARGETS[0]),
        ({"kind": "date", "reference": "0001-01-01", "centre": 1e308, "scale": 1e308}, TARGETS[0]),
        ({"centre": 1e308, "scale": 1e308}, TARGETS[0]),
        ({"kind": "yes/no"}, {"name": "y", "kind": "number", "low": -1e308, "high": 1e308}),
        (
            {"kind": "yes/no"},
            {"name": "y", "kind": "time to event", "time": "t", "event": "e", "edges": [1e308]},
        ),
    ],
)
def test_made_up__constants_of_any_size__are_records_all_the_same(
    tmp_path: Path, kind: dict[str, Any], target: dict[str, Any]
) -> None:
    """Once, a date 10^7 days from its reference was a 500 in place of the dataset's page."""
    schema = Schema.from_dict({"features": numbered([kind]), "target": target})
    write(tmp_path / "t.csv", schema, 50)
    assert len(load(plain(tmp_path / "t.csv"), schema).targets) == 50


def test_made_up__every_input_at_its_end__has_an_outcome() -> None:
    """Once, the exponential of their sum was too large a number."""
    leaning = np.random.default_rng(0).normal(size=2000)
    far = [{"kind": "yes/no", "centre": float(np.sign(x)) * 1e9, "scale": 1.0} for x in leaning]
    schema = Schema.from_dict({"features": numbered(far), "target": TARGETS[0]})
    assert len(list(made_up(schema, 2))) == 3


def test_made_up__pictures_or_odd_counts__are_a_sentence() -> None:
    schema = Schema.from_dict({"features": numbered([{"kind": "yes/no"}]), "target": TARGETS[0]})
    for count in (0, -1, 10**7):
        with pytest.raises(DatasetError, match=f"records={count} must be from 1 to 1000000"):
            next(made_up(schema, count))
    pictures = replace(schema, features=(), picture=PictureRules(1, (8, 8)))
    with pytest.raises(DatasetError, match=r"pictures of shape \(1, 8, 8\)"):
        next(made_up(pictures, 5))
