"""What a hospital does with a table before it lists it: see how it is written, draft a schema, and
see what every column would become. Nothing leaves, what these commands print is for the owner
alone, and nothing is charged but what `measure` says. Parses and prints only.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
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
    file: Annotated[Path, typer.Argument(help="The table.")], as_json: Json = False
) -> None:
    """Say how a table seems to be written, as a source's TOML file to read, correct and keep."""
    said = dialects.describe(file)
    if as_json:
        typer.echo(json.dumps(tomllib.loads(said)))
        return
    typer.echo(said, nl=False)


def draft_schema(
    file: TableFile = None,
    source: SourceFile = None,
    target: Annotated[str, typer.Option(help="The column that is to be learned.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON of the schema and of the notes to you.")
    ] = False,
) -> None:
    """Propose a schema (JSON) from names and types. Its ranges must come from public knowledge."""
    proposed, notes = drafts.draft(given_source(file, source, ""), target)
    if as_json:
        typer.echo(json.dumps({"schema": proposed, "notes": notes}))
        return
    typer.echo(json.dumps(proposed, indent=2, ensure_ascii=False))
    for note in notes:
        typer.echo(note, err=True)


def measure(
    folder: Annotated[Path, typer.Argument(help="The node's folder.")],
    column: Annotated[str, typer.Argument(help="The column that no public source has a range of.")],
    low: Annotated[float, typer.Option(help="The least that a patient can have, by no table.")],
    high: Annotated[float, typer.Option(help="The most that a patient can have, by no table.")],
    epsilon: Annotated[float, typer.Option(help="What it may cost each patient, at delta.")],
    file: TableFile = None,
    source: SourceFile = None,
    patient_column: Annotated[
        str, typer.Option(help="With --file: the column that tells patients apart.")
    ] = "",
    lifetime_epsilon: Annotated[
        float, typer.Option(help="The lifetime that you will list the table with, not less.")
    ] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is counted.")] = 1e-5,
    as_json: Json = False,
) -> None:
    """Pay for a column's usual value and spread, noised, out of every patient's lifetime epsilon:
    these two numbers may be published in a schema.
    """
    from fl_client.node import config
    from fl_client.node.measuring import measure

    found = measure(
        config.read(folder),
        given_source(file, source, patient_column),
        column,
        low,
        high,
        epsilon,
        lifetime_epsilon,
        delta,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    for what, figure in (("centre", found.centre), ("scale", found.scale)):
        console.print(
            f"{what} {figure.value:g} (95 % interval {figure.low:g} to {figure.high:g}, noised)",
            highlight=False,
        )
    if found.vague:
        console.print("this is more noise than signal: too few patients or too little epsilon")
    console.print(
        f"charged: lifetime epsilon {found.epsilon_spent:.3f} of {lifetime_epsilon:g} at delta "
        f"{delta:g} is spent for the patients of this table",
        soft_wrap=True,
        highlight=False,
    )


def schema(
    schema_hash: Annotated[str, typer.Argument(help="The schema's hash, 64 hexadecimal digits.")],
    hub: Annotated[str, typer.Option(help="URL of a hub whose catalogue shows it.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("schema.json"),
    as_json: Json = False,
) -> None:
    """Fetch a schema that others list by, so that your table fits one order with theirs."""
    from fl_client.node.listing import fetch_schema

    found = fetch_schema(hub, schema_hash)
    out.write_text(json.dumps(found.as_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"schema": found.hash, "file": str(out), "columns": found.names}))
        return
    console.print(
        f"{out} is the schema of that hash: it wants {len(found.names)} columns of your table",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"next: datahub node check --schema {out} --source SOURCE.toml", soft_wrap=True)


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
    _print_what_it_becomes(found)


def _print_what_it_becomes(found: dict[str, Any]) -> None:
    console.print(
        f"{found['records']} records of {found['persons']} "
        f"{'patients' if found['by_patient'] else 'persons (each record is one)'}; "
        f"{found['dropped']} are left out",
        highlight=False,
    )
    for name, many in found["lacking"].items():
        console.print(f"  {many} lack {name}", highlight=False)
    for line in found["target"]:
        said = (
            f"{line['records']} of {found['records']}"
            if "records" in line
            else "{mean:.3g} on average, {low:.3g} to {high:.3g}; ".format(**line)
            + f"{100 * line['clipped']:.3g} % at an end of the range"
        )
        console.print(f"{line['what']}: {said}", highlight=False, soft_wrap=True)
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
