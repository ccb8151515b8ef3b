"""The command that writes a job's papers. Parses and prints only; added to `datahub node` by
datahub/cli.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datatokens.terminal import Terminal
from fl_client.node import config as node_config
from fl_client.node.job_folder import write_whole

console = Terminal()


def compliance_pack(
    folder: Annotated[Path, typer.Argument(help="The node's folder.")],
    job: Annotated[str, typer.Argument(help="The job's id, or its beginning.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; JOB.html here if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Write a job's papers from the real run: DPIA annex, record of processing, legal basis and
    permit as you have written them in compliance.toml, decision, policy, epsilon, what left, log,
    software.
    """
    from fl_client.office.pack import OWNERS_WORDS, pack
    from fl_client.office.pack import as_json as written
    from fl_client.office.page import pages

    facts = pack(node_config.read(folder), job)
    if as_json:
        typer.echo(written(facts).decode())
        return
    file = out or Path(f"{facts['job_id'][:12]}.html")
    html = pages.get_template("pack.html").render(**facts)
    write_whole(file.resolve(), html.encode())
    console.print(f"{file} is written", highlight=False)
    if missing := [n for n, one in facts["asked_of_the_owner"].items() if not one["said"]]:
        console.print(
            f"not filled in: {', '.join(missing)}; write them in {folder / OWNERS_WORDS}",
            soft_wrap=True,
            highlight=False,
        )
