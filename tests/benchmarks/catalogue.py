"""A hub's pages over a large market: 100,000 datasets, 1,000,000 jobs and 10,000,000 contributor
lines, asked 50 times a second for search, dataset, job and claims pages.

    python -m tests.benchmarks.catalogue [--quick] [--database URL] [--json FILE]

The rows are made up and written straight into the hub's tables (SQLite; any SQLAlchemy URL with
--database); the hub is a real process over HTTP on a real chain. Beside it, in the same run, the
way of before: every dataset read and filtered in Python for each look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from eth_utils.address import to_checksum_address
from sqlalchemy import Engine, insert, text
from sqlmodel import Session, SQLModel

from datahub import config
from datahub.demo.stack import free_ports
from datahub.index.tables import DatasetRow, EpochRow, EscrowRow
from datahub.market import contributors, entries
from datahub.market.desk import open_database
from datahub.market.tables import ContributorRow, EntryRow, JobRow, ManifestRow, TreeRow, WordRow
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts, running_devchain
from datatokens.deploy import deploy
from datatokens.merkle import Tree
from datatokens.terms import canonical_json
from fl_client.data.features import Feature
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_server.certificates import write_certificates
from fl_server.superlink import operator_token
from tests.conftest import terms as made_up_terms

FULL = {"datasets": 100_000, "jobs": 1_000_000, "lines": 10_000_000, "seconds": 30.0}
QUICK = {"datasets": 5_000, "jobs": 20_000, "lines": 100_000, "seconds": 10.0}
RATE = 50  # requests a second
LARGEST = 1_000_000  # entries of the one large contributor list (or all, if fewer)
BATCH = 20_000
PLACES = "Heart Lung Kidney Breast Skin Brain Bone Liver Eye Blood".split()
WORDS = "imaging registry cohort screening intensive outpatient surgery trial biobank ward".split()
TOWNS = [
    a + b
    for a in ("North", "South", "East", "West", "Old", "New")
    for b in ("field", "bridge", "haven", "wood", "mount", "lake", "ford", "gate", "dale", "port")
]


def manifests(count: int) -> Iterator[tuple[int, Manifest]]:
    """Made-up hospitals with a table each; ten schemas."""
    chance = random.Random(7)
    schemas = [
        Schema((Feature("age", 55, 10), Feature(f"marker_{i}", 0.5, 0.5)), Target("ill", 0.5))
        for i in range(10)
    ]
    for number in range(1, count + 1):
        place, word = chance.choice(PLACES), chance.choice(WORDS)
        yield (
            number,
            Manifest(
                hospital=f"{chance.choice(TOWNS)} {chance.choice(TOWNS)} hospital",
                name=f"{place} {word} {number}",
                description=f"{place} patients, {word}, {2000 + number % 26}",
                persons=chance.randint(10, 100_000),
                minimum_persons=10,
                lifetime_epsilon=8.0,
                delta=1e-5,
                schema=schemas[number % 10],
            ),
        )


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def write(engine: Engine, table: type[SQLModel], rows: Iterator[dict[str, Any]]) -> None:
    """Rows into a table, a batch at a time."""
    for batch in batches(rows):
        with engine.begin() as connection:
            connection.execute(insert(table), batch)


def account(number: int) -> str:
    return to_checksum_address(hashlib.sha256(b"%d" % number).digest()[:20])


def seed(engine: Engine, sizes: dict[str, Any], trees: Path) -> str:
    """Fill the tables; a contributor of the one large list."""
    count = sizes["datasets"]
    started = time.monotonic()
    columns: dict[type[SQLModel], list[dict[str, Any]]] = {
        DatasetRow: [],
        ManifestRow: [],
        EntryRow: [],
        WordRow: [],
    }

    def flush() -> None:
        for table, rows in columns.items():
            write(engine, table, iter(rows))
            rows.clear()

    chance = random.Random(8)
    for number, one in manifests(count):
        document = canonical_json(one.as_dict()).decode()
        price = chance.randint(1, 100) * 100_000
        node = account(-number)
        columns[DatasetRow].append(
            {
                "dataset_id": number,
                "owner": node,
                "datatoken": node,
                "node": node,
                "price_units": str(price),
                "contributor_bps": 2500,
                "manifest_hash": one.hash.hex(),
                "state": 0,
                "epsilon_micro": number % 8 * 10**6,
                "jobs_attested": number % 8,
                "accepted": 9,
                "settled": 8,
                "failed": 1,
                "disputed": 0,
                "lost": 0,
            }
        )
        columns[ManifestRow].append(
            {
                "manifest_hash": one.hash.hex(),
                "schema_hash": one.schema.hash,
                "document": document,
                "kept_at": 1_700_000_000.0,
            }
        )
        columns[EntryRow].append(
            {
                "dataset_id": number,
                "on_sale": True,
                "title": one.name.casefold(),
                "hospital": one.hospital,
                "kind": "table",
                "unit": "record",
                "node": node,
                "schema_hash": one.schema.hash,
                "persons": one.persons,
                "price_rank": price,
                "epsilon_left": float(number % 8),
                "offer_ends": None,
            }
        )
        names = [feature.name for feature in one.schema.features]
        for word in entries.words(one.name, one.hospital, one.description, *names, "ill"):
            columns[WordRow].append({"word": word, "dataset_id": number})
        if number % BATCH == 0:
            flush()
    flush()
    say(f"{count:,} datasets", started)
    terms = made_up_terms()
    terms_text = terms.to_json().decode()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    write(
        engine,
        JobRow,
        (
            {
                "job_id": f"{number:064x}",
                "buyer": account(number % 1000),
                "terms": terms_text,
                "state": "settled" if number % 5 else "refunded",
                "reason": "",
                "run_id": "1",
                "runs_started": 1,
                "quoted_at": begin + timedelta(seconds=number),
                "funded_at": begin + timedelta(seconds=number),
                "ended_at": begin,
            }
            for number in range(sizes["jobs"])
        ),
    )
    write(
        engine,
        EscrowRow,
        (
            {
                "job_id": f"{number:064x}",
                "buyer": account(number % 1000),
                "status": "settled" if number % 5 else "refunded",
                "amount_units": "1000000",
                "deadline": 2_000_000_000,
                "block": number,
                "accepted": "7",
                "model_hash": "aa",
                "report_hash": "bb",
                "worked": "7",
                "ended": number,
                "paid_bps": 10_000,
                "paid_units": "900000",
                "change_units": "0",
            }
            for number in range(sizes["jobs"])
        ),
    )
    say(f"{sizes['jobs']:,} jobs", started)
    # one list of a million, whose tree is in its file; the rest in lists of a hundred
    large = min(LARGEST, sizes["lines"] // 2)
    everybody = [(account(10**9 + n), n % 100 + 1) for n in range(large)]
    tree = Tree(1, 1, everybody)
    trees.mkdir(parents=True, exist_ok=True)
    (trees / tree.root.hex()).write_bytes(tree.words)
    write(
        engine,
        ContributorRow,
        (
            {"dataset_id": 1, "epoch": 1, "position": n, "account": who, "weight": str(weight)}
            for n, (who, weight) in enumerate(everybody)
        ),
    )
    others = (sizes["lines"] - large) // 100
    write(
        engine,
        ContributorRow,
        (
            {
                "dataset_id": 2 + n // 100 % (count - 1),
                "epoch": 1 + n // 100 // (count - 1),
                "position": n % 100,
                "account": account(n % 3_000_000),
                "weight": "1",
            }
            for n in range(others * 100)
        ),
    )
    say(f"{sizes['lines']:,} contributor lines", started)
    write(
        engine,
        TreeRow,
        iter([{"dataset_id": 1, "epoch": 1, "root": tree.root.hex(), "leaves": tree.leaves}]),
    )
    write(
        engine,
        EpochRow,
        iter(
            [
                {
                    "dataset_id": 1,
                    "epoch": 1,
                    "root": tree.root.hex(),
                    "since": 0,
                    "credited_units": str(10**12),
                }
            ]
        ),
    )
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    return everybody[large // 3][0]


def say(what: str, since: float) -> None:
    print(f"  {what} after {time.monotonic() - since:.0f} s", flush=True)


def ask(url: str, paths: Callable[[int], str], seconds: float) -> list[float]:
    """Milliseconds of each answer, at RATE requests a second, however slow the answers are."""
    took: list[float] = []
    with httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64)) as client:

        def once(number: int, at: float) -> None:
            path = paths(number)
            answer = client.get(path)
            took.append(1000 * (time.monotonic() - at))
            answer.raise_for_status()

        client.get(paths(0))
        with ThreadPoolExecutor(64) as pool:
            start, waiting = time.monotonic(), []
            for number in range(int(seconds * RATE)):
                at = start + number / RATE
                time.sleep(max(0.0, at - time.monotonic()))
                waiting.append(pool.submit(once, number, at))
            for one in waiting:
                one.result()
    return took


def p95(took: Sequence[float]) -> float:
    return statistics.quantiles(took, n=20)[-1]


def memory(process: int) -> float:
    """Resident MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Seed, serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small market, for ten seconds")
    parser.add_argument("--database", default="", help="a SQLAlchemy URL instead of SQLite")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    figures: dict[str, float] = {name: float(size) for name, size in sizes.items()}
    with tempfile.TemporaryDirectory() as at, running_devchain() as chain_url:
        folder = Path(at) / "hub"
        key = accounts()[0][1]
        made = deploy(connect(chain_url, key), None)
        hub = config.write(
            folder,
            chain=chain_url,
            chain_id=made.chain_id,
            registry=made.registry,
            market=made.market,
            payment_token=made.payment_token,
            superlink="127.0.0.1:1",
            superlink_folder=str(folder / "superlink"),
            database=given.database or f"sqlite:///{folder / 'hub.sqlite'}",
            fee_bps=250,
        )
        (folder / "keys").mkdir()
        (folder / "keys" / "operator.key").write_text(key)
        write_certificates(folder / "superlink", ("localhost", "127.0.0.1"))
        operator_token(folder / "superlink")
        engine = open_database(hub.database)
        somebody = seed(engine, sizes, hub.trees_folder)
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "datahub.cli", "hub", "start", str(folder)]
        served = subprocess.Popen([*command, "--port", str(port)])
        try:
            while True:
                try:
                    httpx.get(url, timeout=5)
                    break
                except httpx.TransportError:
                    if served.poll() is not None:
                        raise SystemExit("the hub did not start") from None
                    time.sleep(0.2)
            count, jobs = sizes["datasets"], sizes["jobs"]
            pages: dict[str, Callable[[int], str]] = {
                "search": lambda n: f"/datasets?q={PLACES[n % 10]}+{TOWNS[n % 60]}",
                "common_word": lambda n: f"/datasets?q=hospital&sort={('name', 'price')[n % 2]}",
                "dataset": lambda n: f"/datasets/{n * 7919 % count + 1}",
                "job": lambda n: f"/jobs/{n * 7919 % jobs:064x}",
                "claims": lambda n: f"/claims?account={account(n * 7919 % 3_000_000)}",
                "large_claim": lambda n: f"/claims?account={somebody}",
            }
            before = memory(served.pid)
            for name, paths in pages.items():
                took = ask(url, paths, sizes["seconds"])
                figures[f"{name}_p50_ms"] = round(statistics.median(took), 1)
                figures[f"{name}_p95_ms"] = round(p95(took), 1)
                figures[f"{name}_memory_mib"] = round(memory(served.pid))
            figures["memory_grew_mib"] = round(memory(served.pid) - before)
        finally:
            served.terminate()
            served.wait(20)
        proof = []
        with Session(engine) as session:
            entry = session.get(ContributorRow, (1, 1, min(LARGEST, sizes["lines"] // 2) // 3))
            desk: Any = type("Desk", (), {"config": hub, "session": lambda self: Session(engine)})()
            for _ in range(200):
                at_ = time.monotonic()
                contributors.proof(desk, entry)  # type: ignore[arg-type]
                proof.append(1000 * (time.monotonic() - at_))
        figures["proof_p95_ms"] = round(p95(proof), 2)
        started = time.monotonic()
        with Session(engine) as session:  # as the catalogue was searched before
            rows = session.execute(text("SELECT document FROM manifest")).all()
            sum("heart" in json.dumps(json.loads(row[0])).casefold() for row in rows)
        figures["in_python_ms"] = round(1000 * (time.monotonic() - started))
    figures["search_ratio"] = round(figures["in_python_ms"] / figures["search_p50_ms"])
    for name, value in figures.items():
        print(f"{name:24} {value:>14,g}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
