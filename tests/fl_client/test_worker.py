"""The walls around a job, tried from inside, and the parent that believes nothing that comes out.
Everything runs on real processes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_client.errors import ProtocolError
from fl_client.model.weights import from_safetensors, to_safetensors
from fl_client.node.admission import admit, work_of
from fl_client.node.rounds import evaluate, train
from fl_client.office.cli import node
from fl_client.protocol import Refused, Signed, Trained, pack, sha256_hex
from fl_client.worker import walls, workers, zygote
from fl_client.worker.tasks import HEAD, Check, Data, Look, No, Round, Table, Update, frame
from fl_client.worker.walls import WALLS
from fl_client.worker.workers import Facts, Job, Worker, Workers, tried
from tests.clinic import GRAPH, WEIGHTS, Clinic, accepted, refusal, weights

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the walls are the Linux kernel's")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """A worker beside a secret file, a listening port and this process, tries everything."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "node.key").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        return tried(folder / "node.key", server.getsockname()[1], os.getpid())


@LINUX
@pytest.mark.parametrize("wall", WALLS)
def test_wall__tried_from_inside__holds_or_was_said_to_be_missing(
    wall: str, found: tuple[dict[str, str], dict[str, str]]
) -> None:
    missing, through = found
    assert not through[wall] or wall in missing, through[wall]


@LINUX
def test_walls_that_every_kernel_has__are_never_missing(
    found: tuple[dict[str, str], dict[str, str]],
) -> None:
    missing, through = found
    everywhere = {"privileges", "network", "system calls", "memory", "processor"}
    assert not everywhere & set(missing)
    assert set(through) == set(WALLS)


@LINUX
def test_node_walls__prints_each_wall_and_fails_where_one_does_not_hold(clinic: Clinic) -> None:
    done = CliRunner().invoke(node, ["walls", str(clinic.folder), "--json"])
    lines = json.loads(done.output)
    assert set(lines) == set(WALLS)
    assert done.exit_code == int(not all(line["holds"] for line in lines.values()))
    table = CliRunner().invoke(node, ["walls", str(clinic.folder)])
    assert all(wall in table.output for wall in WALLS)


@pytest.fixture
def job(clinic: Clinic) -> Iterator[tuple[Workers, Job, Data]]:
    room = clinic.room()
    entry, records = room.datasets[0], next(iter(room.records.values()))
    spec = clinic.spec()
    work = work_of(room, "ab" * 32, spec, entry, lambda: (GRAPH, WEIGHTS), 3600.0)
    yield room.workers, work, Data(*records.inputs(spec.loss), records.patients, of=records)
    room.workers.close()


def test_worker__is_told_a_job_and_a_cohort__and_holds_no_key_chain_ledger_or_environment(
    job: tuple[Workers, Job, Data],
) -> None:
    """The process that workers are made of has never imported or been given any of them."""
    workers.ZYGOTE.start()
    zygote = workers.ZYGOTE._process
    assert zygote is not None
    environment = Path(f"/proc/{zygote.pid}/environ").read_bytes().split(b"\0")
    names = {one.partition(b"=")[0].decode() for one in environment if one}
    assert names <= {*workers.PASSED, "PYTHONPATH", "OPENBLAS_NUM_THREADS", "USER"}
    open_files = [os.readlink(p) for p in Path(f"/proc/{zygote.pid}/fd").iterdir()]
    assert not [f for f in open_files if "ledger" in f or ".key" in f or ".sqlite" in f]


def test_what_a_worker_imports__is_no_chain_no_ledger_and_no_connection() -> None:
    code = (
        "import sys, fl_client.worker.serve\n"
        "bad = {'web3', 'sqlite3', 'httpx', 'flwr', 'fl_client.node', 'fl_client.privacy.ledger',"
        " 'datatokens.chain'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@LINUX
def test_threads_of_others__without_namespaces__are_all_that_the_user_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit of processes counts the user's others there: a worker must be able to train."""
    monkeypatch.setattr(walls, "_has_namespaces", lambda: False)
    monkeypatch.setattr(walls, "NOBODY", os.getuid())
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(str, range(9)))
        assert walls.threads_of_others() >= 4


