"""Tables as hospitals have them: every kind becomes the same records, and what does not parse is
named by file, line, column and value.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_client.data import readers
from fl_client.data.cells import as_number
from fl_client.data.dialects import describe
from fl_client.data.readers import rows
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source, plain, read_source
from fl_client.data.tables import Records, load
from fl_client.errors import DatasetError, SourceAway

SECRET = b"s" * 32
SCHEMA = Schema.from_dict(
    {
        "features": [
            {"name": "age", "centre": 50, "scale": 10, "unit": "a"},
            {"name": "sex", "categories": ["male", "female"], "other": True},
            {"name": "smoker", "kind": "yes/no", "missing": {"value": "no"}},
            {"name": "seen", "kind": "date", "reference": "2000-01-01", "centre": 0, "scale": 365},
        ],
        "target": {"name": "ill", "kind": "yes/no"},
    }
)
ROWS: list[dict[str, Any]] = [
    {"id": 1, "age": 60.5, "sex": "male", "smoker": True, "seen": "2001-01-01", "ill": 1},
    {"id": 2, "age": 40.0, "sex": "female", "smoker": False, "seen": "2000-01-02", "ill": 0},
    {"id": 1, "age": 61.5, "sex": "male", "smoker": None, "seen": "2000-01-01", "ill": 1},
    {"id": 3, "age": None, "sex": "x", "smoker": False, "seen": "2000-01-01", "ill": 0},
]
PATIENTS = {"patients": {"columns": ["id"]}}


def text(tmp_path: Path, content: str | bytes, name: str = "t.csv", **said: Any) -> Source:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Source.from_dict({"source": {"file": str(path), **said}})


def written_csv(folder: Path) -> dict[str, Any]:
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in ROWS]
    (folder / "t.csv").write_text("\n".join([",".join(ROWS[0]), *lines]) + "\n")
    return {"file": "t.csv"}


def written_german(folder: Path) -> dict[str, Any]:
    lines = [
        ";".join("" if v is None else str(v).replace(".", ",") for v in row.values())
        for row in ROWS
    ]
    (folder / "t.tsv").write_bytes(
        "\r\n".join(["sep=;", ";".join(ROWS[0]), *lines, ""]).encode("utf-16")
    )
    return {"file": "t.tsv", "separator": ";", "decimal": ",", "encoding": "utf-16"}


def written_parquet(folder: Path) -> dict[str, Any]:
    import duckdb

    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    with duckdb.connect() as db:
        db.execute(
            f"COPY (SELECT * FROM read_ndjson('{folder}/rows.jsonl')) TO '{folder}/t.parquet'"
        )
    return {"file": "t.parquet"}


def written_json_lines(folder: Path) -> dict[str, Any]:
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return {"file": "t.jsonl"}


def written_excel(folder: Path) -> dict[str, Any]:
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(list(ROWS[0]))
    for row in ROWS:
        book.active.append(list(row.values()))
    book.save(folder / "t.xlsx")
    return {"file": "t.xlsx"}


def written_excel_of_rows_as_long_as_what_is_in_them(folder: Path) -> dict[str, Any]:
    """As programs write them that do not say how wide a sheet is."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    names = sorted(ROWS[0], key=lambda name: name == "smoker")  # which one row lacks, at the end
    sheet.append(names)
    for row in ROWS:
        cells = [row[name] for name in names]
        sheet.append(cells if cells[-1] is not None else cells[:-1])
    book.save(folder / "rows.xlsx")
    return {"file": "rows.xlsx"}


