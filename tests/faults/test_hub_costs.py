"""What anybody can make the hub spend: bounded, whatever is asked and however often."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import delete, select

from datahub.demo.stack import free_ports
from datahub.errors import BadRequest, Busy, Conflict
from datahub.index.indexer import Indexer, Touched
from datahub.market import (
    catalogue,
    claims,
    contributors,
    jobs,
    orders,
    quotes,
    reconcile,
)
from datahub.market.desk import Desk
from datahub.market.entries import Asked
from datahub.market.seldom import Seldom
from datahub.market.tables import QuoteRow, TreeRow
from datatokens.chain.rpc_server import accounts
from datatokens.merkle import Tree
from datatokens.terms import JobTerms
from fl_client.data import schemas
from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_client.errors import DatasetError
from fl_client.node.config import write_private
from fl_client.privacy import accounting
from fl_client.privacy.plan import Charge
from fl_client.protocol import sha256_hex
from fl_server.certificates import write_certificates
from tests.datahub.hub_world import HubWorld, manifest
from tests.datahub.test_contributors import ACCOUNTS, ENTRIES, listed, post


def waiting(desk: Desk) -> list[str]:
    with desk.session() as session:
        rows = session.exec(select(QuoteRow).order_by(QuoteRow.quoted_at)).all()  # type: ignore[arg-type]
    return [row.job_id for row in rows]


def files(desk: Desk) -> set[str]:
    return {path.name for path in desk.config.models_folder.glob("*")}


def quoted(hub: HubWorld, name: bytes) -> JobTerms:
    return orders.quote(hub.desk, hub.order(graph=name, weights=name + name))[0]


# -- quotes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "value"), [("MOST", 2), ("MOST_MODEL_BYTES", 6)])
def test_quotes_that_nobody_pays__push_out_the_oldest_and_its_model(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(quotes, bound, value)
    made = [quoted(hub, name) for name in (b"a", b"b", b"c", b"d")]
    assert waiting(hub.desk) == [terms.job_id.hex() for terms in made[-2:]]
    assert files(hub.desk) == {sha256_hex(x) for x in (b"c", b"cc", b"d", b"dd")}


def test_a_quote_that_was_pushed_out__is_a_job_all_the_same_once_it_is_paid(hub: HubWorld) -> None:
    terms = hub.paid(graph=b"g", weights=b"w")
    with hub.desk.session() as session:
        session.exec(delete(QuoteRow))
        session.commit()
    quotes.forget_old(hub.desk)
    assert waiting(hub.desk) == [] and files(hub.desk) == set()
    with pytest.raises(Conflict, match="the model's file is not here"):
        jobs.submit(hub.desk, terms.to_json())
    assert jobs.submit(hub.desk, terms.to_json(), (b"w", b"g", b"another")).state == "funded"
    assert files(hub.desk) == {sha256_hex(b"g"), sha256_hex(b"w")}


def test_the_model_of_an_open_job__is_kept_and_of_an_ended_one_is_not(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, terms = hub.job(graph=b"g", weights=b"w")
    monkeypatch.setattr(quotes, "KEPT_S", -10)
    quotes.forget_old(hub.desk)
    assert len(files(hub.desk)) == 2
    (hub.folder(row) / "outcome.json").write_bytes(hub.refusals(terms, (0, 1), "no"))
    reconcile.reconcile(hub.desk)
    quotes.forget_old(hub.desk)
    assert files(hub.desk) == set()


def test_an_order_that_is_refused__leaves_nothing_behind(hub: HubWorld) -> None:
    with pytest.raises(BadRequest):
        orders.quote(hub.desk, hub.order(loss="binary_cross_entropy", purpose=""))
    assert waiting(hub.desk) == [] and not hub.desk.config.models_folder.exists()


# -- a payment is seen -----------------------------------------------------------------------------


def test_a_quote_that_is_paid__becomes_a_job_without_being_told(hub: HubWorld) -> None:
    quotes.take_up(hub.desk)
    paid, unpaid = hub.paid(), quoted(hub, b"other")
    quotes.take_up(hub.desk)
    assert jobs.job_row(hub.desk, paid.job_id.hex()).state == "funded"
    assert waiting(hub.desk) == [unpaid.job_id.hex()]


def test_a_payment_while_the_hub_was_down__is_seen_when_it_is_up(hub: HubWorld) -> None:
    paid = hub.paid()
    again = Desk(
        hub.desk.config,
        hub.desk.engine,
        hub.desk.chain,
        hub.desk.registry,
        hub.desk.escrow,
        hub.desk.revenue,
        hub.desk.superlink,
    )
    quotes.take_up(again)
    assert jobs.job_row(again, paid.job_id.hex()).state == "funded"


def test_payments_of_others_and_looks_without_news__change_nothing(hub: HubWorld) -> None:
    quotes.take_up(hub.desk)
    stranger = quoted(hub, b"x")
    with hub.desk.session() as session:
        session.exec(delete(QuoteRow))
        session.commit()
    hub.bank.escrow(hub.bank.buyer).create_job(stranger)
    quotes.take_up(hub.desk)
    quotes.take_up(hub.desk)
    assert jobs.recent(hub.desk)[0] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fee_units": 0}, "fee_units=0 is less than this hub's fee"),
        ({"deadline": 40 * 86400}, "are the most"),
        ({"node": "0x" + "11" * 20}, "has not registered with this hub"),
    ],
)
def test_a_paid_job_that_cannot_run_here__is_refused_at_the_door(
    hub: HubWorld, changes: dict[str, Any], sentence: str
) -> None:
    terms = orders.quote(hub.desk, hub.order())[0]
    if "node" in changes:
        lines = (replace(terms.datasets[0], node=changes["node"]), *terms.datasets[1:])
        terms = replace(terms, datasets=lines)
    elif "deadline" in changes:
        terms = replace(terms, deadline=terms.deadline + changes["deadline"])
    else:
        terms = replace(terms, **changes)
    hub.bank.escrow(hub.bank.buyer).create_job(terms)
    with pytest.raises(Conflict, match=sentence):
        jobs.submit(hub.desk, terms.to_json())
    assert jobs.recent(hub.desk)[0] == []


# -- the catalogue ---------------------------------------------------------------------------------


@pytest.fixture
def asked(hub: HubWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The methods of every question to the chain."""
    found: list[str] = []
    real: Callable[..., Any] = hub.desk.chain._ask

    def ask(question: Callable[[], Any]) -> Any:
        found.append(question.__qualname__)
        return real(question)

    monkeypatch.setattr(hub.desk.chain, "_ask", ask)
    yield found


