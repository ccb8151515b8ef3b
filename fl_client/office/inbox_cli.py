"""The commands with which people at a hospital decide about jobs. Parses and prints only; added to
`datahub node` by cli.py.
"""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datatokens.terminal import Terminal
from fl_client.node import config as node_config
from fl_client.node import inbox
from fl_client.node.job_folder import DECISIONS, RELEASES
from fl_client.office.brief import brief, briefs, utc

console = Terminal()
Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
Job = Annotated[str, typer.Argument(help="The job's id, or its beginning.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
By = Annotated[
    str, typer.Option(help="Who decides, for the record; the name of this user if left out.")
]
SHOWN_STEPS = 12


def show(folder: Folder, job: Annotated[str, typer.Argument(help="One job, whole.")] = "",
         as_json: Json = False) -> None:  # fmt: skip
    """Which jobs wait for a person here, and what each asks; with a job's id, everything about
    it.
    """
    config = node_config.read(folder)
    if job:
        facts = brief(config, inbox.find(folder, job))
        if as_json:
            typer.echo(json.dumps(facts))
        else:
            print_brief(facts, whole=True)
        return
    found, unread = briefs(config, inbox.waiting(folder))
    results = [one.job_id for one in inbox.held(folder)]
    damaged = [*inbox.damaged(folder), *unread]
    if as_json:
        facts = {"jobs": found, "results_held": results, "damaged": damaged}
        typer.echo(json.dumps(facts))
        return
    if not found:
        console.print("no job waits for a person here")
    for one in found:
        print_brief(one, whole=False)
    for sentence in damaged:
        console.print(f"not shown: {sentence}", soft_wrap=True)
    for one_id in results:
        console.print(
            f"the result of job {one_id[:12]} is held: datahub node release {folder} {one_id[:12]}",
            soft_wrap=True,
        )


def print_brief(facts: dict[str, Any], whole: bool) -> None:
    """A job for people."""
    privacy, money, model = facts["privacy"], facts["money"], facts["model"]
    count = f"{len(model['steps'])}{'' if model['all_steps'] else ' or more'}"
    codes = ", ".join(f"{code} {meaning}" for code, meaning in facts["purpose_codes"])
    rows = [
        ("buyer", facts["buyer"]),
        *([("so far", facts["buyer_so_far"])] if facts["buyer_so_far"] else []),
        ("what for", f"{facts['purpose']}{' (' + codes + ')' if codes else ''}"),
        ("dataset", f"{facts['dataset_id']} {facts['dataset']}, about "
         f"{facts['cohort']['persons']} {facts['cohort']['unit']}s (noised)"),
        ("model", f"{model['numbers']} numbers, {count} steps, {model['loss']}, "
         f"graph {model['graph_hash'][:12]}"),
        ("epsilon", f"{privacy['epsilon_job']:.3f} at delta {privacy['delta']:g}; lifetime "
         f"{privacy['lifetime_before']:.3f} -> {privacy['lifetime_after']:.3f} of "
         f"{privacy['lifetime']:g}"),
        ("pays", f"{money['price_units']} units for the dataset, up to "
         f"{money['compute_cap_units']} for computing, {money['reward_units']} shared by "
         f"{money['hospitals']} hospitals"),
        ("answer by", utc(facts["until"])),
        *(("look at", sentence) for sentence in facts["look_at"]),
        *(("said", f"{one['by']}: {'yes' if one['yes'] else 'no, ' + one['reason']}")
          for one in facts["said"]),
    ]  # fmt: skip
    if whole:
        rows += [(name, sentence) for name, sentence in facts["checks"]]
        steps = [f"{name} {shape}" for name, shape, _ in model["steps"]]
        more = f", and {len(steps) - SHOWN_STEPS} more" if len(steps) > SHOWN_STEPS else ""
        rows.append(("steps", " > ".join(steps[:SHOWN_STEPS]) + more))
        rows += [
            ("leaves", f"{one['what']}: {one['numbers']} numbers; noise: {one['noise']}")
            for one in facts["leaves"]
        ]
    table = Table(title=f"job {facts['job_id'][:12]}", show_header=False, box=None)
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)


def approve(folder: Folder, job: Job, by: By = "", as_json: Json = False) -> None:
    """Say yes to a job that waits. The node takes it when it is asked the next time, seconds
    later.
    """
    _decide(folder, job, by, True, "", as_json)


def refuse(
    folder: Folder,
    job: Job,
    reason: Annotated[str, typer.Option(help="Why; the buyer reads it.")],
    by: By = "",
    as_json: Json = False,
) -> None:
    """Say no to a job that waits. Its money goes back to the buyer."""
    _decide(folder, job, by, False, reason, as_json)


def release(folder: Folder, job: Job, by: By = "", as_json: Json = False) -> None:
    """Let the final result of a job go, where node.toml says hold_results."""
    _decide(folder, job, by, True, "", as_json, RELEASES)


def _decide(
    folder: Path,
    job: str,
    by: str,
    yes: bool,
    reason: str,
    as_json: bool,
    about: str = DECISIONS,
) -> None:
    config = node_config.read(folder)
    name = by or getpass.getuser()
    one, decided = inbox.decide(folder, config.policy_of, job, name, yes, reason, about)
    if as_json:
        typer.echo(json.dumps({"job": one.job_id, "yes": yes, "by": name, "decided": decided}))
        return
    what = "the result of job" if about == RELEASES else "job"
    verb = ("approved" if yes else "refused") if about == DECISIONS else "released"
    console.print(f"{what} {one.job_id[:12]} is {verb} by {name}", highlight=False)
    if not decided:
        console.print("a second person has to say yes as well")
