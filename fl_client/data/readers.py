"""Read the rows of a source, of whatever kind, as text: one mapping of column -> cell a row, ""
where there is nothing. Knows nothing of schemas.

A number of a typed table (Parquet, Excel, SQL) is written in its shortest exact form, 7 and not
7.0, so that the same patient is the same text in every kind of table. A query is only read with,
and whatever it does is rolled back.
"""

from __future__ import annotations

import csv
import gzip
import math
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from datatokens.errors import TermsError
from datatokens.wire import parse
from fl_client.data.sources import FOLDER, SQL, Source
from fl_client.errors import DatasetError, SourceAway

Row = Mapping[str, str]
MAX_ROWS = 10_000_000
MOST_COLUMNS = 10_000
AT_ONCE = 10_000
CONNECT_S = 10  # for a database that says nothing; the driver's own wait is minutes, or for ever
QUERY_S = 900  # for one that waits for a lock: a node's start must not wait for ever
# kind -> what a row's number counts
COUNTS = {"csv": "line", "json-lines": "line", "excel": "row", SQL: "row"}


def rows(source: Source) -> Iterator[tuple[str, Row]]:
    """(where, cells) of every row; `where` names file and line. Raises DatasetError in one sentence
    for whatever cannot be read, of whatever kind.
    """
    read = {
        "csv": _csv,
        "excel": _excel,
        "npz": _npz,
        "parquet": _parquet,
        "json-lines": _json_lines,
        SQL: _sql,
        FOLDER: _folder,
    }[source.kind]
    counted = COUNTS.get(source.kind, "record")
    try:
        for many, (number, cells) in enumerate(read(source), 1):
            if many > MAX_ROWS:
                raise DatasetError(f"{source.where}: more than {MAX_ROWS} rows")
            where = f"{source.where} {counted} {number}"
            yield where, {name: cell_text(value, where) for name, value in cells}
    except DatasetError:
        raise
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{source.where}: byte {error.start} is not {source.encoding}; say source.encoding "
            "(datahub node describe proposes one)"
        ) from error
    except Exception as error:  # a reader's own, of many kinds: a hospital's file is anything
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        kind = {"csv": "CSV"}.get(source.kind, source.kind)
        # a share that fails says nothing of what is on it; a damaged .gz has no number of an error
        away = isinstance(error, OSError) and error.errno is not None
        raise (SourceAway if away else DatasetError)(
            f"{source.file or source.where}: cannot be read as a {kind} file: {said}"
        ) from error