def test_the_catalogue__asks_the_chain_nothing__and_the_index_once_a_look(
    hub: HubWorld, asked: list[str]
) -> None:
    hub.desk.index.catch_up()
    asked.clear()
    for _ in range(50):
        catalogue.listing(hub.desk, hub.bank.dataset_ids)
        catalogue.page(hub.desk, Asked(text="age"))
        claims.claims_of(hub.desk, ACCOUNTS[0])
        jobs.recent(hub.desk)
    assert asked == []
    for _ in range(5):
        hub.desk.index.catch_up()
    assert len(asked) == 5  # the number of the newest block, and nothing more without news


def test_one_price_changes__one_dataset_is_made_again(hub: HubWorld) -> None:
    hub.desk.index.catch_up()
    again: list[Touched] = []
    other = Indexer(
        hub.desk.engine,
        hub.desk.chain,
        hub.desk.config.registry,
        hub.desk.config.market,
        lambda session, touched: again.append(touched),
    )
    mine = hub.bank.registry(hub.bank.hospitals[1])
    before = mine.dataset(2).price_units
    mine.set_price(2, before + 1)
    try:
        other.catch_up()
        (row,) = catalogue.listing(hub.desk, [2])
    finally:
        mine.set_price(2, before)
    assert again == [Touched(frozenset({2}), frozenset())] and row["price_units"] == before + 1


