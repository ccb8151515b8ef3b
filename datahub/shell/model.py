"""`datahub model ...`: whether a model can travel, what a saved one says of a table, and whether it
is the one that hospitals signed for. A saved result is used alone; the chain is asked where it has
to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datahub.errors import OrderRefused
from datahub.shell.options import (
    AnyHub,
    Json,
    NetworkName,
    busy,
    complaints,
    console,
    hub_of,
    many,
    pinned,
)
from datatokens.terminal import visible

if TYPE_CHECKING:
    import numpy as np

    from datahub.buyer.networks import Network
    from datahub.buyer.results import Result
    from datatokens.bindings.escrow import Settlement

model = typer.Typer(help="Models: check one, use and verify a saved one.", no_args_is_help=True)


@model.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A saved result (datahub order new --out).")],
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV, Parquet, Excel or JSON lines, with the model's original columns by name, as "
            "they were measured; others are not looked at."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write; default the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a saved model says of each record of a table: chances, or numbers in their own unit."""
    answers = _answers(folder, table)
    records = len(next(iter(answers.values())))
    if out is None and not as_json:
        for line in _as_csv(answers).splitlines():
            typer.echo(visible(line))
        return
    if out is not None:
        out.write_text(_as_csv(answers), encoding="utf-8")
    if as_json:
        said: dict[str, Any] = {"records": records}
        said |= {"file": str(out)} if out else {"answers": _as_lists(answers)}
        typer.echo(json.dumps(said))
        return
    console.print(f"{records} records, {', '.join(answers)}: {out}", soft_wrap=True)


def _answers(folder: Path, table: Path) -> Mapping[str, np.ndarray]:
    """The answers; what is doubtful in the table is printed."""
    import warnings

    from datahub.buyer.frames import Doubt
    from datahub.buyer.results import Result

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Doubt)
        answers = Result.load(folder).predict(table)
    for doubt in doubts:
        complaints.print(str(doubt.message), style="yellow", soft_wrap=True)
    return answers


def _as_csv(answers: Mapping[str, np.ndarray]) -> str:
    import csv
    import io

    written = io.StringIO(newline="")
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(map(visible, answers))
    rows = zip(*(values.tolist() for values in answers.values()), strict=True)
    lines.writerows([f"{x:.6g}" if math.isfinite(x) else "" for x in row] for row in rows)
    return written.getvalue()


def _as_lists(answers: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    return {
        name: [x if math.isfinite(x) else None for x in values.tolist()]
        for name, values in answers.items()
    }


@model.command()
def check(
    given: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A built-in model, or FILE.py:NAME: a function of your file that makes a torch "
            "module.",
        ),
    ],
    dataset: Annotated[int, typer.Option(help="Dataset id: its schema says what a model takes.")],
    example: Annotated[
        str, typer.Option(help="FILE.py:NAME: a function that makes an input to export it with.")
    ] = "",
    loss: Annotated[
        str | None, typer.Option(help="What is trained by; default the usual one of the target.")
    ] = None,
    hub: AnyHub = "",
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Whether a model can travel to a dataset's hospital and be trained there, before anything is
    ordered. Needs no key.
    """
    from datahub.buyer import quoting
    from datahub.shell.data import listed
    from datahub.shell.settings import made_by
    from fl_client.data.manifests import Manifest

    row = listed(hub_of(hub, network), dataset)
    with busy("the model is exported, and checked as hospitals check it"):
        schema = Manifest.from_dict(row["manifest"]).schema
        by = loss or next(iter(schema.losses))
        made = made_by("MODEL", given) if ":" in given else given
        input_ = made_by("--example", example) if example else None
        graph, weights = quoting.model_files(made, input_, schema, by)
    facts = {"loss": by, "graph_bytes": len(graph), "weights_bytes": len(weights)}
    if as_json:
        typer.echo(json.dumps({"model": given, "dataset_id": dataset, **facts}))
        return
    console.print(
        f"{given} can be trained by {by} on dataset {dataset}: a graph of {len(graph)} bytes, "
        f"weights of {len(weights)}",
        soft_wrap=True,
    )


@model.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A saved result, from whomever it came.")],
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Whether a saved model is the one that hospitals signed for on the chain. Needs no key and no
    hub: files and the chain decide.
    """
    from datahub.buyer.results import Result
    from datatokens.wire import parse

    kept = Result.load(folder)
    settled = _settlement(folder, kept, pinned(network))
    _compare(folder, kept, settled)
    worked = [one for one in parse(kept.report)["hospitals"] if one["worked"]]
    facts = {
        "job_id": settled.attestation.job_id.hex(),
        "model_hash": settled.attestation.model_hash.hex(),
        "datasets": [one["dataset_id"] for one in worked],
        "epsilon": max(one["epsilon_job"] for one in worked),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console.print(
        f"the model in {folder} is the one that {many(len(worked), 'hospital')} signed for in job "
        f"{facts['job_id'][:12]}: SHA-256 {facts['model_hash']}; it cost each patient at most "
        f"epsilon {facts['epsilon']:.3f}",
        soft_wrap=True,
    )


def _settlement(folder: Path, kept: Result, where: Network) -> Settlement:
    """What the chain says of a saved result's job. Raises OrderRefused."""
    from datatokens import deploy
    from datatokens.bindings.escrow import Escrow
    from datatokens.chain.connection import connect
    from datatokens.terms import JobTerms

    terms = JobTerms.from_json(kept.terms)
    chain = connect(where.chain)
    deploy.check(chain, where.deployment)
    if (terms.chain_id, terms.market) != (chain.chain_id, where.deployment.market):
        raise OrderRefused(
            f"{folder} is of market {terms.market} on chain {terms.chain_id}, and {where.name} is "
            f"market {where.deployment.market} on chain {chain.chain_id}: name another --network"
        )
    settled = Escrow(chain, terms.market).settlement(terms.job_id)
    if settled is None:
        raise OrderRefused(f"job {terms.job_id.hex()[:12]} is not settled on the chain")
    return settled


def _compare(folder: Path, kept: Result, settled: Settlement) -> None:
    """Raises OrderRefused where model or report are not those that were signed for."""
    from fl_client.model.weights import model_hash
    from fl_client.protocol import sha256_hex

    said = settled.attestation
    for what, signed, found in (
        ("model", said.model_hash.hex(), model_hash(kept.arrays).hex()),
        ("report", said.report_hash.hex(), sha256_hex(kept.report)),
    ):
        if signed != found:
            raise OrderRefused(
                f"{folder}: the {what} is not the one that was signed for: its hash is "
                f"{found[:12]}, hospitals signed {signed[:12]}"
            )