def cell_text(value: object, where: str) -> str:
    """A cell as text without blanks and invisible characters around it. Raises DatasetError."""
    if isinstance(value, str):
        return clean(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _shortest(value)
    if isinstance(value, date):
        return value.isoformat()
    raise DatasetError(f"{where}: a cell of type {type(value).__name__} is not understood")


def clean(value: str) -> str:
    """Text without the blanks, marks and control characters around it."""
    if value.isascii() and value.isprintable():
        return value.strip()
    start, end = 0, len(value)
    while start < end and _invisible(value[start]):
        start += 1
    while end > start and _invisible(value[end - 1]):
        end -= 1
    return value[start:end]


def _invisible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def _shortest(value: float | Decimal) -> str:
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return str(int(value)) if value == int(value) else repr(value)


def check_header(names: Sequence[str], where: str) -> list[str]:
    """Names of columns, cleaned. Raises DatasetError for one that is there twice, or too many."""
    found = [clean(name) for name in names]
    if len(found) > MOST_COLUMNS:
        raise DatasetError(f"{where}: {len(found)} columns; {MOST_COLUMNS} are the most")
    twice = [name for name, times in Counter(found).items() if times > 1]
    if twice:
        raise DatasetError(
            f"{where}: the column {twice[0]!r} is there twice; rename one, or, if this "
            "is no row of names, say names = [...] under [source] of a source file"
        )
    return found


def opened(file: Path, encoding: str) -> TextIO:
    """A text file, unpacked where its name ends in .gz; a byte-order mark is no text."""
    with_mark = {"utf-8": "utf-8-sig"}.get(encoding.lower(), encoding)
    try:
        if file.name.endswith(".gz"):
            return gzip.open(file, "rt", encoding=with_mark, newline="")
        return file.open(encoding=with_mark, newline="")
    except LookupError as error:
        raise DatasetError(f"source.encoding={encoding!r} is not known") from error


Numbered = Iterator[tuple[int, Iterable[tuple[str, object]]]]


def _file(source: Source) -> Path:
    assert source.file is not None
    return source.file


def _csv(source: Source) -> Numbered:
    # a cell of more than 128 KiB is refused by the reader: an unclosed quote swallows no more
    with opened(_file(source), source.encoding) as file:
        yield from _lines(source, file)


def _lines(source: Source, file: TextIO) -> Numbered:
    reader = csv.reader(file, delimiter=source.separator, quotechar=source.quote, strict=True)
    names: list[str] | None = list(source.names) or None
    if names:
        names = check_header(names, "source.names")
    began = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DatasetError(
                f"{source.where} line {began}: a quote {source.quote} is not closed, or stands "
                f"where none may ({error})"
            ) from error
        if cells is None:
            break
        if not cells:
            pass  # an empty line
        elif names is None and began == 1 and clean("".join(cells)).startswith("sep="):
            pass  # Excel's word to itself
        elif names is None:
            names = check_header(cells, f"{source.where} line {began}")
        elif len(cells) != len(names):
            raise DatasetError(
                f"{source.where} line {began}: {len(cells)} cells, the header has {len(names)}"
            )
        else:
            yield began, zip(names, cells, strict=True)
        began = reader.line_num + 1
    if names is None:
        raise DatasetError(f"{source.where}: there is no header row")


def _excel(source: Source) -> Numbered:
    from openpyxl import load_workbook

    book, written = (
        load_workbook(_file(source), read_only=True, data_only=values, keep_links=False)
        for values in (True, False)
    )
    try:
        if not source.sheet and len(book.sheetnames) != 1:
            raise DatasetError(
                f"{source.where} has sheets {', '.join(book.sheetnames)}: say source.sheet"
            )
        if source.sheet and source.sheet not in book.sheetnames:
            raise DatasetError(
                f"{source.where} has no sheet {source.sheet!r}; there are "
                f"{', '.join(book.sheetnames)}"
            )
        name = source.sheet or book.sheetnames[0]
        names: list[str] | None = None
        both = zip(*(one[name].iter_rows(values_only=True) for one in (book, written)), strict=True)
        for number, (cells, formulas) in enumerate(both, 1):
            # what a program wrote and no spreadsheet has worked out yet must not count as missing
            for cell, formula in zip(cells, formulas, strict=True):
                if cell is None and isinstance(formula, str) and formula.startswith("="):
                    raise DatasetError(
                        f"{source.where} row {number}: the formula {formula[:80]!r} has no value "
                        "yet: open the file in a spreadsheet program and save it"
                    )
            if all(cell is None for cell in cells):
                continue
            if names is None:
                names = check_header([str(c or "") for c in cells], f"{source.where} row {number}")
            elif any(cell is not None for cell in cells[len(names) :]):
                raise DatasetError(
                    f"{source.where} row {number}: {len(cells)} cells, the header has {len(names)}"
                )
            else:  # a row may end where its last filled cell does
                yield number, zip_longest(names, cells[: len(names)])
        if names is None:
            raise DatasetError(f"{source.where}: there is no header row")
    finally:
        book.close()
        written.close()


def _npz(source: Source) -> Numbered:
    with zipfile.ZipFile(_file(source)) as arrays:
        columns = {
            name.removesuffix(".npy"): np.lib.format.read_array(arrays.open(name))  # no pickles
            for name in arrays.namelist()
        }
    for name, column in columns.items():
        if column.ndim != 1 or len(column) != len(next(iter(columns.values()))):
            raise DatasetError(
                f"{source.where}: {name} of shape {column.shape} must be one cell a record"
            )
    names = check_header(list(columns), source.where)
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        said = (c.item() if isinstance(c, np.generic) else c for c in cells)
        yield number, zip(names, said, strict=True)


def _folder(source: Source) -> Numbered:
    """Every file in the folder and below, by name: what it is, and the folder that it is in."""
    within = _file(source)
    if not within.is_dir():
        raise DatasetError(f"{within} is not a folder")
    files = sorted(p for p in within.rglob("*") if p.is_file() and not p.name.startswith("."))
    for number, path in enumerate(files, 1):
        name = str(path.relative_to(within))
        yield number, (("picture", name), ("folder", path.parent.name))


def _json_lines(source: Source) -> Numbered:
    """Objects, one a line; a name that a line lacks is missing there. Parsed exactly: a reader that
    infers types would round long identifiers.
    """
    names: dict[str, None] = {}
    for _, found in _objects(source):
        names.update(dict.fromkeys(found))
    check_header(list(names), source.where)
    for number, found in _objects(source):
        yield number, ((clean(name), found.get(name)) for name in names)


def _objects(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with opened(_file(source), source.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{source.where} line {number}"
            try:
                found = parse(line.encode())
            except TermsError as error:
                raise DatasetError(f"{where}: {error}") from error
            if not isinstance(found, dict):
                raise DatasetError(f"{where}: must be an object, one a line")
            yield number, found


def _parquet(source: Source) -> Numbered:
    _file(source).open("rb").close()  # DuckDB does not say whether a file is away or is none
    with quiet_duckdb() as connection:
        found = connection.execute("SELECT * FROM read_parquet(?)", [literal(_file(source))])
        names = check_header([column[0] for column in found.description], source.where)
        yield from _numbered(names, found.fetchmany)


def quiet_duckdb() -> Any:
    """A DuckDB in memory that fetches no extension from anywhere."""
    import duckdb

    quiet: dict[str, Any] = {
        f"auto{what}_known_extensions": "false" for what in ("install", "load")
    }
    return duckdb.connect(":memory:", config=quiet)


def literal(file: Path) -> str:
    """A file's name as DuckDB takes it for that file alone: it reads *, ? and [ as patterns."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(file))


def _numbered(names: Sequence[str], fetch: Any) -> Numbered:
    number = 0
    while many := fetch(AT_ONCE):
        for cells in many:
            number += 1
            yield number, zip(names, cells, strict=True)


def _sql(source: Source) -> Numbered:
    import sqlalchemy

    query = source.query.strip().rstrip(";")
    if ";" in query or not query.lower().startswith(("select", "with")):
        raise DatasetError("source.query must be one SELECT (or WITH ... SELECT)")
    url = sqlalchemy.engine.make_url(source.url)
    if url.get_backend_name() == "sqlite":  # which would make a file that is not there
        url = url.set(database=f"file:{url.database}").update_query_dict(
            {"mode": "ro", "uri": "true"}
        )
    if source.password_file:
        url = url.set(password=source.password_file.read_text().strip())
    patience: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        limit = f"-c statement_timeout={1000 * QUERY_S}"
        patience = {"connect_timeout": CONNECT_S, "options": limit}
    engine = sqlalchemy.create_engine(
        url, poolclass=sqlalchemy.pool.NullPool, connect_args=patience
    )
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            streamed = connection.execution_options(stream_results=True, max_row_buffer=AT_ONCE)
            found = streamed.execute(sqlalchemy.text(query.replace(":", "\\:")))
            names = check_header(list(found.keys()), "the query")
            yield from _numbered(names, found.fetchmany)
            connection.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).splitlines()[0][:300]
        raise SourceAway(f"the database answers the query: {said}") from error
    finally:
        engine.dispose()
