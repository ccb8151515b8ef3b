"""What a hospital does with a table before it lists it: see how it is written, draft a schema, and
see what every column would become. Nothing leaves and nothing is charged: what these commands
print is for the owner alone. Parses and prints only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datatokens.errors import TermsError
from datatokens.terminal import Terminal
from datatokens.wire import parse
from fl_client.data import dialects, drafts
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source, plain, read_source
from fl_client.data.tables import load
from fl_client.errors import ConfigError, DatasetError

console = Terminal()

TableFile = Annotated[
    Path | None,
    typer.Option("--file", help="The table: CSV with a header row, Parquet, Excel, JSON lines."),
]
SourceFile = Annotated[
    Path | None,
    typer.Option("--source", help="TOML file that says how the table is written, or the query."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given_source(file: Path | None, source: Path | None, patient_column: str) -> Source:
    """The table that an owner names by one of two options. Raises ConfigError or DatasetError."""
    if (file is None) == (source is None):
        raise ConfigError("say --file TABLE or --source TABLE.toml, and not both")
    if file is not None:
        return plain(file.resolve(), patient_column)
    if patient_column:
        raise ConfigError(
            f"patient_column={patient_column!r} goes with --file; of a source, [patients] columns "
            "says it"
        )
    assert source is not None
    return read_source(source)


def read_schema(path: Path) -> Schema:
    """The schema in a JSON file. Raises DatasetError."""
    try:
        return Schema.from_dict(parse(path.read_bytes()))
    except (OSError, TermsError) as error:
        raise DatasetError(f"schema: {path} is not a readable JSON file: {error}") from error


def describe(
    file: Annotated[Path, typer.Argument(help="The table.")],
) -> None:
    """Say how a table seems to be written, as a source's TOML file to read, correct and keep."""
    typer.echo(dialects.describe(file), nl=False)


def draft_schema(
    file: TableFile = None,
    source: SourceFile = None,
    target: Annotated[str, typer.Option(help="The column that is to be learned.")] = "",
) -> None:
    """Propose a schema (JSON) from names and types. Its ranges must come from public knowledge."""
    proposed, notes = drafts.draft(given_source(file, source, ""), target)
    typer.echo(json.dumps(proposed, indent=2, ensure_ascii=False))
    for note in notes:
        typer.echo(note, err=True)


def check(
    schema: Annotated[Path, typer.Option(help="Schema JSON.")],
    file: TableFile = None,
    source: SourceFile = None,
    patient_column: Annotated[
        str, typer.Option(help="With --file: the column that tells patients apart.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what a table becomes under a schema: to you alone, nothing is listed."""
    parsed = read_schema(schema)
    table = given_source(file, source, patient_column)
    found = drafts.becomes(load(table, parsed), parsed)
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print_what_it_becomes(found, parsed)


def _print_what_it_becomes(found: dict[str, Any], schema: Schema) -> None:
    console.print(
        f"{found['records']} records of {found['persons']} "
        f"{'patients' if found['by_patient'] else 'persons (each record is one)'}; "
        f"{found['dropped']} are left out",
        highlight=False,
    )
    for name, many in found["lacking"].items():
        console.print(f"  {many} lack {name}", highlight=False)
    console.print(
        f"{schema.target.name}: {found['positive']} yes, {found['records'] - found['positive']} no",
        highlight=False,
    )
    if found["inputs"]:
        console.print(_inputs(found["inputs"]))
    console.print("this is for you alone: nothing was listed and nothing has left", soft_wrap=True)


def _inputs(lines: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, header_style="bold")
    for heading in ("model input", "mean", "lowest", "highest", "clipped"):
        shown.add_column(heading, justify="left" if heading == "model input" else "right")
    for line in lines:
        shown.add_row(
            line["input"],
            *(f"{line[name]:.3g}" for name in ("mean", "low", "high")),
            f"{100 * line['clipped']:.3g} %",
        )
    return shown