def test_a_turn_that_fails__is_taken_again_whole(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = hub.bank.registry(hub.bank.hospitals[1])
    before = mine.dataset(2).price_units
    mine.set_price(2, before + 2)

    def fails(session: object, touched: object) -> None:
        raise RuntimeError("the disk is full")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(hub.desk.index, "_after", fails)
            with pytest.raises(RuntimeError):
                hub.desk.index.catch_up()
        assert catalogue.listing(hub.desk, [2])[0]["price_units"] == before
        hub.desk.index.catch_up()
        assert catalogue.listing(hub.desk, [2])[0]["price_units"] == before + 2
    finally:
        mine.set_price(2, before)


def test_a_job_that_is_told_of_and_seen_at_the_same_time__is_one_job(hub: HubWorld) -> None:
    terms = hub.paid()
    with ThreadPoolExecutor(8) as pool:
        told = [pool.submit(jobs.submit, hub.desk, terms.to_json()) for _ in range(6)]
        seen = [pool.submit(quotes.take_up, hub.desk) for _ in range(2)]
        assert {one.result().job_id for one in told} == {terms.job_id.hex()}
        assert [one.result() for one in seen] == [None, None]
    assert len(jobs.recent(hub.desk)[0]) == 1


def test_seldom__many_ask__one_answer_until_the_pause_is_over_and_none_after_an_error() -> None:
    answers: list[Any] = [1, RuntimeError("away"), 2]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    seldom = Seldom(ask, 3600)
    assert [seldom() for _ in range(5)] == [1] * 5
    seldom._answer = None
    with pytest.raises(RuntimeError):
        seldom()
    assert seldom() == 2


# -- claims ----------------------------------------------------------------------------------------


def test_claims__build_no_tree__and_an_older_hubs_lists_are_built_once(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES)
    built: list[int] = []
    real = Tree.__init__

    def init(self: Tree, *given: Any) -> None:
        built.append(1)
        real(self, *given)

    monkeypatch.setattr(Tree, "__init__", init)
    first = [claims.claims_of(hub.desk, account) for account in ACCOUNTS]
    assert not built
    with hub.desk.session() as session:  # as a hub of an older version has left it
        session.exec(delete(TreeRow))
        session.commit()
    for path in hub.desk.config.trees_folder.glob("*"):
        path.unlink()
    assert [claims.claims_of(hub.desk, account) for account in ACCOUNTS] == first
    assert len(built) == 1
    tree = Tree(dataset_id, epoch, ENTRIES)
    for i, (claim,) in enumerate(first):
        assert claim.proof == tuple("0x" + s.hex() for s in tree.proof(i))


def test_a_strangers_list_of_another_sum__is_refused_before_anything_is_made_of_it(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    monkeypatch.setattr(contributors, "address", lambda *_: pytest.fail("looked at"))
    with pytest.raises(BadRequest, match="root is not the one"):
        contributors.put_contributors(hub.desk, dataset_id, epoch, [(ACCOUNTS[0], 1)] * 1000)


def test_two_lists_at_once__the_second_waits_and_is_told(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    monkeypatch.setattr(contributors, "WAIT_S", 0.01)
    with contributors._building, pytest.raises(Busy, match="send this one again"):
        contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES)
    contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES)


# -- manifests and figures -------------------------------------------------------------------------


def test_a_manifest_of_megabytes__is_none() -> None:
    def wide(count: int, name: str) -> Schema:
        return Schema(tuple(Feature(f"{name}{i}", 0, 1) for i in range(count)), Target("ill", 0.5))

    with pytest.raises(DatasetError, match="2001 columns; 2000 are the most"):
        Schema.from_dict(wide(2001, "f").as_dict())
    with pytest.raises(DatasetError, match="131072 are the most"):
        manifest(1, schema=wide(2000, "x" * 190))
    assert Schema.from_dict(wide(schemas.MOST_FEATURES, "f").as_dict()).width == 2000
    levels = {"name": "f", "centre": 0, "scale": 1, "categories": list(range(1001))}
    with pytest.raises(DatasetError, match="1001 levels"):
        Schema.from_dict({"features": [levels], "target": {"name": "ill", "positive_above": 0.5}})


def test_the_tighter_epsilon__is_worked_out_once_when_a_job_is_settled(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, terms = hub.job()
    times: list[int] = []
    real = accounting.pld_epsilon

    def counted(charges: Any, delta: float) -> float:
        times.append(1)
        return real(charges, delta)

    monkeypatch.setattr(accounting, "pld_epsilon", counted)
    jobs.keep_figure(hub.desk, terms)
    shown = [jobs.describe(hub.desk, row)["epsilon_pld"] for _ in range(3)]
    assert len(times) == 1 and shown == [shown[0]] * 3
    assert 0 < shown[0] < orders.epsilon_of(terms)


def test_a_plan_that_no_hospital_with_a_budget_takes__costs_the_hub_nothing(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, terms = hub.job()
    plan = {**terms.spec["plan"], "noise_multiplier": 0.3, "steps": 1000, "metric_steps": 1000}
    spec = {**terms.spec, "plan": plan, "rounds": 1000, "local_steps": 1, "average_last": 1}
    monkeypatch.setattr(accounting, "pld_epsilon", lambda *_: pytest.fail("worked out"))
    bomb = replace(terms, spec=spec)
    assert accounting.epsilon([Charge(0.3, plan["sampling_rate"], 1000, "x")], 1e-5) > 100
    jobs.keep_figure(hub.desk, bomb)


def _held(pid: int) -> int:
    """The greatest memory of a process so far, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def test_a_hub_with_endless_and_hanging_connections__holds_no_head_and_stops_at_once(
    hub: HubWorld,
) -> None:
    folder = hub.desk.config.folder
    write_private(folder / "keys" / "operator.key", accounts()[0][1].encode())
    write_certificates(hub.desk.config.superlink_folder)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "datahub.cli", "hub", "start", str(folder)]
    with subprocess.Popen([*command, "--port", str(port)]) as process:
        for _ in range(300):
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).status_code == 200
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        before = _held(process.pid)
        with (
            socket.create_connection(("127.0.0.1", port)) as endless,
            contextlib.suppress(OSError),
        ):
            for part in (b"GET /healthz HTTP/1.1\r\nx: ", *[b"x" * 2**20] * 48):
                endless.sendall(part)
        assert _held(process.pid) - before < 16  # a head has an end
        with socket.create_connection(("127.0.0.1", port)) as hanging:
            hanging.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=5)  # 2 s on an idle machine
    assert folder.stat().st_mode & 0o777 == 0o700


def test_hubs_folder__is_its_users_alone(hub: HubWorld, tmp_path: Path) -> None:
    from datahub import config

    folder = tmp_path / "mine"
    config.write(
        folder,
        **{name: getattr(hub.desk.config, name) for name in ("chain",)}
        | {
            "chain_id": hub.desk.config.chain_id,
            "registry": hub.desk.config.registry,
            "market": hub.desk.config.market,
            "payment_token": hub.desk.config.payment_token,
            "superlink": "127.0.0.1:1",
            "superlink_folder": str(folder / "superlink"),
            "database": f"sqlite:///{folder / 'hub.sqlite'}",
            "fee_bps": 0,
        },
    )
    assert folder.stat().st_mode & 0o777 == 0o700
