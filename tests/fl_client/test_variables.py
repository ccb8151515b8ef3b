"""The dictionary of clinical variables: every entry is sane, every unit that is known is told from
the usual one, and what a table's values look like is for its owner alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datahub.cli import app
from fl_client.data.drafts import draft
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.variables import Variable, every, known

UNIT = re.compile(r"[A-Za-z0-9\[\]{}_/%*.]+")
# a usual value in these is a usual one in the unit, too, so that no look can tell them apart
ALIKE = {("bun", "mmol/L"), ("crp", "mg/dL"), ("vitamin_b12", "pmol/L")}


def one_line(variable: Variable) -> str:
    return variable.names[0]


@pytest.mark.parametrize("variable", every(), ids=one_line)
def test_every_variable__is_sane(variable: Variable) -> None:
    assert variable.names and len(variable.source) > 10
    for name in variable.names:
        assert known(name) is variable, "no other has that name"
        assert known(f" {name.upper().replace('_', ' ')} ") is variable
    if variable.levels:
        assert len(set(variable.levels)) == len(variable.levels) >= 2
        assert not variable.unit and not variable.also
        document = {"categories": list(variable.levels)}
    else:
        assert UNIT.fullmatch(variable.unit)
        assert variable.scale > 0
        assert variable.low < variable.centre < variable.high
        assert variable.high - variable.low >= 2 * variable.scale
        assert all(UNIT.fullmatch(unit) and times > 0 for unit, times, _ in variable.also)
        document = {"centre": variable.centre, "scale": variable.scale, "unit": variable.unit}
    target = {"name": "y", "kind": "yes/no"}
    Schema.from_dict({"features": [{"name": variable.names[0], **document}], "target": target})


def test_dictionary__is_as_long_as_it_says_and_knows_what_it_knew() -> None:
    assert 60 <= len(every()) <= 130
    for name in ("trestbps", "kreatinin", "Blutzucker", "HEART RATE", "hb", "plt", "spo2", "k"):
        assert known(name) is not None, name
    assert known("hospnum") is None


@pytest.mark.parametrize(
    ("variable", "unit", "times", "plus"),
    [(v, *one) for v in every() for one in v.also],
    ids=lambda value: one_line(value) if isinstance(value, Variable) else str(value),
)
def test_values_in_another_known_unit__are_doubted(
    variable: Variable, unit: str, times: float, plus: float
) -> None:
    usual = (variable.centre - plus) / times
    said = variable.doubts([usual])
    told = said.startswith("your values look like ")
    assert told != ((variable.names[0], unit) in ALIKE), said
    assert variable.doubts([variable.centre]) == "" == variable.doubts([])


def test_doubts__values_that_nobody_has__are_counted() -> None:
    age = known("age")
    assert age is not None
    said = age.doubts([50.0, 60.0, 999.0])
    assert said == "1 of 3 values are not from 0 to 125 a: another unit, or slips"


def table(path: Path, glucose: list[float], sex: tuple[str, str] = ("M", "W")) -> Path:
    rows = [f"{g},{sex[i % 2]},{i},{'yn'[i % 2]}" for i, g in enumerate(glucose)]
    path.write_text("\n".join(["Blood Glucose,sex,odd,died", *rows]) + "\n")
    return path


def test_draft__values_in_another_unit__the_owner_is_told_and_the_document_is_the_same(
    tmp_path: Path,
) -> None:
    usual, usual_notes = draft(plain(table(tmp_path / "a.csv", [100.0, 120.0, 90.0])), "died")
    other, notes = draft(plain(table(tmp_path / "b.csv", [5.0, 6.1, 4.9])), "died")
    assert usual == other
    glucose = "taken to be in mg/dL"
    assert [note for note in usual_notes if "mmol/L" in note] == []
    (told,) = [note for note in notes if glucose in note]
    assert told.endswith("check the unit; your values look like mmol/L, not mg/dL")
    assert any("which of them is M, W" in note for note in notes)
    assert usual["features"][1]["categories"] == ["female", "male", "other", "unknown"]


def test_draft__a_code_or_a_yes_no_under_a_known_name__follows_the_table(tmp_path: Path) -> None:
    coded, _ = draft(plain(table(tmp_path / "a.csv", [100.0, 90.0], ("1", "2"))), "died")
    assert coded["features"][1]["categories"] == ["female", "male", "other", "unknown"]
    flag, notes = draft(plain(table(tmp_path / "b.csv", [100.0, 90.0], ("0", "1"))), "died")
    assert flag["features"][1] == {"name": "sex", "kind": "yes/no"}
    assert "sex: say what yes means" in notes


def test_draft_schema__on_the_command_line__notes_go_where_the_document_does_not(
    tmp_path: Path,
) -> None:
    file = table(tmp_path / "a.csv", [5.0, 6.1, 4.9])
    words = ["node", "draft-schema", "--file", str(file), "--target", "died"]
    answer = CliRunner().invoke(app, words)
    assert "look like mmol/L" in answer.stderr and "look like" not in answer.stdout
    both = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert both["schema"] == json.loads(answer.stdout)
    assert both["notes"] == answer.stderr.splitlines()


def test_describe__as_json__is_the_source_that_the_text_is(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", [100.0])
    said = CliRunner().invoke(app, ["node", "describe", str(file), "--json"])
    found = json.loads(said.stdout)
    assert found["source"]["separator"] == "," and found["source"]["file"] == str(file)
    assert found["patients"] == {"columns": []}
