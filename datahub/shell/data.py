"""`datahub data ...`: the catalogue, one dataset in words, made-up records of it. Needs no key;
loads no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datahub.errors import HubError
from datahub.shell.options import AnyHub, DatasetId, Json, NetworkName, console, hub_of
from datatokens.money import amount
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema

data = typer.Typer(
    help="Datasets: look for one, understand it, buy access to it.", no_args_is_help=True
)
HEADS = ("id", "name", "hospital", "patients (noised)", "price", "lifetime epsilon", "schema")


@data.command("list")
def list_datasets(hub: AnyHub = "", network: NetworkName = "", as_json: Json = False) -> None:
    """The catalogue."""
    from datahub.buyer.hub_client import Hub

    rows = Hub(hub_of(hub, network)).rows("/api/v1/datasets", 1000)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(*HEADS, "node")
    for row in rows:
        manifest = row["manifest"] or {}
        table.add_row(
            str(row["dataset_id"]),
            manifest.get("name", "(manifest not sent yet)"),
            manifest.get("hospital", ""),
            str(manifest.get("persons", "")),
            amount(row["price_units"]),
            f"{manifest.get('lifetime_epsilon', '')}",
            str(row["schema_hash"] or "")[:12],
            "online" if row["online"] else "offline",
        )
    console.print(table)


@data.command()
def show(
    dataset_id: DatasetId, hub: AnyHub = "", network: NetworkName = "", as_json: Json = False
) -> None:
    """One dataset: what its columns mean, whom privacy protects, what of it is left."""
    row = listed(hub_of(hub, network), dataset_id)
    if as_json:
        typer.echo(json.dumps(row))
        return
    manifest = Manifest.from_dict(row["manifest"])
    _say(f"{manifest.name}\n{manifest.hospital}: {manifest.description}")
    for line in _facts(row, manifest):
        _say(line)
    _schema(manifest.schema)


def _facts(row: dict[str, Any], manifest: Manifest) -> list[str]:
    """What a dataset costs, in money and in privacy, and what is to be learned from it."""
    lacking = ""
    if manifest.left_out is not None:
        lacking = f"; about {manifest.left_out} more (noised) lack a value that it needs"
    lines = [
        f"about {manifest.persons} {manifest.unit}s (noised), never fewer than "
        f"{manifest.minimum_persons}{lacking}; {amount(row['price_units'])} a job; lifetime "
        f"epsilon {manifest.lifetime_epsilon:g} at delta {manifest.delta:g} for each "
        f"{manifest.unit}"
    ]
    if (privacy := row["privacy"]) is not None:
        lines.append(
            f"spent: epsilon {privacy['epsilon_spent']:.3f}, as its node has attested for "
            f"{privacy['jobs_attested']} jobs"
        )
    if row["offer"]:
        lines.append(
            f"left: at most epsilon {row['offer']['epsilon_left']:.3g} for one more job, as its "
            "node says"
        )
    target = manifest.schema.target
    return [*lines, f"to be learned: {target.name}, {target.words}"]


def _schema(schema: Schema) -> None:
    from fl_client.data import words

    if schema.picture is not None:
        _say(f"pictures: model inputs of shape {schema.picture.shape}")
        return
    table = Table("column", "values", "unit", "as inputs", "if missing")
    for one in map(words.column, schema.features):
        levels = f": {', '.join(one.levels)}" * bool(one.levels)
        table.add_row(one.name, one.kind + levels, one.unit, one.inputs, one.missing)
    console.print(table)
    _say(f"{schema.width} inputs; schema {schema.hash}")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


@data.command()
def synthetic(
    dataset_id: DatasetId,
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    hub: AnyHub = "",
    network: NetworkName = "",
    records: Annotated[int, typer.Option(help="How many.")] = 500,
    as_json: Json = False,
) -> None:
    """Made-up records in a dataset's format, from its schema alone, to try a model on at home."""
    import csv

    from datahub.synthetic import made_up

    manifest = Manifest.from_dict(listed(hub_of(hub, network), dataset_id)["manifest"])
    rows = list(made_up(manifest.schema, records))
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    if as_json:
        typer.echo(json.dumps({"dataset_id": dataset_id, "file": str(out), "records": records}))
        return
    _say(f"{records} made-up records in {out}: nothing in them is a patient's")


def listed(hub_url: str, dataset_id: int) -> dict[str, Any]:
    """A dataset with its manifest, as the hub shows it. Raises HubError."""
    from datahub.buyer.hub_client import Hub

    row: dict[str, Any] = Hub(hub_url).get(f"/api/v1/datasets/{dataset_id}")
    if row["manifest"] is None:
        raise HubError(f"dataset {dataset_id}: its hospital has not sent the manifest to {hub_url}")
    return row
