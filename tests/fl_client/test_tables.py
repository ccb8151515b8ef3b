"""Tables become numbers by public constants only; odd cells are refused in words."""

from pathlib import Path

import numpy as np
import pytest

from fl_client.data.schemas import Feature, Schema, Target
from fl_client.data.sources import plain
from fl_client.data.tables import load
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