def test_policy__threads__are_what_a_worker_gets(clinic: Clinic) -> None:
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace("threads = 0 ", "threads = 3 "))
    room = clinic.room()
    work = work_of(room, "cd" * 32, clinic.spec(), room.datasets[0], lambda: (GRAPH, WEIGHTS))
    room.workers.check(work, 60)
    (worker,) = children_of(pid_of(room.workers._of_jobs[work.id]))
    limits = Path(f"/proc/{worker}/limits").read_text()
    (line,) = [one for one in limits.splitlines() if one.startswith("Max cpu time")]
    assert int(line.split()[3]) == (60 * 240 + 600) * 3


def test_policy__no_gpu__its_workers_see_none(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = clinic.folder / "node.toml"
    asked, fork = [], workers.ZYGOTE.fork

    def watched(bounds: dict[str, Any]) -> Any:
        asked.append(bounds["gpu"])
        return fork(bounds)

    monkeypatch.setattr(workers.ZYGOTE, "fork", watched)
    for number, line in enumerate(("gpu = true ", "gpu = false ")):
        toml.write_text(toml.read_text().replace("gpu = true ", line))
        room = clinic.room()
        job = f"{number}{'e' * 63}"
        work = work_of(room, job, clinic.spec(), room.datasets[0], lambda: (GRAPH, WEIGHTS))
        assert room.workers.check(work, 60).device == "cpu", "said before a record was seen"
    assert asked == [1, 0]


def test_zygote__workers_that_have_ended__leave_nothing_that_it_would_signal() -> None:
    """Numbers of processes are given out again: at its own end it must not signal a stranger."""
    source = Path(zygote.__file__).read_text()
    assert "os.kill(process" not in source and "os.kill(keeper" not in source
    counts = []
    for _ in range(3):
        for _ in range(4):
            Worker(memory=1 << 30, seconds=60, threads=1, folders=[]).end()
        time.sleep(0.5)
        Worker(memory=1 << 30, seconds=60, threads=1, folders=[]).end()  # which looks at the others
        assert workers.ZYGOTE._process is not None
        counts.append(len(list(Path(f"/proc/{workers.ZYGOTE._process.pid}/fd").iterdir())))
    assert counts[-1] <= counts[0] + 1, counts


def pid_of(worker: Worker) -> int:
    """Of the worker's keeper."""
    text = Path(f"/proc/self/fdinfo/{worker._keeper}").read_text()
    return int(text.split("Pid:")[1].split()[0])


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_inside(worker: Worker) -> None:
    """As the kernel does for want of memory, or a fault in native code."""
    (child,) = children_of(pid_of(worker))
    os.kill(child, signal.SIGKILL)


def test_worker_dies_in_between__another_one_trains_and_the_round_is_real(
    job: tuple[Workers, Job, Data],
) -> None:
    made, work, data = job
    made.check(work, 60)
    kill_inside(made._of_jobs[work.id])
    update = made.train(work, data, WEIGHTS, [])
    assert set(from_safetensors(update.model)) == set(weights())


def test_check_that_overflows_the_native_stack__costs_its_own_job_only(clinic: Clinic) -> None:
    """100,000 brackets: whatever it does to a parser, the node goes on."""
    bomb = b"[" * 100_000 + b"]" * 100_000
    spec = clinic.spec(graph_hash=sha256_hex(bomb))
    terms = clinic.paid(spec)
    room = clinic.room()
    answer = admit(room, terms.to_json(), bomb, WEIGHTS)
    assert isinstance(answer, Refused) and answer.signature
    good = clinic.paid()
    assert isinstance(admit(room, good.to_json(), GRAPH, WEIGHTS), Signed)


def test_check_kills_its_worker_twice__fixed_signed_refusal_and_the_next_job_is_served(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Worker.ask

    def dies(self: Worker, task: Any, *rest: Any) -> Any:
        if isinstance(task, Check):
            kill_inside(self)
        return ask(self, task, *rest)

    monkeypatch.setattr(Worker, "ask", dies)
    said = refusal(clinic, clinic.paid())
    assert said == "checking this model ended the process that did so, twice"
    monkeypatch.undo()
    accepted(clinic)


def test_rounds_kill_every_worker_that_has_records__noise_alone_is_released_and_nothing_told(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph that crashed by one patient's value would else say whether that patient is there."""
    job = accepted(clinic, rounds=1).job_id.hex()
    room, ask, asked = clinic.room(), Worker.ask, []

    def dies(self: Worker, task: Any, *rest: Any) -> Any:
        if isinstance(task, Round):
            asked.append(self)
            if self.cohort is not None:
                kill_inside(self)
        return ask(self, task, *rest)

    monkeypatch.setattr(Worker, "ask", dies)
    with caplog.at_level(logging.ERROR):
        reply = train(room, job, 1, weights())
    assert isinstance(reply, Trained) and len(asked) == 3
    assert set(from_safetensors(reply.model)) == set(weights())
    assert "answered with noise alone" in caplog.text

    def always_dies(self: Worker, task: Any, *rest: Any) -> Any:
        if isinstance(task, Look):
            kill_inside(self)
        return ask(self, task, *rest)

    monkeypatch.setattr(Worker, "ask", always_dies)
    with pytest.raises(ProtocolError, match="has ended in the middle of its work"):
        evaluate(clinic.room(), job, weights())


class Liar:
    """A worker that answers what it likes, in place of a real one's socket."""

    def __init__(self, *answers: bytes):
        self.theirs, ours = socket.socketpair()
        ours.setblocking(False)
        self.worker = object.__new__(Worker)
        # a process that may be ended: whatever goes wrong here must not end the tests' own
        self.keeper = subprocess.Popen(["sleep", "600"])
        self.worker._socket, self.worker._keeper = ours, os.pidfd_open(self.keeper.pid)
        self.worker.folders, self.worker.cohort, self.worker.facts = [], None, None
        self.worker.used_at, self.worker.missing = time.monotonic(), {}
        for answer in answers:
            self.theirs.sendall(answer)


NAN = pack(Update(WEIGHTS, 0.5)).replace(b"0.5", b"NaN")
SHAPES = {name: array.shape for name, array in weights().items()}
LIES = {
    "another kind": frame(Table((1.0,))),
    "a kind that there is not": HEAD.pack(0, 200),
    "no message": HEAD.pack(3, 4) + b"abc",
    "a length beyond everything": HEAD.pack(1 << 60, 4),
    "JSON 1,000 deep": HEAD.pack(2004, 4) + (2000).to_bytes(4, "big") + b"[" * 1000 + b"]" * 1000,
    "parameters that are none": frame(Update(b"x" * 20, 0.5)),
    "other shapes": frame(
        Update(to_safetensors({n: np.zeros((9, 9), np.float32) for n in SHAPES}), 0.5)
    ),
    "a number that is not finite": HEAD.pack(len(NAN), 4) + NAN,
    "a refusal with a text about somebody": frame(No("PolicyRefusal", "Jane Doe is in here")),
}


@pytest.mark.parametrize("lie", LIES)
def test_worker_answers_rubbish__ends_it_and_nothing_of_it_is_passed_on(
    lie: str, monkeypatch: pytest.MonkeyPatch, clinic: Clinic, job: tuple[Workers, Job, Data]
) -> None:
    made, work, data = job
    liars = []

    def lying(*_: Any, **__: Any) -> Worker:
        liar = Liar(LIES[lie])
        liar.worker.facts = Facts(1, (), SHAPES, {})
        liars.append(liar)
        return liar.worker

    monkeypatch.setattr(workers, "Worker", lying)
    with pytest.raises(ProtocolError) as told:
        made.train(work, data, WEIGHTS, [])
    assert str(told.value) == workers.ENDED
    assert len(liars) == 3 and all(liar.worker.ended for liar in liars)
    assert [liar.keeper.wait(10) for liar in liars] == [-signal.SIGTERM] * 3