def written_sqlite(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(folder / "t.sqlite") as db:
        db.execute("create table t (id, age, sex, smoker, seen, ill)")
        db.executemany("insert into t values (?,?,?,?,?,?)", [tuple(r.values()) for r in ROWS])
    db.close()
    return {"url": f"sqlite:///{folder}/t.sqlite", "query": "SELECT * FROM t;"}


WRITTEN = [
    written_csv,
    written_german,
    written_parquet,
    written_json_lines,
    written_excel,
    written_excel_of_rows_as_long_as_what_is_in_them,
    written_sqlite,
]


def of(folder: Path, said: dict[str, Any]) -> Records:
    return load(Source.from_dict({"source": said, **PATIENTS}, folder), SCHEMA, SECRET)


@pytest.mark.parametrize("written", WRITTEN, ids=lambda f: f.__name__.removeprefix("written_"))
def test_load__the_same_rows_in_every_kind_of_table__are_the_same_records(
    tmp_path: Path, written: Any
) -> None:
    found = of(tmp_path, written(tmp_path))
    assert found.features == pytest.approx(
        np.array(
            # age, female, other, smoker, its absence, years
            [
                [1.05, 0, 0, 1, 0, 366 / 365],
                [-1, 1, 0, -1, 0, 1 / 365],
                [1.15, 0, 0, -1, 1, 0],
            ]
        )
    )
    assert found.targets.tolist() == [1, 0, 1]
    assert found.patients is not None and found.patients.tolist() == [0, 1, 0]
    assert (found.dropped, found.lacking) == (1, {"age": 1})
    assert SCHEMA.width == found.features.shape[1]
    # and the same people, whatever the table: one history
    members = of(tmp_path, written_csv(tmp_path)).members
    assert found.members is not None and members is not None
    assert found.members.who == members.who


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1, "y": 1}\n[2]\n', "t.jsonl line 2: must be an object"),
        ('{"a": 1, "y": 1}\n{"a": 2,\n', "t.jsonl line 2: not JSON"),
        ('{"a": NaN, "y": 1}\n', "t.jsonl line 1: NaN is not allowed"),
        ('{"a": [1], "y": 1}\n', "t.jsonl line 1: a cell of type list is not understood"),
        ('{"a": 1, " a": 1}\n', "the column 'a' is there twice"),
        ("[" * 100_000, "not JSON of at most"),
    ],
)
def test_json_lines__what_is_wrong__is_named_by_line(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        load(text(tmp_path, content, "t.jsonl"), NUMBER)


def test_excel__a_formula_that_nothing_has_worked_out__is_named(tmp_path: Path) -> None:
    """Once, it was missing, and the record was left out without a word."""
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(list(ROWS[0]))
    book.active.append([*list(ROWS[0].values())[:-1], "=1+0"])
    book.save(tmp_path / "t.xlsx")
    source = Source.from_dict({"source": {"file": str(tmp_path / "t.xlsx")}})
    with pytest.raises(DatasetError, match=r"row 2: the formula '=1\+0' has no value yet: open"):
        load(source, SCHEMA)


def test_json_lines__long_identifiers_and_left_out_names__are_exact(tmp_path: Path) -> None:
    long = 12345678901234567890123
    lines = [{"id": long, "a": 1, "y": 1}, {"id": long + 1, "y": 0}, {"y": 1, "a": 2, "id": "7"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = load(
        Source.from_dict({"source": {"file": str(tmp_path / "t.jsonl")}, **PATIENTS}), NUMBER
    )
    assert found.persons == 2 and found.lacking == {"a": 1}


def test_npz__one_array_a_column__is_a_table(tmp_path: Path) -> None:
    columns = {name: np.array([row[name] for row in ROWS[:2]]) for name in ROWS[0]}
    np.savez(tmp_path / "t.npz", **columns)
    found = of(tmp_path, {"file": "t.npz"})
    assert found.targets.tolist() == [1, 0] and found.features[0, 0] == pytest.approx(1.05)
    np.savez(tmp_path / "t.npz", age=np.zeros((2, 2)))
    with pytest.raises(DatasetError, match=r"age of shape \(2, 2\) must be one cell a record"):
        of(tmp_path, {"file": "t.npz"})


NUMBER = Schema.from_dict(
    {
        "features": [{"name": "a", "centre": 0, "scale": 1}],
        "target": {"name": "y", "positive_above": 0},
    }
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('a,y\n1,1\n"2,1\n3,0\n4,1\n', 't.csv line 3: a quote " is not closed'),
        ('a,y\n1,1\n2"x,1\n', "t.csv line 3: a='2\"x' is not a number"),
        ('a,y\n"1"x,1\n', 't.csv line 2: a quote " is not closed, or stands where none may'),
        ("a,a,y\n1,2,1\n", "the column 'a' is there twice"),
        ("1,1,0\n2,3,1\n", "if this is no row of names, say names = "),
        ("a,y\n1,1\n2,1,9\n", "t.csv line 3: 3 cells, the header has 2"),
        ("a,y\n1,1\n2\n", "t.csv line 3: 1 cells, the header has 2"),
        ("a,y\n0x1A,1\n", "t.csv line 2: a='0x1A' is not a number"),
        ("a,y\n1_000,1\n", "a='1_000' is not a number"),
        ("a,y\n1e999,1\n", "a='1e999' is not a number"),
        ("a,y\n1,5,1\n", "3 cells, the header has 2"),
        ("a,y\ninf,1\n", "a='inf' is not a number"),
        ('a,y\n"1\n2",1\n', r"a='1\\n2' is not a number"),
        ("", "there is no header row"),
        ("b,y\n1,1\n", r"lacks the column\(s\) a; it has b, y"),
        ("a,y\nx,1\ny,1\nz,1\nw,1\n", "line 2: a='x' .*; t.csv line 3: .*; t.csv line 4"),
        (b"a,y\n\xff,1\n", "byte 4 is not utf-8; say source.encoding"),
        (b"\xff\xfea\x00,\x00", "byte 0 is not utf-8"),
        ("a,y\n" + "1" * 200_000 + ",1\n", "is not closed|field larger"),
    ],
)
def test_csv__what_does_not_parse__is_named_by_line_and_nothing_is_taken(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        load(text(tmp_path, content), NUMBER)


def test_csv__embedded_newlines_blank_lines_and_invisible_characters__are_understood(
    tmp_path: Path,
) -> None:
    content = '\ufeffa,note,y\n"1.5","one\ntwo",1\n\n\u200b2\xa0,x,0\n oops,x,1\n'
    with pytest.raises(DatasetError, match="line 6: a='oops'"):
        load(text(tmp_path, content), NUMBER)
    found = load(text(tmp_path, content.replace("oops", "3")), NUMBER)
    assert found.features[:, 0].tolist() == [1.5, 2, 3]


@pytest.mark.parametrize(
    ("cell", "decimal", "thousands", "value"),
    [
        ("1,5", ",", "", 1.5),
        ("1.5", ",", "", None),
        ("1,5", ".", "", None),
        ("1.234,5", ",", ".", 1234.5),
        ("1,234,567.5", ".", ",", 1234567.5),
        ("12,34", ".", ",", None),
        ("1,2345", ".", ",", None),
        ("-1\u202f000", ",", "\u202f", -1000.0),
        ("٣", ".", "", None),
        (".5e-2", ".", "", 0.005),
        ("5.", ".", "", 5.0),
        ("", ".", "", None),
    ],
)
def test_number__decimal_sign_and_thousands__as_the_source_says_or_not_at_all(
    cell: str, decimal: str, thousands: str, value: float | None
) -> None:
    assert as_number(cell, decimal, thousands) == value


@given(st.binary(max_size=300))
def test_csv__any_bytes__are_records_or_a_sentence(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("t.csv", "t.jsonl", "t.parquet", "t.xlsx", "t.npz", "t.csv.gz"):
        source = text(folder, b"a,y\n" * (name == "t.csv") + content, name)
        try:
            load(source, NUMBER, SECRET)
        except DatasetError as error:
            assert "\n" not in str(error)


# -- databases -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("DELETE FROM t", "must be one SELECT"),
        ("SELECT 1; DELETE FROM t", "must be one SELECT"),
        ("SELECT * FROM absent", "the database answers the query: no such table: absent"),
        ("WITH x AS (SELECT 1) DELETE FROM t", "readonly"),
    ],
)
def test_sql__anything_but_a_look__is_refused_and_changes_nothing(
    tmp_path: Path, query: str, said: str
) -> None:
    given_ = written_sqlite(tmp_path) | {"query": query}
    with pytest.raises(DatasetError, match=said):
        of(tmp_path, given_)
    with sqlite3.connect(tmp_path / "t.sqlite") as db:
        assert db.execute("select count(*) from t").fetchone() == (4,)
    db.close()


def test_sql__a_file_that_is_not_there__is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the database answers the query: unable to open"):
        of(tmp_path, {"url": f"sqlite:///{tmp_path}/none.sqlite", "query": "SELECT 1"})
    assert not (tmp_path / "none.sqlite").exists()


OMOP = """
SELECT p.person_id AS id, 2026 - p.year_of_birth AS age,
       CASE p.gender_concept_id WHEN 8507 THEN 'male' WHEN 8532 THEN 'female' END AS sex,
       EXISTS (SELECT 1 FROM condition_occurrence c
               WHERE c.person_id = p.person_id AND c.condition_concept_id = 201826) AS ill,
       0 AS smoker, '2000-01-01' AS seen
FROM person p
WHERE EXISTS (SELECT 1 FROM visit_occurrence v
              WHERE v.person_id = p.person_id AND v.visit_start_date >= '2024-01-01')
ORDER BY p.person_id
"""


def test_sql__a_cohort_of_an_omop_database__is_a_table(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "omop.sqlite") as db:
        db.executescript(
            "create table person (person_id, year_of_birth, gender_concept_id);"
            "create table condition_occurrence (person_id, condition_concept_id);"
            "create table visit_occurrence (person_id, visit_start_date);"
            "insert into person values (1, 1966, 8507), (2, 1986, 8532), (3, 1990, 8532);"
            "insert into condition_occurrence values (2, 201826), (1, 4), (3, 201826);"
            "insert into visit_occurrence values (1, '2024-05-01'), (2, '2025-01-01');"
        )
    db.close()
    found = of(tmp_path, {"url": f"sqlite:///{tmp_path}/omop.sqlite", "query": OMOP})
    assert found.targets.tolist() == [0, 1] and found.persons == 2
    assert found.features[:, :2].tolist() == [[1, 0], [-1, 1]]


# -- what a source says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"source": {}}, "say file, or url and query"),
        ({"source": {"file": "t.doc"}}, "t.doc: the name must end in one of"),
        ({"source": {"file": "t.csv", "seperator": ";"}}, "'seperator' is not known; there are"),
        ({"source": {"file": "t.csv", "separator": ""}}, "separator='' must be one character"),
        ({"source": {"file": "t.csv", "decimal": ";"}}, "decimal=';' must be . or ,"),
        ({"source": {"file": "t.csv", "thousands": "."}}, "thousands='.' must be one character"),
        ({"source": {"file": "t.csv", "encoding": 8}}, "source.encoding must be text"),
        ({"source": {"file": "t.csv", "url": "x"}}, "say file, or url and query, and not both"),
        ({"source": {"file": "t.csv"}, "patients": {"columns": "id"}}, "must be a list of words"),
        ({"source": {"file": "t.csv"}, "patients": {"identifier": "x"}}, "must be text or number"),
        ({"source": {"file": "t.csv"}, "columns": {"a": {"levles": {}}}}, "'levles' is not known"),
        ({"source": {"file": "t.csv"}, "columns": {"a": "b"}}, "must be a table"),
        ({"sauce": {}}, "'sauce' is not known"),
    ],
)
def test_source__what_is_wrong__is_named(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        Source.from_dict(said)


def test_source__as_json_and_back__is_the_same(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        '[source]\nfile = "t.csv.gz"\nseparator = ";"\nnames = ["a", "y"]\n'
        '[patients]\ncolumns = ["ward", "id"]\nidentifier = "number"\n'
        '[columns.age]\ncolumn = "ALTER"\nmissing = ["-1"]\n[columns.sex]\nlevels = {M = "male"}\n'
    )
    made = read_source(tmp_path / "s.toml")
    assert made.file == tmp_path / "t.csv.gz" and made.column("sex").column == "sex"
    assert Source.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_columns__ten_hospitals_ten_names__become_one_schema(tmp_path: Path) -> None:
    content = (
        "ALTER;GESCHLECHT;RAUCHER;DATUM;KRANK\n61;W;j;01.01.2000;ja\n39;-9;n;02.01.2000;nein\n"
    )
    made = text(tmp_path, content, separator=";")
    made = Source.from_dict(
        made.as_dict()
        | {
            "columns": {
                "age": {"column": "ALTER"},
                "sex": {"column": "GESCHLECHT", "levels": {"W": "female"}, "missing": ["-9"]},
                "smoker": {"column": "RAUCHER", "levels": {"j": "yes", "n": "no"}},
                "seen": {"column": "DATUM", "format": "%d.%m.%Y"},
                "ill": {"column": "KRANK", "levels": {"ja": "yes", "nein": "no"}},
            }
        }
    )
    found = load(made, SCHEMA)
    assert found.features == pytest.approx(np.array([[1.1, 1, 0, 1, 0, 0]]))
    assert found.lacking == {"sex": 1}
    with pytest.raises(DatasetError, match=r"\[columns.age\]: the schema has no column"):
        load(made, NUMBER)
    wrong = replace(made, columns={**made.columns, "ill": made.columns["smoker"]})
    with pytest.raises(DatasetError, match=r"DATUM='01.01.2000' is not a date of the form YYYY"):
        load(replace(wrong, columns={**wrong.columns, "seen": plain_column("DATUM")}), SCHEMA)


def plain_column(name: str) -> Any:
    return Source.from_dict(
        {"source": {"file": "t.csv"}, "columns": {"x": {"column": name}}}
    ).columns["x"]


def test_several_identifier_columns__are_one_patient_together(tmp_path: Path) -> None:
    made = replace(
        text(tmp_path, "ward,id,a,y\n1,1,0,1\n1,1,2,1\n2,1,1,0\n,1,1,0\n"), patients=("ward", "id")
    )
    found = load(made, NUMBER, SECRET)
    assert found.patients is not None and found.patients.tolist() == [0, 0, 1]
    assert found.lacking == {"(who it is)": 1}


# -- what is proposed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        ("a;b\n1,5;Käse\n2,5;x\n", "cp1252", ("cp1252", ";", ",")),
        ("a\tb\n1.5\tx\n", "utf-16", ("utf-16", "\t", ".")),
        ("a,b\n1.5,Käse\n", "utf-8", ("utf-8", ",", ".")),
        ('a,b\n1.5,"x, or ""y"""\n2.5,z\n', "utf-8", ("utf-8", ",", ".")),
        ("sep=|\na|b\n1|2\n", "utf-8", ("utf-8", "|", ".")),
    ],
)
def test_describe__how_a_file_is_written__is_proposed_and_reads(
    tmp_path: Path, content: str, encoding: str, said: tuple[str, ...]
) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode(encoding))
    proposed = describe(tmp_path / "t.csv")
    (tmp_path / "t.toml").write_text(proposed, encoding="utf-8")
    made = read_source(tmp_path / "t.toml")
    assert (made.encoding, made.separator, made.decimal) == said
    assert [list(row) for _, row in rows(made)] and '# columns: ["a", "b"]' in proposed
    assert ("look at the letters" in proposed) == (encoding == "cp1252")


def test_plain__a_file_of_unknown_kind__is_named() -> None:
    with pytest.raises(DatasetError, match=r"t.doc: the name must end in one of .csv"):
        plain(Path("t.doc"))


def test_sql__a_database_that_accepts_and_says_nothing__is_away_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, a node's start waited for it, and with it every dataset that has another source."""
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    monkeypatch.setattr(readers, "CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://reader@127.0.0.1:{silent.getsockname()[1]}/ward"
        began = time.monotonic()
        with pytest.raises(SourceAway, match="the database answers the query: "):
            list(rows(Source("sql", url=url, query="select 1")))
    assert time.monotonic() - began < 30
