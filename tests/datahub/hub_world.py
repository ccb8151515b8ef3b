"""A hub for unit tests: the real contracts on a real embedded chain, a real database; only the
SuperLink is scripted.

Three hospitals with a manifest each (datasets 1 to 3), a buyer with money.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bank_world import BPS, World

from datahub import config
from datahub.market import jobs, orders
from datahub.market.desk import Desk, open_database
from datahub.market.tables import JobRow, NodeRow
from datahub.order import Order
from datatokens.terms import JobTerms, acceptance_message, rejection_message, sign
from fl_client.data.features import Feature
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_server.runs import RunStatus, SuperLink

SCHEMA = Schema((Feature("age", 55, 10), Feature("sex", 0.5, 0.5)), Target("ill", 0.5))
FEE_BPS = 250


def manifest(number: int, **changes: Any) -> Manifest:
    """What hospital `number` says of its dataset."""
    facts: dict[str, Any] = {
        "hospital": f"Hospital {number}",
        "name": f"Table {number}",
        "description": "",
        "persons": 100 * number,
        "minimum_persons": 10,
        "lifetime_epsilon": 8.0,
        "delta": 1e-5,
        "schema": SCHEMA,
        "compute_rate_units": 7,
    }
    return Manifest(**(facts | changes))


@dataclass
class ScriptedSuperLink:
    """What the SuperLink would answer: who is online, which runs there were and how they ended."""

    online: set[int] = field(default_factory=set)
    runs: list[tuple[int, str]] = field(default_factory=list)  # run id, job id
    ended: dict[int, str] = field(default_factory=dict)  # run id -> completed, failed, stopped
    registered: dict[str, int] = field(default_factory=dict)

    def online_nodes(self) -> set[int]:
        return self.online

    def start_run(self, job_id: str) -> int:
        self.runs.append((len(self.runs) + 101, job_id))
        return self.runs[-1][0]

    def open_runs(self, job_id: str) -> list[int]:
        return [run for run, job in self.runs if job == job_id and run not in self.ended]

    def run_status(self, run_id: int) -> RunStatus:
        outcome = self.ended.get(run_id, "")
        return RunStatus("finished" if outcome else "running", outcome, "said why" * bool(outcome))

    def register_node(self, public_key_pem: bytes, name: str) -> int:
        return self.registered.setdefault(name, len(self.registered) + 11)


@dataclass
class HubWorld:
    """The hub's desk and everybody around it."""

    bank: World
    desk: Desk
    superlink: ScriptedSuperLink

    def folder(self, row: JobRow) -> Path:
        """Where the run of a job writes."""
        path = self.desk.config.jobs_folder / row.job_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def order(self, **changes: Any) -> Order:
        """An order over all three datasets."""
        wanted: dict[str, Any] = {
            "buyer": str(self.bank.buyer.address),
            "buyer_public_key": "11" * 32,
            "datasets": tuple(self.bank.dataset_ids),
            "vouchers": (),
            "compute_minutes": 3,
            "dispute": None,
            "graph": b"{}",
            "weights": b"w",
            "loss": "binary_cross_entropy",
            "epsilon": 2.0,
            "delta": 1e-5,
            "model": None,
            "rounds": 2,
            "local_steps": 1,
            "learning_rate": 1.0,
            "clip_norm": 1.0,
            "server_momentum": 0.5,
            "server_rates": None,
            "reward_units": 600,
            "purpose": "research",
            "deadline_s": 3600,
            "quorum": 2,
        }
        return Order(**(wanted | changes))

    def paid(self, **changes: Any) -> JobTerms:
        """Terms that were quoted and paid."""
        terms, _ = orders.quote(self.desk, self.order(**changes))
        self.bank.escrow(self.bank.buyer).create_job(terms)
        return terms

    def job(self, **changes: Any) -> tuple[JobRow, JobTerms]:
        """A paid job that the hub has taken in."""
        terms = self.paid(**changes)
        return jobs.submit(self.desk, terms.to_json()), terms

    def connect(self, *nodes: int) -> None:
        """Let these hospitals' SuperNodes be online (0 to 2)."""
        with self.desk.session() as session:
            rows = [session.get(NodeRow, self.bank.node(n)) for n in nodes]
        self.superlink.online = {int(row.supernode_id) for row in rows if row}

    def acceptances(self, terms: JobTerms, nodes: Sequence[int] = (0, 1, 2)) -> bytes:
        """acceptances.json as a run writes it."""
        keys = {self.bank.node(n): self.bank.node_keys[n] for n in nodes}
        message = acceptance_message(terms)
        return json.dumps({n: sign(message, key).hex() for n, key in keys.items()}).encode()

    def refusals(self, terms: JobTerms, nodes: Sequence[int], reason: str) -> bytes:
        """outcome.json of a run whose hospitals refused."""
        keys = {self.bank.node(n): self.bank.node_keys[n] for n in nodes}
        message = rejection_message(terms, reason)
        rejections = {
            n: {"reason": reason, "signature": sign(message, key).hex()} for n, key in keys.items()
        }
        return json.dumps({"state": "refused", "rejections": rejections}).encode()


def open_hub(bank: World, folder: Path) -> HubWorld:
    """A new hub on the chain of `bank`, with the three nodes registered and every manifest on the
    chain.
    """
    made = bank.deployment
    hub = config.write(
        folder / "hub",
        chain=bank.url,
        chain_id=made.chain_id,
        registry=made.registry,
        market=made.market,
        payment_token=made.payment_token,
        superlink="127.0.0.1:1",
        superlink_folder=str(folder / "superlink"),
        database=f"sqlite:///{folder / 'hub' / 'hub.sqlite'}",
        fee_bps=FEE_BPS,
    )
    superlink = ScriptedSuperLink()
    chain = bank.operator
    desk = Desk(
        hub,
        open_database(hub.database),
        chain,
        bank.registry(chain),
        bank.escrow(chain),
        bank.revenue(chain),
        cast(SuperLink, superlink),
    )
    with desk.session() as session:
        for n in range(3):
            row = NodeRow(node=bank.node(n), supernode_public_key="", supernode_id=str(11 + n))
            session.merge(row)
        session.commit()
    return HubWorld(bank, desk, superlink)


def publish_manifests(bank: World) -> None:
    """Put the hash of every hospital's manifest on the chain."""
    for number, hospital in enumerate(bank.hospitals, 1):
        document = manifest(number)
        bank.registry(hospital).set_manifest(number, document.hash, f"https://h{number}")


__all__ = ["BPS", "HubWorld", "manifest", "open_hub", "publish_manifests"]
