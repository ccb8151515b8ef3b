"""The index says what the contracts say; whoever reads the chain, from whichever block and however
often it went another way, has the same tables.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bank_world import World, found_world
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, select

from datahub.index import indexer
from datahub.index.indexer import Indexer
from datahub.index.tables import (
    AttestedRow,
    BlockRow,
    ClaimedRow,
    DatasetRow,
    EpochRow,
    EscrowRow,
    EventRow,
    HospitalRow,
    KeyRow,
)
from datahub.market import claims, contributors
from datahub.market.desk import open_database
from datahub.market.hospitals import _state
from datatokens.bindings.events import Event
from datatokens.bindings.nodes import NodeRegistry
from datatokens.bindings.revenue import Claim
from datatokens.chain.rpc_server import anvil_binary, running_anvil
from datatokens.layouts import LINE, pack
from datatokens.merkle import Tree
from datatokens.terms import Outcome
from tests.datahub.hub_world import HubWorld

TABLES: tuple[type[SQLModel], ...] = (
    EventRow,
    DatasetRow,
    EscrowRow,
    AttestedRow,
    EpochRow,
    ClaimedRow,
    KeyRow,
    HospitalRow,
)


def tables(engine: Engine) -> dict[str, set[str]]:
    """Every row of the index, but for how far it has got."""
    with Session(engine) as session:
        return {
            table.__name__: {row.model_dump_json() for row in session.exec(select(table)).all()}
            for table in TABLES
        }


def index(engine: Engine, bank: World) -> Indexer:
    made = bank.deployment
    return Indexer(engine, bank.operator, made.registry, made.market, lambda *_: None)


def again(bank: World, folder: Path) -> dict[str, set[str]]:
    """The tables of somebody who reads everything from block 0."""
    folder.mkdir()
    engine = open_database(f"sqlite:///{folder / 'again.sqlite'}")
    index(engine, bank).catch_up()
    return tables(engine)


def test_index__says_of_everything_what_the_contracts_say(hub: HubWorld, tmp_path: Path) -> None:
    """Over whatever the tests before have left on this chain, and a claim, a sale and a change of
    hands besides.
    """
    bank, desk = hub.bank, hub.desk
    mine = bank.registry(bank.hospitals[0])
    number = mine.list_dataset(bank.node(0), 5, 2500, b"\1" * 32, "https://h", "H")
    revenue, owner = bank.revenue(bank.hospitals[0]), str(bank.hospitals[0].address)
    tree = Tree(number, 1, [(owner, 3), (str(bank.buyer.address), 4)])
    revenue.post_contributors(number, tree.root, "https://l")
    bank.money(bank.buyer).approve(bank.deployment.market, 10_000)
    bank.revenue(bank.buyer).pay_revenue(number, 10_000)
    revenue.claim([Claim(number, 1, 3, tuple(tree.proof(0)))], owner)
    contract = mine.contract.functions
    mine.chain.send(contract.transferFrom(owner, str(bank.buyer.address), number))
    hub.job()
    desk.index.catch_up()
    escrow, market, nodes = (
        desk.escrow,
        desk.revenue,
        NodeRegistry(desk.chain, mine.contract.address),
    )
    with desk.session() as session:
        rows = session.exec(select(DatasetRow)).all()
        assert len(rows) == mine.count() >= 4
        for row in rows:
            there = mine.dataset(row.dataset_id)
            assert (row.owner, row.datatoken, row.node) == (
                there.owner,
                there.datatoken,
                there.node,
            )
            assert int(row.price_units) == there.price_units
            assert row.manifest_hash == there.manifest_hash.hex()
            assert row.contributor_bps == there.contributor_bps
            assert row.state == mine.standing(row.dataset_id).state
            for name, value in vars(escrow.standing(row.dataset_id)).items():
                assert getattr(row, name) == value, name
        jobs = session.exec(select(EscrowRow)).all()
        assert jobs
        for job in jobs:
            held = escrow.job(bytes.fromhex(job.job_id))
            assert (job.status, int(job.accepted)) == (held.status, held.accepted)
            if job.status == "settled":
                settled = escrow.settlement(bytes.fromhex(job.job_id))
                assert settled is not None and int(job.paid_units) == settled.paid_units
                assert job.model_hash == settled.attestation.model_hash.hex()
                lines = session.exec(select(AttestedRow).where(AttestedRow.job_id == job.job_id))
                by_place = sorted(lines, key=lambda line: line.position)
                assert [line.epsilon_micro for line in by_place] == [
                    outcome.epsilon_micro for outcome in settled.attestation.outcomes
                ]
        epochs = session.exec(select(EpochRow)).all()
        assert len(epochs) == sum(market.pool(row.dataset_id).epoch for row in rows) >= 1
        for one in epochs:
            said = market.epoch(one.dataset_id, one.epoch)
            assert (one.root, int(one.credited_units)) == (said.root.hex(), said.credited_units)
        (taken,) = session.exec(select(ClaimedRow).where(ClaimedRow.dataset_id == number))
        assert int(taken.units) == market.claimed(number, 1, owner) == 2500 * 3 // 7
        for key in session.exec(select(KeyRow)).all():
            status = nodes.status(key.key)
            assert (_state(key, desk.chain.now()), key.hospital_id) == (
                status.state,
                status.hospital_id,
            )
    assert again(bank, tmp_path / "again") == tables(desk.engine)


@settings(max_examples=200)
@given(st.integers(0, 2**96), st.integers(1, 2**63), st.integers(0, 2**63))
def test_entitled__is_the_contracts_share(credited: int, weight: int, more: int) -> None:
    total = weight + min(more, 2**63 - 1)
    root = b"\7" * 24 + total.to_bytes(8, "big")
    assert claims.entitled(credited, weight, root) == credited * weight // total


def test_claims__are_what_the_contract_would_pay(hub: HubWorld) -> None:
    bank, desk = hub.bank, hub.desk
    mine = bank.registry(bank.hospitals[0])
    number = mine.list_dataset(bank.node(0), 5, 3333, b"\1" * 32, "https://h", "H")
    owner, buyer = str(bank.hospitals[0].address), str(bank.buyer.address)
    entries = [(owner, 3), (buyer, 7)]
    tree = Tree(number, 1, entries)
    bank.revenue(bank.hospitals[0]).post_contributors(number, tree.root, "https://l")
    contributors.put_contributors(desk, number, 1, entries)
    bank.money(bank.buyer).approve(bank.deployment.market, 10_000)
    for units in (1, 999, 31):
        bank.revenue(bank.buyer).pay_revenue(number, units)
        desk.index.catch_up()
        (one,) = [c for c in claims.claims_of(desk, owner) if c.dataset_id == number]
        assert one.claimable_units == desk.revenue.claimable(number, 1, owner, 3)
    bank.revenue(bank.hospitals[0]).claim([Claim(number, 1, 3, tuple(tree.proof(0)))], owner)
    desk.index.catch_up()
    (one,) = [c for c in claims.claims_of(desk, owner) if c.dataset_id == number]
    assert (one.claimable_units, one.claimed_units) == (0, 1031 * 3333 // 10_000 * 3 // 10)


def test_catch_up__many_at_once__each_event_is_there_once(hub: HubWorld, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    url = f"sqlite:///{folder / 'many.sqlite'}"
    open_database(url)
    workers = [index(open_database(url), hub.bank) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.catch_up(), workers))
    assert tables(workers[0].engine) == again(hub.bank, tmp_path / "again")


# -- a chain that goes another way -----------------------------------------------------------------


@pytest.fixture(scope="module")
def anvil() -> Iterator[World]:
    if anvil_binary() is None:
        pytest.skip("anvil is not installed (make tools)")
    with running_anvil() as url:
        yield found_world(url)


def test_catch_up__blocks_were_taken_back__what_they_said_is_forgotten(
    anvil: World, tmp_path: Path
) -> None:
    bank, chain = anvil, anvil.operator
    engine = open_database(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    mine, reader = bank.registry(bank.hospitals[0]), index(engine, bank)
    number = mine.list_dataset(bank.node(0), 5, 2500, b"\1" * 32, "https://h", "H")
    tree = Tree(number, 1, [(str(bank.hospitals[0].address), 1)])
    bank.revenue(bank.hospitals[0]).post_contributors(number, tree.root, "https://l")
    bank.money(bank.buyer).approve(bank.deployment.market, 10_000)
    bank.revenue(bank.buyer).pay_revenue(number, 1000)
    reader.catch_up()
    before = tables(engine)
    kept = chain.rpc("evm_snapshot")
    bank.revenue(bank.buyer).pay_revenue(number, 500)
    mine.set_price(number, 77)
    gone = mine.list_dataset(bank.node(0), 6, 2500, b"\2" * 32, "https://h", "I")
    reader.catch_up()
    with Session(engine) as session:
        assert session.get(DatasetRow, gone) is not None
        credited = session.get(EpochRow, (number, 1))
        assert credited is not None and int(credited.credited_units) == 1500 * 2500 // 10_000
    chain.rpc("evm_revert", kept)
    reader.catch_up()  # a shorter chain is, as far as anybody knows, one whose node is behind
    with Session(engine) as session:
        assert session.get(DatasetRow, gone) is not None
    for _ in range(5):
        chain.rpc("evm_mine")
    reader.catch_up()
    assert tables(engine) == before
    mine.set_price(number, 78)
    reader.catch_up()
    with Session(engine) as session:
        row = session.get(DatasetRow, number)
        assert row is not None and row.price_units == "78"
    assert tables(engine) == again(bank, tmp_path / "again")


ALICE, BOB, DATATOKEN = ("0x" + one * 20 for one in ("aa", "bb", "cc"))
SAID: dict[str, Mapping[str, Any]] = {
    "list": {
        "contract": "registry",
        "name": "DatasetListed",
        "owner": ALICE,
        "datatoken": DATATOKEN,
        "node": BOB,
        "priceUnits": 5,
        "contributorBps": 1,
        "manifestHash": "00",
    },
    "price": {"contract": "registry", "name": "PriceChanged"},
    "sell": {"contract": "registry", "name": "Transfer", "from": ALICE},
    "pause": {"contract": "registry", "name": "StateChanged"},
    "pay": {"contract": "market", "name": "JobCreated", "buyer": ALICE, "amountUnits": 9},
    "accept": {"contract": "market", "name": "JobAccepted", "accepted": 1},
    "attest": {"contract": "market", "name": "JobAttested"},
    "refund": {"contract": "market", "name": "JobRefunded", "amountUnits": 9, "rejected": False},
    "claim": {"contract": "market", "name": "Claimed", "epoch": 1, "account": ALICE},
    "key": {"contract": "nodes", "name": "NodeKeyAdded", "validFrom": 0},
    "revoke": {"contract": "nodes", "name": "NodeKeyRevoked"},
    "hospital": {"contract": "nodes", "name": "Transfer", "from": "0x" + "0" * 40, "to": ALICE},
    "handed on": {"contract": "nodes", "name": "Transfer", "from": ALICE, "to": BOB},
}


def events(step: str, which: int, size: int) -> list[tuple[str, str, dict[str, Any]]]:
    """What a contract would say at this step: of dataset, job or hospital `which`."""
    said = dict(SAID[step])
    contract, name = said.pop("contract"), said.pop("name")
    line = {"dataset_id": which, "node": 1, "tier": 0, "price_units": 3, "compute_cap_units": 0}
    about: dict[str, Any] = {
        "registry": {"tokenId": which} if name == "Transfer" else {"datasetId": which},
        "market": {"datasetId": which} if name == "Claimed" else {"jobId": f"{which:064x}"},
        "nodes": {"tokenId": which} if name == "Transfer" else {"hospitalId": which},
    }[contract]
    more: dict[str, Any] = {
        "price": {"priceUnits": size},
        "sell": {"to": f"0x{size:040x}"},
        "pause": {"state": size % 3},
        "pay": {"deadline": size},
        "claim": {"units": size},
        "key": {"validUntil": size, "key": f"0x{which:040x}"},
        "revoke": {"key": f"0x{which:040x}"},
        "attest": {
            "modelHash": "11",
            "reportHash": "22",
            "worked": 1,
            "signers": 1,
            "outcomes": [Outcome(1, 2, size, 4).word],
        },
    }.get(step, {})
    found = [(contract, name, {**said, **about, **more})]
    if step == "accept":
        terms = {"terms": {"lines": pack(LINE, line).hex()}, **about}
        found.insert(0, ("market", "JobTerms", terms))
    return found


class MadeUpChain:
    """Blocks of made-up events; `back` makes the chain go another way from a block on."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, list[tuple[str, str, dict[str, Any]]]]] = []
        self._made = 0
        self.mine([])

    def mine(self, said: list[tuple[str, str, dict[str, Any]]]) -> None:
        self._made += 1
        self.blocks.append((self._made.to_bytes(32, "big"), said))

    def block_number(self) -> int:
        return len(self.blocks) - 1

    def block_hash(self, number: int) -> bytes | None:
        return self.blocks[number][0] if number < len(self.blocks) else None

    def between(self, first: int, last: int) -> list[Event]:
        return [
            Event(number, place, *one)
            for number in range(first, last + 1)
            for place, one in enumerate(self.blocks[number][1])
        ]


