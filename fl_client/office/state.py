"""How a node stands, out of its own folder and of what the chain says it has earned: for people,
for scripts, and as Prometheus metrics. Only looks; knows nothing of how it is shown or served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import connect
from datatokens.errors import BankError
from fl_client.node import contacts, inbox
from fl_client.node.config import NodeConfig
from fl_client.node.contacts import PARTIES, Contacts
from fl_client.node.served import open_ledger, read_table, register, standing
from fl_client.office.preflight import within
from fl_client.privacy.accounting import pld_epsilon
from fl_client.privacy.ledger import Ledger
from fl_client.worker.walls import WALLS

CHAIN_S = 15.0  # that a look waits for the chain


@dataclass(frozen=True)
class State:
    """A node as it stands.

    jobs        ids of those "waiting" for a person, "under_way" (accepted and not over), and "held"
                with a result that a person has to let go; none of which a file is damaged
    datasets    one for each: what it has spent, and what it has earned (None: not known now)
    unread      why something is not served, in sentences
    chain_away  why the chain says nothing of earnings now; "" if it does
    """

    name: str
    at: int
    contacts: Contacts | None
    jobs: Mapping[str, tuple[str, ...]]
    datasets: tuple[Mapping[str, Any], ...]
    unread: tuple[str, ...]
    chain_away: str

    @property
    def running(self) -> bool:
        """Whether the node seems to run."""
        return self.contacts is not None and self.contacts.running(self.at)

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "running": self.running}


def look(config: NodeConfig) -> State:
    """How the node stands now. Looks at the sources: reads files that were touched, runs queries.
    Raises NodeError.
    """
    folder = config.folder
    ledger, secret = open_ledger(folder)
    lines: list[dict[str, Any]] = []
    unread = list(config.unusable.values())
    if behind := ledger.file.behind():
        unread.append(f"the ledger: {behind}; datahub node reconcile {folder}")
    for entry in config.datasets:
        why, away = standing(folder, entry, secret)
        if entry.name not in ledger.datasets():  # listed by an older version, not started since
            if why:
                unread.append(f"dataset {entry.dataset_id}: {why}")
                continue
            register(folder, ledger, entry, read_table(folder, entry, secret))
        budget = ledger.budget(entry.name)
        older = [entry.patient_set] if entry.patient_set in ledger.datasets() else []
        charged = [job for name in (entry.name, *older) for job in ledger.jobs(name)]
        history = [charge for name in (entry.name, *older) for charge in ledger.history(name)]
        lines.append(
            {
                "dataset_id": entry.dataset_id,
                "name": entry.manifest.name,
                "epsilon_spent": ledger.epsilon_spent(entry.name),
                "epsilon_committed": ledger.epsilon_committed(entry.name),
                "epsilon_pld": pld_epsilon(history, budget.delta),
                "jobs_left": ledger.jobs_left(entry.name),
                "epsilon_lifetime": budget.epsilon,
                "delta": budget.delta,
                "not_served": why,
                "source_away": away,
                "jobs": [vars(job) for job in charged],
            }
        )
    earned, chain_away = _earned(config, [line["dataset_id"] for line in lines])
    unread += inbox.damaged(folder)
    return State(
        name=config.name,
        at=int(time.time()),
        contacts=contacts.read(folder),
        jobs=_jobs(folder, ledger),
        datasets=tuple(line | {"earned": earned.get(line["dataset_id"])} for line in lines),
        unread=tuple(unread),
        chain_away=chain_away,
    )


def _jobs(folder: Path, ledger: Ledger) -> dict[str, tuple[str, ...]]:
    held = tuple(one.job_id for one in inbox.held(folder))
    return {
        "waiting": tuple(one.job_id for one in inbox.waiting(folder)),
        "under_way": tuple(job for job in ledger.open_jobs() if job not in held),
        "held": held,
    }


def _earned(config: NodeConfig, ids: Sequence[int]) -> tuple[dict[int, dict[str, int]], str]:
    """(dataset -> what it has ever earned, in base units of the payment token; why it is not
    known).
    """

    def ask() -> dict[int, dict[str, int]]:
        chain = connect(config.chain)
        if chain.chain_id != config.chain_id:
            raise BankError(f"{config.chain} is chain {chain.chain_id}, not {config.chain_id}")
        revenue = Revenue(chain, config.market)
        found = {}
        for one in ids:
            pool = revenue.pool(one)
            found[one] = {
                "hospital_units": pool.hospital_units,
                "withdrawn_units": revenue.withdrawn(one),
                "contributor_units": pool.contributor_units,
                "jobs_settled": pool.settled,
            }
        return found

    if not ids:
        return {}, ""
    try:
        return within(CHAIN_S, ask), ""
    except (BankError, TimeoutError) as error:
        return {}, str(error)


# -- for Prometheus --------------------------------------------------------------------------------

METRICS = {  # name -> kind, help
    "datahub_node_up": ("gauge", "1 while the node has written its state lately."),
    "datahub_contact_timestamp_seconds": ("gauge", "When it last spoke with a party; 0: never."),
    "datahub_jobs": ("gauge", "Jobs that wait for a person, are under way, have a held result."),
    "datahub_dataset_served": ("gauge", "1 where jobs can use the dataset."),
    "datahub_epsilon_spent": ("gauge", "Largest lifetime epsilon that any patient has spent."),
    "datahub_epsilon_committed": ("gauge", "The same with what is reserved."),
    "datahub_epsilon_lifetime": ("gauge", "What all jobs together may ever cost a patient."),
    "datahub_earned_units_total": ("counter", "Ever earned, base units of the payment token."),
    "datahub_jobs_settled_total": ("counter", "Jobs that were paid for."),
    "datahub_chain_answers": ("gauge", "1 where the chain has said what was earned."),
    "datahub_wall_missing": ("gauge", "1 where the machine lacks a wall around jobs."),
}


def metrics(state: State) -> str:
    """The state in Prometheus' text format. What is not known now has no line."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, labels, value in _samples(state):
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines[name].append(f"{name}{{{inner}}} {_number(value)}")
    return "".join(
        f"# HELP {name} {METRICS[name][1]}\n# TYPE {name} {METRICS[name][0]}\n"
        + "".join(f"{line}\n" for line in found)
        for name, found in lines.items()
        if found
    )


def _samples(state: State) -> Iterator[tuple[str, dict[str, str], float]]:
    yield "datahub_node_up", {}, state.running
    yield "datahub_chain_answers", {}, not state.chain_away
    if state.contacts is not None:
        for party in PARTIES:
            at = state.contacts.spoke[party]
            yield "datahub_contact_timestamp_seconds", {"party": party}, at
        if state.contacts.walls is not None:
            for wall in WALLS:
                yield "datahub_wall_missing", {"wall": wall}, wall in state.contacts.walls
    for what, ids in state.jobs.items():
        yield "datahub_jobs", {"state": what}, len(ids)
    for line in state.datasets:
        of = {"dataset": str(line["dataset_id"]), "name": str(line["name"])}
        yield "datahub_dataset_served", of, not line["not_served"]
        for what in ("spent", "committed", "lifetime"):
            yield f"datahub_epsilon_{what}", of, line[f"epsilon_{what}"]
        if earned := line["earned"]:
            for part in ("hospital", "contributor"):
                units = earned[f"{part}_units"]
                yield "datahub_earned_units_total", of | {"part": part}, units
            yield "datahub_jobs_settled_total", of, earned["jobs_settled"]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "+Inf" if value > 0 else "-Inf" if value < 0 else "NaN"
    return str(int(value)) if isinstance(value, bool) else repr(value)
