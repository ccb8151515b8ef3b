"""One hospital's node against a running chain: what its tests start from, as a plugin."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import zeros

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry, Token
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts, running_devchain
from datatokens.deploy import Deployment, deploy
from datatokens.terms import (
    DatasetTerm,
    JobTerms,
    check_signature,
    rejection_message,
)
from fl_client.data.features import Feature
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.model.weights import from_safetensors
from fl_client.node import config, entries
from fl_client.node.admission import admit
from fl_client.node.entries import DatasetEntry
from fl_client.node.room import DataRoom
from fl_client.node.rounds import train
from fl_client.node.served import members_of, open_ledger
from fl_client.privacy import accounting
from fl_client.privacy.plan import PrivacyPlan
from fl_client.protocol import JobSpec, Refused, Signed, Trained, sha256_hex
from fl_server.report import Part

SCHEMA = Schema((Feature("a", 0, 1), Feature("b", 0, 1)), Target("y", 0))
GRAPH, WEIGHTS = export_model(build("logistic_regression", 2), zeros(1, 2))
PRICE = 1_000_000
# nobody is asked at this clinic
FOR_EVERYBODY = """
[[rules]]
name = "everybody"
datasets = ["*"]
buyers = ["*"]
purposes = ["*"]
models = ["*"]
max_epsilon = 4.5
jobs_per_week = 1000
"""
BUYER, OTHER_BUYER = accounts()[5], accounts()[6]


@dataclass
class Clinic:
    """One hospital with 40 patients and a running chain; makes jobs over its dataset."""

    url: str
    made: Deployment
    folder: Path
    dataset_id: int
    serial: int = 0

    def room(self) -> DataRoom:
        return DataRoom(config.read(self.folder), connect(self.url))

    @property
    def node(self) -> str:
        return config.read(self.folder).node_address

    def spec(self, rounds: int = 2, epsilon: float = 1.0, **changes: Any) -> JobSpec:
        self.serial += 1
        noise, metric_noise = accounting.calibrate(epsilon, 1e-5, 1.0, rounds, rounds, 0.05)
        fields: dict[str, Any] = {
            "purpose": "research",
            "buyer_public_key": "11" * 32,
            "schema_hash": SCHEMA.hash,
            "graph_hash": sha256_hex(GRAPH),
            "weights_hash": sha256_hex(WEIGHTS),
            "loss": "binary_cross_entropy",
            "outputs": 1,
            "rounds": rounds,
            "local_steps": 1,
            "learning_rate": 1.0,
            "average_last": 1,
            "server_momentum": 0.0,
            "server_rates": {},
            "plan": PrivacyPlan(noise, 1.0, 1.0, rounds, 1e-5, metric_noise, 1.0, rounds),
            "persons": {self.dataset_id: 40},
            "salt": hashlib.sha256(str(self.serial).encode()).hexdigest(),
        }
        return JobSpec(**(fields | changes))

    def line(self, **changes: Any) -> DatasetTerm:
        return replace(DatasetTerm(self.dataset_id, self.node, PRICE), **changes)

    def terms(self, spec: JobSpec | None = None, buyer: str = BUYER[0], **changes: Any) -> JobTerms:
        fields: dict[str, Any] = {
            "chain_id": self.made.chain_id,
            "market": self.made.market,
            "buyer": buyer,
            "datasets": (self.line(),),
            "reward_units": 100,
            "fee_units": 0,
            "deadline": connect(self.url).now() + 3600,
            "quorum": 1,
            "spec": (spec or self.spec()).as_dict(),
        }
        return JobTerms(**(fields | changes))

    def rewrite_table(self, patients: int) -> None:
        """Another table of so many patients under the same listing, as if it had always been so."""
        (entry,) = config.read(self.folder).datasets
        table(entry.source.file, patients)
        self.write(replace(entry, content=""))

    def write(self, entry: DatasetEntry) -> None:
        """Write a dataset's file as listing it would: its table is the one that is listed."""
        secret = open_ledger(self.folder)[1]
        records = load(entry.source, entry.manifest.schema, secret)
        entries.write(self.folder, replace(entry, content=members_of(records).content))

    def paid(self, *args: Any, key: str = BUYER[1], **kwargs: Any) -> JobTerms:
        terms = self.terms(*args, **kwargs)
        Escrow(connect(self.url, key), self.made.market).create_job(terms)
        return terms


