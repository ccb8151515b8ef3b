"""Several hub processes on one database: each job is one process's, and a killed one's go to the
others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlmodel import Session, select

from datahub import config
from datahub.market import leases
from datahub.market.desk import open_database
from datahub.market.leases import LIVES_S, Leases
from datahub.market.tables import JobRow, LeaseRow, ManifestRow, NodeRow
from datahub.migrations import migrate
from datatokens.chain.rpc_server import accounts
from tests.clocks import clock
from tests.datahub.hub_world import FEE_BPS, HubWorld
from tests.postgresql import needs_postgresql, running_postgresql

WAIT_S = 90.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'leases.sqlite'}"
    found: str = request.getfixturevalue("server")
    engine = create_engine(found)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return found


def test_share__several_workers__each_thing_is_one_worker_s_and_fairly_so(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    clock(monkeypatch, leases, time=lambda: now[0])
    one, two, three = (Leases(open_database(url)) for _ in range(3))
    names = [f"job:{i}" for i in range(9)]
    one.renew()
    assert one.share(names) == set(names), "alone it does everything"
    two.renew()
    three.renew()
    for _ in range(3):  # what one gives up the others take at their next look
        held = [worker.share(names) for worker in (one, two, three)]
    assert [len(mine) for mine in held] == [3, 3, 3]
    assert set.union(*held) == set(names)
    now[0] += LIVES_S / 2
    for worker in (one, three):
        worker.renew()
    now[0] += LIVES_S / 2 + 1  # `two` has died
    for _ in range(3):
        held = [worker.share(names) for worker in (one, three)]
    assert set.union(*held) == set(names) and not held[0] & held[1]
    assert not two.take(names[0]) or names[0] not in set.union(*held)
    two.renew()  # it was only asleep, and finds what it held in other hands
    kept = [worker.share(names) for worker in (one, two, three)]
    assert sum(map(len, kept)) == len(set.union(*kept))


def test_take__held_by_another__not_until_its_time_is_over(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    clock(monkeypatch, leases, time=lambda: now[0])
    one, two = Leases(open_database(url)), Leases(open_database(url))
    assert one.take("x") and one.take("x") and not two.take("x")
    now[0] += LIVES_S + 1
    assert two.take("x") and not one.take("x")
    two.end()
    assert one.take("x")


def test_share__things_that_are_over__are_given_up(url: str) -> None:
    one = Leases(open_database(url))
    one.renew()
    one.share(["job:1", "job:2"])
    assert one.take("webhooks")
    assert one.share(["job:2"]) == {"job:2"}
    with Session(one.engine) as session:
        names = set(session.exec(select(LeaseRow.name)).all())
    assert names == {"job:2", "webhooks", leases.WORKER + one.me}


@needs_postgresql
def test_three_hubs_on_one_postgresql__one_is_killed__every_job_goes_on(
    hub: HubWorld, server: str, tmp_path: Path
) -> None:
    """Real processes. The jobs wait for hospitals that never connect, so that each look of a
    worker at one of its own is seen in the job's reason; then they are settled as refunds.
    """
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    migrate(engine)
    made = hub.bank.deployment
    folder = tmp_path / "three"
    shared = config.write(
        folder,
        chain=hub.bank.url,
        chain_id=made.chain_id,
        registry=made.registry,
        market=made.market,
        payment_token=made.payment_token,
        superlink="127.0.0.1:1",
        superlink_folder=str(folder / "superlink"),
        database=server,
        fee_bps=FEE_BPS,
    )
    (folder / "keys").mkdir()
    (folder / "keys" / "operator.key").write_text(accounts()[0][1])
    made_jobs = [hub.job(deadline_s=3600)[0] for _ in range(6)]
    with Session(engine) as session, hub.desk.session() as mine:
        for table in (NodeRow, ManifestRow):
            for row in mine.exec(select(table)).all():
                session.merge(table(**row.model_dump()))
        for job in made_jobs:
            session.add(JobRow(**job.model_dump()))
        session.commit()
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(shared.folder)]) for _ in range(3)
    ]
    try:
        _until(lambda: len(_holders(engine)) == 3, "three workers share six jobs", started)
        _until(lambda: sorted(_holders(engine).values()) == [2, 2, 2], "two each", started)
        killed = started[1]
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        _until(lambda: sorted(_holders(engine).values()) == [3, 3], "the others take them", [])
        chain = hub.bank.operator
        chain.rpc("evm_increaseTime", 3700)
        chain.rpc("evm_mine")
        _until(lambda: set(_states(engine)) == {"refunded"}, "all are refunded", [])
    finally:
        for one in started:
            one.kill()
            one.wait()
    escrow = hub.bank.escrow(hub.bank.buyer)
    assert {escrow.job(bytes.fromhex(job.job_id)).status for job in made_jobs} == {"refunded"}
    engine.dispose()


WORKER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from datahub.config import read
from datahub.market import desk, reconcile
from datahub.market.desk import Desk, open_database
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import connect
hub = read(Path(sys.argv[1]))
chain = connect(hub.chain, key=hub.operator_key)
nobody = SimpleNamespace(online_nodes=set, open_runs=lambda job: [])
made = Desk(hub, open_database(hub.database), chain, Registry(chain, hub.registry),
            Escrow(chain, hub.market), Revenue(chain, hub.market), nobody)
made.index.catch_up()
for loop in reconcile.loops(made, drive=True):
    loop.start()
time.sleep(600)
"""


def _holders(engine: object) -> dict[str, int]:
    """Worker -> how many jobs it holds now."""
    with Session(engine) as session:  # type: ignore[arg-type]
        rows = session.exec(select(LeaseRow)).all()
    found: dict[str, int] = {}
    for row in rows:
        if row.name.startswith("job:") and row.until > time.time():
            found[row.holder] = found.get(row.holder, 0) + 1
    return found


def _states(engine: object) -> list[str]:
    with Session(engine) as session:  # type: ignore[arg-type]
        return [row.state for row in session.exec(select(JobRow)).all()]


def _until(true: object, what: str, running: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        assert all(one.poll() is None for one in running), what
        if true():  # type: ignore[operator]
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {WAIT_S:.0f} s: {what}")
