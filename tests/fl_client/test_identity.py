"""Who is in a table does not depend on the schema, the order of rows or columns, or how numbers are
written.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_client.data.features import Feature
from fl_client.data.identity import Members, canonical_row, patient_key
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.errors import DatasetError

A = Schema((Feature("a", 0, 1), Feature("b", 0, 1)), Target("y", 0))
LESS = Schema((Feature("a", 1, 2),), Target("y", 0))
SECRET = b"s" * 32


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def members(path: Path, schema: Schema = A, column: str = "", secret: bytes = SECRET) -> Members:
    found = load(plain(path, column), schema, secret).members
    assert found is not None
    return found


def test_load__without_the_secret__knows_nobody(tmp_path: Path) -> None:
    assert load(plain(table(tmp_path, "id,a,b,y", "1,2,3,1")), A).members is None


@pytest.mark.parametrize("column", ["", "id"])
def test_members__another_schema_or_order_or_way_to_write_numbers__are_the_same(
    tmp_path: Path, column: str
) -> None:
    one = members(table(tmp_path, "id,a,b,y", "x,1,2,1", "z,3,4.5,0"), A, column)
    for lines in (
        ("id,a,b,y", "z,3,4.5,0", "x,1,2,1"),
        ("y,b,a,id", "1, 2.0 ,1e0, x", "0,4.50,3,z "),
    ):
        for schema in (A, LESS):
            again = members(table(tmp_path, *lines), schema, column)
            assert (again.who, again.content) == (one.who, one.content)
    assert members(table(tmp_path, "id,a,b,y", "x,1,2,1", "z,3,4.5,0"), A, column, b"t" * 32) != one


@pytest.mark.parametrize(("how", "ids"), [("text", ["007", "7 "]), ("number", ["7"])])
def test_members__identifier__one_patient_or_two_as_the_owner_says(
    tmp_path: Path, how: str, ids: list[str]
) -> None:
    path = table(tmp_path, "id,a,b,y", "007,1,2,1", " 007,1,2,0", "7,1,2,1")
    said = replace(plain(path, "id"), identifier=how)
    found = load(said, A, SECRET).members
    assert found is not None and found.units == [patient_key(SECRET, one) for one in ids]


@pytest.mark.parametrize("other", ["7", "7.0", "0007"])
def test_members__two_spellings_of_a_number__are_refused_until_the_owner_says(
    tmp_path: Path, other: str
) -> None:
    path = table(tmp_path, "id,a,b,y", "007,1,2,1", "8,1,2,1", f"{other},1,2,0")
    said = rf"t.csv line 4: id='{other}', and '007' in t.csv line 2: one patient or two\?"
    with pytest.raises(DatasetError, match=said):
        load(plain(path, "id"), A, SECRET)


def test_members__equal_rows__are_records_of_their_own(tmp_path: Path) -> None:
    found = members(table(tmp_path, "a,b,y", "1,2,1", "1,2,1", "1,2,0"))
    assert len(set(found.units)) == 3
    fewer = members(table(tmp_path, "a,b,y", "1,2,0", "1,2,1"))
    assert set(fewer.units) < set(found.units)


def test_members__row_that_lacks_a_value__is_known_but_not_held(tmp_path: Path) -> None:
    path = table(tmp_path, "id,a,b,y", "p,1,2,1", "q,1,,1", "p,3,,1", ",1,1,1")
    found = members(path, A, "id")
    assert [found.units[i] for i in np.flatnonzero(found.held)] == [patient_key(SECRET, "p")]
    assert [unit for _, unit in found.rows] == [0, 1, 0]
    assert members(path, LESS, "id").held.tolist() == [True, True]


def test_members__a_cell_of_any_column_changed__is_other_content_of_the_same_patients(
    tmp_path: Path,
) -> None:
    one = members(table(tmp_path, "id,a,b,y", "p,1,2,1"), LESS, "id")
    other = members(table(tmp_path, "id,a,b,y", "p,1,3,1"), LESS, "id")
    assert other.who == one.who and other.content != one.content


def test_without__patient_withdrawn__loses_all_their_records(tmp_path: Path) -> None:
    path = table(tmp_path, "id,a,b,y", "p,1,2,1", "q,3,4,0", "p,5,6,0", "r,7,8,1")
    records = load(plain(path, "id"), A, SECRET)
    left = records.without({patient_key(SECRET, "p")})
    assert left.features.tolist() == [[3, 4], [7, 8]] and left.patients.tolist() == [0, 1]
    assert left.members.who != records.members.who
    assert left.members.content == records.members.content
    whole = load(plain(path), A, SECRET)
    assert whole.without({whole.members.units[3]}).features.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_canonical_row__missing_cells_and_odd_numbers__are_kept_as_they_are() -> None:
    assert canonical_row({"b": "nan", "a": None, "c": "1e999"}) == (
        b'[["a",""],["b","nan"],["c","1e999"]]'
    )
