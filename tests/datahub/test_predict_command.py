"""`datahub model predict`: a saved folder and a table of original columns, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datahub.buyer.results import Result
from datahub.shell.model import model
from fl_client.errors import DatasetError
from fl_server.errors import ResultError
from tests.datahub.made_results import AGE, SEX, result_of, schema_of

STAGE = {"name": "stage", "kind": "classes", "levels": ["early", "late"]}


@pytest.fixture
def result(tmp_path: Path) -> Result:
    made = result_of(schema_of(AGE, SEX, target=STAGE))
    made.save(tmp_path / "model")
    (tmp_path / "t.csv").write_text("id,sex,age\n1,male,61\n2,female,\n3,female,44.5\n")
    return made


def run(*arguments: str | Path) -> tuple[str, str]:
    ended = CliRunner().invoke(model, ["predict", *map(str, arguments)])
    if ended.exception:
        raise ended.exception
    return ended.stdout, ended.stderr


def test_predict__a_csv__answers_record_by_record(result: Result, tmp_path: Path) -> None:
    table = {"age": [61, 44.5], "sex": ["male", "female"]}
    (early, early_too), (late, _) = result.predict(table).values()
    printed, complained = run(tmp_path / "model", tmp_path / "t.csv")
    head, *lines = csv.reader(printed.splitlines())
    assert head == ["early", "late"] and len(lines) == 3
    assert lines[0] == [f"{early:.6g}", f"{late:.6g}"] and lines[1] == ["", ""]
    assert "1 of 3 records have no answer: they lack age" in " ".join(complained.split())
    out = tmp_path / "answers.csv"
    printed_again, _ = run(tmp_path / "model", tmp_path / "t.csv", "--out", out)
    assert out.read_text() == printed and "3 records, early, late" in printed_again
    said = json.loads(run(tmp_path / "model", tmp_path / "t.csv", "--json")[0])
    assert said["records"] == 3 and said["answers"]["early"] == [early, None, early_too]
    said = json.loads(run(tmp_path / "model", tmp_path / "t.csv", "--json", "--out", out)[0])
    assert said == {"records": 3, "file": str(out)}


def test_predict__scaled_columns_or_a_wrong_table__are_said(result: Result, tmp_path: Path) -> None:
    scaled = tmp_path / "scaled.csv"
    scaled.write_text("sex,age\n" + "male,0.3\nfemale,-1.2\n" * 15)
    _, complained = run(tmp_path / "model", scaled)
    assert "column age: 30 of 30 values (100%) are not from 10 to 90 a" in complained
    scaled.write_text("sex,age\nM,50\n")
    with pytest.raises(DatasetError, match=r"scaled.csv line 2: sex=M is not one of male, female"):
        run(tmp_path / "model", scaled)
    scaled.write_text("sex\nmale\n")
    with pytest.raises(DatasetError, match=r"the table lacks the column\(s\) age; it has sex"):
        run(tmp_path / "model", scaled)
    with pytest.raises(ResultError, match="holds no result"):
        run(tmp_path, tmp_path / "t.csv")
