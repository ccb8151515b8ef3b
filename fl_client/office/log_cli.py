"""The commands about a node's audit log. Parses and prints only; added to `datahub node` by
cli.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datatokens.bindings.escrow import Escrow
from datatokens.chain.connection import connect
from datatokens.errors import BankError
from datatokens.terminal import Terminal
from fl_client.node import config as node_config
from fl_client.node.audit_log import AuditLog, Head, Line, LogError
from fl_client.node.config import NodeConfig
from fl_client.node.job_folder import JobFolder, of_each, write_whole
from fl_client.office.brief import utc

audit_log = typer.Typer(help="What the node has decided and released.", no_args_is_help=True)
console = Terminal()
Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _as_dict(line: Line) -> dict[str, Any]:
    return {**vars(line)}


@audit_log.command()
def show(
    folder: Folder,
    last: Annotated[int, typer.Option(help="How many of the newest lines; 0 for all.")] = 40,
    job: Annotated[str, typer.Option(help="Only lines about this job (its id's beginning).")] = "",
    as_json: Json = False,
) -> None:
    """The newest lines, as a table or as JSON lines."""
    found = [
        line
        for line in AuditLog(folder).lines()
        if not job or str(line.facts.get("job", "")).startswith(job)
    ]
    found = found[-last:] if last else found
    if as_json:
        for line in found:
            typer.echo(json.dumps(_as_dict(line)))
        return
    table = Table("line", "when", "what", "facts", box=None)
    for line in found:
        shown = ", ".join(f"{k} {_short(k, v)}" for k, v in line.facts.items() if v != "")
        table.add_row(str(line.number), utc(line.at), line.event, shown)
    console.print(table)


def _short(name: str, value: Any) -> Any:
    return value[:12] if name in SHORT and isinstance(value, str) else value


SHORT = {"job", "terms_hash", "sha256", "model_hash", "report_hash", "manifest_hash", "cohort"}


@audit_log.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Whether every line is as it was written, none is missing, and the log holds what reports on
    the chain say of it. Exit status 1 if not.
    """
    from fl_client.node.served import anchors

    config = node_config.read(folder)
    heads = anchors(config)
    try:
        head = AuditLog(folder).verify(heads)
        wrong = ""
    except LogError as error:
        head, wrong = Head(), str(error)
    on_chain, unknown = _on_chain(config)
    facts = {"holds": not wrong, "why": wrong, "lines": head.number, "head": head.hash}
    facts |= {"reports": len(heads), "reports_on_chain": on_chain, "chain": unknown}
    if as_json:
        typer.echo(json.dumps(facts))
    elif wrong:
        console.print(f"the log does NOT hold: {wrong}", soft_wrap=True)
    else:
        console.print(
            f"{head.number} lines, each follows the one before it; head {head.hash[:16]}; it holds "
            f"the heads in {len(heads)} reports, {on_chain} of which the chain has the hash of"
            f"{'; ' + unknown if unknown else ''}",
            soft_wrap=True,
        )
    if wrong:
        raise typer.Exit(1)


def _on_chain(config: NodeConfig) -> tuple[int, str]:
    """(how many kept reports are those whose hash the chain has, why it could not be asked)."""
    try:
        escrow = Escrow(connect(config.chain), config.market)
        found = 0
        reports, _ = of_each(config.folder, _attested)
        for job, report in reports:
            attested = escrow.attested(bytes.fromhex(job))
            same = attested and attested.report_hash == hashlib.sha256(report).digest()
            found += bool(same)
    except BankError as error:
        return 0, f"the chain could not be asked: {error}"
    return found, ""


def _attested(one: JobFolder) -> tuple[str, bytes] | None:
    """(job id, report) of a job whose result was attested."""
    report = one.report if one.attested_model else None
    return None if report is None else (one.path.name, report)


@audit_log.command()
def export(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="Where to; one JSON object a line.")],
    as_json: Json = False,
) -> None:
    """Write the whole log to a file for an auditor: the lines as they are, whose hashes anybody can
    work out, then the reports that name its heads.
    """
    from fl_client.node.served import anchors

    config = node_config.read(folder)
    AuditLog(folder).verify(anchors(config))
    lines = AuditLog(folder).path.read_bytes()
    ours = set(config.node_keys)
    reports, damaged = of_each(folder, _attested)
    proofs = [
        json.dumps(
            {"report_of": job, "node": sorted(ours), "report": report.decode(errors="replace")}
        )
        for job, report in reports
    ]
    write_whole(file.resolve(), lines + "".join(f"{proof}\n" for proof in proofs).encode())
    facts = {"file": str(file), "lines": lines.count(b"\n"), "reports": len(proofs)}
    facts["damaged"] = sorted(damaged.values())
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console.print(
        f"{facts['lines']} lines and {len(proofs)} reports in {file}; a line's hash is SHA-256 of "
        "its bytes without the line end",
        soft_wrap=True,
    )