def scripted(engine: Engine, chain: MadeUpChain) -> Indexer:
    """An indexer over a made-up chain, whose contracts count nothing."""
    made = Indexer.__new__(Indexer)
    nothing = SimpleNamespace(standing=lambda _: SimpleNamespace(), pool=lambda _: _None)
    _None = SimpleNamespace(epoch=0)
    made.engine, made.chain, made.market = engine, chain, "m"  # type: ignore[assignment]
    made.events, made.escrow, made.revenue = chain, nothing, nothing  # type: ignore[assignment]
    made._after = lambda *_: None
    return made


STEPS = st.tuples(st.sampled_from(sorted(SAID)), st.integers(1, 2), st.integers(1, 9))
MOVES = st.lists(
    st.one_of(
        st.lists(STEPS, max_size=4),  # a block that says this
        st.integers(1, 6),  # so many blocks are taken back
        st.none(),  # the index looks
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "hub.sqlite"
    open_database(f"sqlite:///{path}").dispose()
    return path


def fresh(empty: Path, folder: Path, name: str) -> Engine:
    target = folder / name
    target.write_bytes(empty.read_bytes())
    return open_database(f"sqlite:///{target}")


@settings(max_examples=60, deadline=None)
@given(moves=MOVES, blocks=st.integers(1, 4))
def test_catch_up__whatever_way_the_chain_went__the_tables_are_those_of_the_way_it_is(
    empty: Path, tmp_path_factory: pytest.TempPathFactory, moves: list[Any], blocks: int
) -> None:
    folder = tmp_path_factory.mktemp("moves")
    chain = MadeUpChain()
    chain.mine(events("hospital", 1, 1) + events("list", 1, 1) + events("sell", 1, 1))
    reader = scripted(fresh(empty, folder, "hub.sqlite"), chain)
    before = indexer.BLOCKS
    indexer.BLOCKS = blocks  # several turns for what one would do
    try:
        for move in moves:
            if move is None:
                reader.catch_up()
            elif isinstance(move, int):
                back = max(2, len(chain.blocks) - move)
                gone = len(chain.blocks) - back
                del chain.blocks[back:]
                for _ in range(gone + 1):
                    chain.mine([])
            else:
                said = [one for step in move if possible(chain, step) for one in events(*step)]
                chain.mine(copy.deepcopy(said))
        reader.catch_up()
        other = scripted(fresh(empty, folder, "again.sqlite"), chain)
        other.catch_up()
    finally:
        indexer.BLOCKS = before
    assert tables(reader.engine) == tables(other.engine)
    with Session(reader.engine) as session:
        newest = max(session.exec(select(BlockRow.number)).all())
        assert newest == chain.block_number()
        kept = session.exec(select(EventRow)).all()
        assert [json.loads(row.args) for row in sorted(kept, key=_place)] == [
            said for _, block in chain.blocks for _, _, said in block
        ]
    reader.engine.dispose()
    other.engine.dispose()


def possible(chain: MadeUpChain, step: tuple[str, int, int]) -> bool:
    """Whether a contract could say this now: of a key only after it was added."""
    name, which, _ = step
    if name != "revoke":
        return True
    return any(
        said == "NodeKeyAdded" and args["hospitalId"] == which
        for _, block in chain.blocks
        for _, said, args in block
    )


def _place(row: EventRow) -> tuple[int, int]:
    return row.block, row.position