def table(path: Path, patients: int) -> Path:
    """A CSV file of so many patients, the first ones the same whatever their number."""
    rng = np.random.default_rng(0)
    rows = [f"{x:.4f},{y:.4f},{int(x + y > 0)}" for x, y in rng.normal(size=(patients, 2))]
    path.write_text("\n".join(["a,b,y", *rows]))
    return path


@pytest.fixture(scope="module")
def bank() -> Iterator[tuple[str, Deployment]]:
    with running_devchain(instant=True) as url:
        operator = connect(url, accounts()[0][1])
        made = deploy(operator)
        for account, _ in (BUYER, OTHER_BUYER):
            Token(operator, made.payment_token).mint(account, 10**12)
        yield url, made


@pytest.fixture
def clinic(bank: tuple[str, Deployment], tmp_path: Path) -> Clinic:
    url, made = bank
    folder = tmp_path / "node"
    network = {
        "chain_id": made.chain_id,
        "registry": made.registry,
        "market": made.market,
        "payment_token": made.payment_token,
        "superlink": "127.0.0.1:1",
        "ca_certificate": "",
    }
    node = config.create(
        folder, name="Clinic", hub="http://127.0.0.1:1", chain=url, network=network
    )
    with (folder / "node.toml").open("a") as toml:
        toml.write(FOR_EVERYBODY)
    file = table(tmp_path / "table.csv", 40)
    manifest = Manifest("Clinic", "T", "", 40, 10, 3.0, 1e-5, SCHEMA)
    registry = Registry(connect(url, accounts()[1][1]), made.registry)
    dataset_id = registry.list_dataset(node.node_address, PRICE, 5000, manifest.hash, "u", "T")
    made_here = Clinic(url, made, folder, dataset_id)
    made_here.write(DatasetEntry(dataset_id, plain(file), manifest, name="t"))
    return made_here


def weights() -> dict[str, np.ndarray]:
    return from_safetensors(WEIGHTS)


def refusal(clinic: Clinic, terms: JobTerms, graph: bytes = GRAPH, start: bytes = WEIGHTS) -> str:
    """The reason of a signed refusal; fails if the node accepts or does not sign."""
    answer = admit(clinic.room(), terms.to_json(), graph, start)
    assert isinstance(answer, Refused)
    check_signature(rejection_message(terms, answer.reason), answer.signature, clinic.node)
    return answer.reason


def accepted(clinic: Clinic, **changes: Any) -> JobTerms:
    terms = clinic.paid(clinic.spec(**changes))
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)
    return terms


def part_of(clinic: Clinic, rounds: int, reply: Trained, seconds: float) -> Part:
    spent = (reply.epsilon_job, reply.epsilon_lifetime, reply.delta_lifetime)
    said = {"log_head": reply.log_head, "no_walls": reply.no_walls}
    return Part(clinic.dataset_id, rounds, *spent, round(seconds, 1), "cpu", reply.unit, **said)


def trained(clinic: Clinic) -> tuple[JobTerms, JobSpec, dict[str, np.ndarray], Part]:
    terms = accepted(clinic)
    spec = JobSpec.from_dict(terms.spec)
    arrays, seconds = weights(), 0.0
    for number in range(1, spec.rounds + 1):
        reply = train(clinic.room(), terms.job_id.hex(), number, arrays)
        arrays, seconds = from_safetensors(reply.model), seconds + reply.compute_seconds
    part = part_of(clinic, spec.rounds, reply, seconds)
    return terms, spec, arrays, part


@pytest.fixture
def hub_calls(clinic: Clinic) -> Iterator[list[tuple[str, dict]]]:
    """Something that takes manifests as a hub does; what it was sent."""
    sent: list[tuple[str, dict]] = []

    class Hub(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            sent.append((self.path, body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        toml = clinic.folder / "node.toml"
        address = f"http://127.0.0.1:{server.server_port}"
        toml.write_text(toml.read_text().replace("http://127.0.0.1:1", address))
        yield sent
        server.shutdown()
