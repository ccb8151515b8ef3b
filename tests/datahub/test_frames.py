"""A table in memory becomes the very numbers that a hospital's file becomes, or a sentence."""

from __future__ import annotations

import csv
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datahub.buyer.frames import doubts, read, read_file
from datahub.demo import data as demo_data
from datahub.synthetic import made_up
from fl_client.data.pictures import PictureRules
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.errors import DatasetError
from tests.datahub.made_results import AGE, SEX, YES_NO, schema_of
from tests.datahub.test_synthetic import KINDS, numbered

ABSENT = st.sampled_from(["", "NA", "?", "nan"])


def typed(cell: str) -> Any:
    """A cell as a DataFrame would hold it: a number where it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


@settings(max_examples=80, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=5), st.integers(0, 2**31), st.data())
def test_read__any_schema_and_table__is_what_the_node_reads_of_the_same_file(
    tmp_path_factory: Any, kinds: list[dict[str, Any]], seed: int, data: st.DataObject
) -> None:
    schema = schema_of(*numbered(kinds))
    header, *rows = made_up(schema, 12, seed)
    for row in rows[::3]:  # some cells are missing
        row[data.draw(st.integers(0, len(kinds) - 1))] = data.draw(ABSENT)
    path = tmp_path_factory.mktemp("frames") / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    of_node = load(plain(path), schema)

    order = data.draw(st.permutations(header))
    as_text = {name: [row[header.index(name)] for row in rows] for name in order}
    as_numbers = {name: [typed(cell) for cell in cells] for name, cells in as_text.items()}
    of_records = [{name: cells[i] for name, cells in as_numbers.items()} for i in range(len(rows))]
    for table in (as_text | {"extra": [object()] * 12}, as_numbers, of_records):
        found = read(table, schema)
        assert found.features.tobytes() == of_node.features[:].tobytes()
        assert int((~found.complete).sum()) == of_node.dropped
        assert {name for name in found.lacks if name} == set(of_node.lacking)
    assert read_file(path, schema).features.tobytes() == of_node.features[:].tobytes()


REFUSED = {"name": "age", "centre": 50, "scale": 10, "missing": "refuse"}
DAY = {"name": "day", "kind": "date", "reference": "2000-01-01", "centre": 0, "scale": 100}


@pytest.mark.parametrize(
    ("features", "table", "said"),
    [
        ([AGE, SEX], {"age": [1]}, "the table lacks the column(s) sex; it has age"),
        ([AGE], [{"age": 1}, {"years": 1}], "record 1 lacks the column(s) age; it has years"),
        ([AGE], {"age": [50, "old"]}, "record 1: age='old' is not a number"),
        ([AGE], {"age": [float("inf")]}, "record 0: age='inf' is not a number"),
        ([SEX], {"sex": ["M"]}, "record 0: sex=M is not one of male, female"),
        ([REFUSED], {"age": [50, None]}, "record 1: age is missing, which the schema refuses"),
        ([DAY], {"day": ["soon"]}, "day='soon' is not a date of the form YYYY-MM-DD"),
        ([AGE], {"age": "50"}, "column age: a str is none; give a list of values"),
        ([AGE, SEX], {"age": [1, 2], "sex": ["male"]}, "columns differ in length: age 2, sex 1"),
        ([AGE], 7, "a int is none; give a pandas or polars DataFrame, a dict of columns"),
        ([AGE], {"age": [[1]]}, "record 0: age: a cell of type list is not understood"),
        ([AGE], {}, "the table lacks the column(s) age; it has none"),
        ([AGE], {"age": ["a", "b", "c", "d"]}, "record 2: age='c' is not a number"),
    ],
)
def test_read__a_table_that_does_not_fit__is_one_sentence(
    features: list[dict[str, Any]], table: Any, said: str
) -> None:
    with pytest.raises(DatasetError) as refused:
        read(table, schema_of(*features))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert "'d'" not in str(refused.value)  # three cells are named, and no more


def test_read__values_as_libraries_have_them__are_the_same_numbers() -> None:
    schema = schema_of(AGE, SEX, DAY, {"name": "smokes", "kind": "yes/no"})
    wanted = read(
        {"age": ["60", ""], "sex": ["male"] * 2, "day": ["2000-04-10"] * 2, "smokes": ["yes"] * 2},
        schema,
    )
    days: list[Any] = [
        [date(2000, 4, 10)] * 2,
        [datetime(2000, 4, 10, 13)] * 2,
        np.array(["2000-04-10"] * 2, dtype="datetime64[ns]"),
    ]
    for day in days:
        table = {
            "smokes": np.array([True, True]),
            "day": day,
            "sex": ("male", "male"),
            "age": np.array([60, np.nan], dtype=np.float32),
        }
        found = read(table, schema)
        assert np.array_equal(found.features, wanted.features) and found.lacks == wanted.lacks
    assert wanted.features.tolist() == [[1.0, 0.0, 1.0, 1.0]] and wanted.lacks == ("", "age")


def test_read__no_records__is_a_table_of_none() -> None:
    assert read([], schema_of(AGE)).features.shape == (0, 1)
    assert read({"age": []}, schema_of(AGE)).features.shape == (0, 1)


def frames_of(columns: dict[str, Any]) -> list[Any]:
    """The columns as DataFrames of whatever library is here."""
    made = []
    for name in ("pandas", "polars"):
        try:
            made.append(__import__(name).DataFrame(columns))
        except ModuleNotFoundError:
            continue
    return made


def test_read__dataframes__are_their_columns_by_name() -> None:
    columns = {
        "id": [1, 2, 3],
        "sex": ["female", "male", None],
        "day": [datetime(2000, 4, 10), None, datetime(2000, 4, 11)],
        "age": [60.0, 40.5, 50.0],
    }
    schema = schema_of(AGE, SEX, DAY | {"missing": {"value": 0}})
    wanted = read(columns, schema)
    assert wanted.lacks == ("", "", "sex") and len(wanted.features) == 2
    frames = frames_of(columns)
    if not frames:
        pytest.skip("neither pandas nor polars is installed")
    for frame in frames:
        found = read(frame, schema)
        assert np.array_equal(found.features, wanted.features) and found.lacks == wanted.lacks
        with pytest.raises(DatasetError, match="the table lacks the column"):
            read(frame[["id"]], schema)


def test_read__pandas_own_missing_values_and_twins__are_missing_and_refused() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "age": pd.array([60, None], dtype="Int64"),
            "sex": pd.Categorical(["female", "male"]),
            "day": [pd.Timestamp("2000-04-10"), pd.NaT],
        }
    )
    schema = schema_of(
        AGE | {"missing": {"value": 50}}, SEX, DAY | {"missing": {"value": 0}, "scale": 10}
    )
    found = read(frame.sort_index(ascending=False), schema)
    assert found.features.tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 10, 0]]
    twins = frame[["age", "age", "sex", "day"]]
    with pytest.raises(DatasetError, match="has the column age more than once"):
        read(twins, schema)


def test_read__pictures__are_those_of_the_node(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    names = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 9), dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
        names.append(f"{i}.png")
    schema = Schema((), Target("ill"), PictureRules(1, (8, 8)))
    lines = ["picture,ill", *(f"{name},1" for name in names)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    of_node = load(plain(tmp_path / "t.csv"), schema, store=tmp_path / "store").features[:]
    in_memory = read({"picture": [str(tmp_path / name) for name in names]}, schema)
    assert in_memory.features.tobytes() == of_node.tobytes()
    assert read_file(tmp_path / "t.csv", schema).features.tobytes() == of_node.tobytes()
    with pytest.raises(DatasetError, match=r"nothing\.png"):
        read({"picture": ["nothing.png"]}, schema)


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("ages", "said"),
    [
        (RANDOM.normal(50, 10, 500), ""),
        (RANDOM.normal(55, 14, 500), ""),
        ([95.0] + [50.0] * 30, ""),
        ([89], ""),
        (RANDOM.normal(0, 1, 500), "500 of 500 values (100%) are not from 10 to 90 a"),
        (RANDOM.normal(0, 1, 1), "1 of 1 values"),
        (RANDOM.normal(25, 1, 50), "50 of 50 values (100%) are not from 30 to 70 a"),
        (RANDOM.normal(50, 10, 500) * 12, "are not from 10 to 90 a"),  # in months
        ([], ""),
    ],
)
def test_doubts__a_column_in_another_unit_or_scaled_before__is_named(ages: Any, said: str) -> None:
    schema = schema_of(SEX, AGE | {"missing": {"value": 0}})
    table = {"age": [*ages, None], "sex": ["male"] * (len(ages) + 1)}
    found = doubts(read(table, schema), schema)
    assert bool(found) is bool(said) and all(said in one and "column age" in one for one in found)


def test_doubts__real_patients__are_none_until_their_columns_are_scaled(tmp_path: Path) -> None:
    data = demo_data.prepare("breast-cancer", None, tmp_path)
    with data.test.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [feature.name for feature in data.schema.features]
    table = {name: np.array([float(row[name]) for row in rows]) for name in names}
    assert doubts(read(table, data.schema), data.schema) == []
    scaled = {name: (x - x.mean()) / x.std() for name, x in table.items()}
    said = doubts(read(scaled, data.schema), data.schema)
    off = [f.name for f in data.schema.features if f.centre > 2.5 * f.scale]
    assert len(off) > 10
    assert set(off) <= {one.split(":")[0].removeprefix("column ") for one in said}


def test_doubts__a_date_and_a_target_of_its_own__speak_of_days() -> None:
    schema = schema_of(DAY, target=YES_NO)
    (said,) = doubts(read({"day": ["2024-01-01"]}, schema), schema)
    assert "from -400 to 400 days since 2000-01-01" in said
