"""Tables become numbers by public constants only; odd cells are refused in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.errors import DatasetError

SCHEMA = Schema((Feature("age", 50, 10), Feature("pain", 0.25, 0.5, (1, 2, 3))), Target("ill", 0))


def table(tmp_path: Path, *rows: str, header: str = "age,pain,ill") -> Path:
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_load__numbers_and_categories__are_scaled_by_the_schema(tmp_path: Path) -> None:
    records = load(plain(table(tmp_path, "60,2,1", "40,1,0")), SCHEMA)
    assert records.features.tolist() == [[1.0, 1.5, -0.5], [-1.0, -0.5, -0.5]]
    assert records.targets.tolist() == [1.0, 0.0]
    assert records.persons == 2


def test_load__missing_values__drop_the_row(tmp_path: Path) -> None:
    records = load(plain(table(tmp_path, "60,2,1", "?,1,0", "50,,0")), SCHEMA)
    assert (records.persons, records.dropped) == (1, 2)


def test_load__absurd_cell__is_clipped(tmp_path: Path) -> None:
    assert load(plain(table(tmp_path, "1e30,1,0")), SCHEMA).features[0, 0] == 10.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("abc,1,0", "line 2: age='abc' is not a number"),
        ("inf,1,0", "line 2: age='inf' is not a number"),
        ("60,9,0", "line 2: pain=9 is not one of"),
    ],
)
def test_load__bad_cell__names_line_column_and_value(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        load(plain(table(tmp_path, row)), SCHEMA)


def test_load__missing_column__is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"lacks the column.*pain"):
        load(plain(table(tmp_path, "60,1", header="age,ill")), SCHEMA)


def test_load__no_file__is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read as a CSV file"):
        load(plain(tmp_path / "nothing.csv"), SCHEMA)


def test_patient_set__row_order__does_not_matter(tmp_path: Path) -> None:
    one = load(plain(table(tmp_path, "60,2,1", "40,1,0")), SCHEMA).patient_set
    assert load(plain(table(tmp_path, "40,1,0", "60,2,1")), SCHEMA).patient_set == one
    assert load(plain(table(tmp_path, "41,1,0", "60,2,1")), SCHEMA).patient_set != one


def test_load__features__are_float32(tmp_path: Path) -> None:
    assert load(plain(table(tmp_path, "60,2,1")), SCHEMA).features.dtype == np.float32


def test_load__patient_column__groups_whoever_has_how_many_records(tmp_path: Path) -> None:
    once = table(tmp_path, "60,2,1,a", "40,1,0,b", header="age,pain,ill,who")
    assert load(plain(once, "who"), SCHEMA).patients.tolist() == [0, 1]
    assert load(plain(once), SCHEMA).patients is None
    twice = table(tmp_path, "60,2,1,b", "40,1,0,a", "50,1,0, b", header="age,pain,ill,who")
    records = load(plain(twice, "who"), SCHEMA)
    assert records.patients.tolist() == [0, 1, 0] and records.persons == 2


# -- targets of every kind -------------------------------------------------------------------------

TABLE = """a,stage,stay,b,c,days,died
1,II,45,yes,no,15,yes
2,I,-3,no,no,8,no
3,IIIb,7.5,yes,yes,30,0
4,II,,yes,,99,1
"""
CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "classes": ({"levels": ["I", "II", "IIIb"]}, [1, 0, 2, 1]),
    "number": ({"low": 0, "high": 30, "unit": "d"}, [1, 0, 0.25]),
    "several yes/no": ({"columns": ["b", "c"]}, [[1, 0], [0, 0], [1, 1]]),
    "time to event": (
        {"time": "days", "event": "died", "edges": [10, 20], "unit": "d"},
        [[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    ),
}
NAMES = {"classes": "stage", "number": "stay"}


def with_target(kind: str, **changes: Any) -> Schema:
    target = {"name": NAMES.get(kind, "y"), "kind": kind, **CASES[kind][0], **changes}
    features = [{"name": "a", "centre": 0, "scale": 1}]
    return Schema.from_dict({"features": features, "target": target})


@pytest.mark.parametrize("kind", CASES)
def test_load__target_of_every_kind__as_its_numbers_and_lacking_ones_left_out(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    found = load(plain(path), with_target(kind))
    assert found.targets.tolist() == CASES[kind][1]
    assert found.features[:, 0].tolist() == [1, 2, 3, 4][: len(CASES[kind][1])]
    assert found.dropped == 4 - len(CASES[kind][1])
    if found.dropped:
        assert found.lacking == {"stay" if kind == "number" else "c": 1}
    whole, none = found.inputs("output"), found.inputs(next(iter(with_target(kind).losses)))
    assert whole[0].shape[1:] == with_target(kind).inputs("output") and not whole[1].any()
    assert none[0] is found.features and none[1] is found.targets


def test_load__target_that_does_not_fit__is_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    with pytest.raises(DatasetError, match=r"table.csv line 4: stage=IIIb is not one of I, II"):
        load(plain(path), with_target("classes", levels=["I", "II"]))
    path.write_text(TABLE.replace("15,yes", "-15,yes"))
    with pytest.raises(DatasetError, match=r"table.csv line 2: days=-15 must be 0 or more"):
        load(plain(path), with_target("time to event"))
    path.write_text(TABLE.replace("8,no", "8,perhaps"))
    with pytest.raises(DatasetError, match=r"table.csv line 3: died='perhaps' is not yes or no"):
        load(plain(path), with_target("time to event"))
    with pytest.raises(DatasetError, match="the header lacks the column"):
        load(plain(path), with_target("several yes/no", columns=["b", "d"]))


def test_text__cells_with_and_without_the_words__become_inputs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('note,y\n"Pain, and FEVER",1\nnone of it,0\nNA,1\n,0\n')
    feature = {"name": "note", "kind": "text", "vocabulary": ["fever", "pain"]}
    target = {"name": "y", "kind": "yes/no"}
    schema = Schema.from_dict({"features": [feature], "target": target})
    found = load(plain(path), schema)
    assert found.features.tolist() == [[1, 1], [-1, -1]] and found.dropped == 2
    stands = {"features": [feature | {"missing": {"value": ""}}], "target": target}
    found = load(plain(path), Schema.from_dict(stands))
    assert found.features.tolist() == [[1, 1, 0], [-1, -1, 0], [-1, -1, 1], [-1, -1, 1]]
