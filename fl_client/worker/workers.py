"""A node's workers: one process for each job, made when it is needed, ended with its job, after an
hour without work, or to make room. Knows nothing of terms, ledgers or messages; imports no torch.

Whatever a worker says is checked here: it has interpreted a buyer's graph, so it may be the buyer's
by now. What it can do then is what the walls leave it: answer wrongly in the right form, or not.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datatokens.errors import TermsError
from datatokens.wire import parse
from fl_client import errors
from fl_client.errors import NodeError, PolicyRefusal, ProtocolError, Refusal
from fl_client.model.weights import from_safetensors
from fl_client.worker.tasks import (
    HEAD,
    MOST_SHOWN,
    Check,
    Checked,
    Data,
    Look,
    No,
    Ready,
    Round,
    Table,
    Tried,
    Try,
    Update,
    cohort,
    folder_of,
    frame,
    read,
)

log = logging.getLogger("datahub.node")

Stop = Callable[[], Exception | None]  # what the work ends with, None to go on
T = TypeVar("T")
KEPT = 3  # workers at a time
IDLE_S = 3600.0
LOOK_S = 0.25
READY_S = 120.0  # for a machine under load to load what trains
SPARE = 1 << 30  # bytes beyond what a job may take: what was not counted
MORE = 1 << 16  # bytes of a reply beyond its parameters
PASSED = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
ENDED = "the process that this hospital gives this job has ended in the middle of its work"


class WorkerEnded(NodeError):
    """A worker died: killed, out of memory or processor time, or by a fault in native code."""


class Zygote:
    """The process that workers are forked from; starts at once, is ready a few seconds later, and
    is started again where it has died.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False

    def start(self) -> None:
        """Start it if it does not run."""
        with self._lock:
            self._started()

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._control:
            return self._control
        ours, theirs = socket.socketpair()
        here = Path(__file__).resolve().parents[2]
        environment = {n: os.environ[n] for n in PASSED if n in os.environ}
        environment |= {"PYTHONPATH": str(here), "OPENBLAS_NUM_THREADS": "1", "USER": "datahub"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fl_client.worker.zygote", str(theirs.fileno())],
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the node, which ends it
            )
        self._control, self._ready = ours, False
        return ours

    def fork(self, bounds: dict[str, object]) -> tuple[socket.socket, int]:
        """(a new worker's socket, a descriptor of its keeper's process). Raises NodeError."""
        with self._lock:
            control = self._started()
            control.settimeout(READY_S)
            try:
                if not self._ready:
                    self._ready = control.recv(1) == b"1"
                ours, theirs = socket.socketpair()
                with theirs:
                    socket.send_fds(control, [json.dumps(bounds).encode()], [theirs.fileno()])
                pid = int.from_bytes(control.recv(8), "big")
                if not self._ready or not pid:
                    raise ConnectionError("it has ended")
                return ours, os.pidfd_open(pid)
            except OSError as error:
                if self._process:
                    self._process.kill()
                raise NodeError(f"no worker can be started: {error}") from error


ZYGOTE = Zygote()


class Worker:
    """One worker. `missing` are the walls that it could not raise."""

    def __init__(
        self,
        *,
        memory: int,
        seconds: int,
        threads: int,
        folders: Sequence[str],
        gpu: bool = True,
    ):
        self.folders = list(folders)
        bounds = {"memory": memory, "seconds": seconds, "threads": threads, "gpu": int(gpu)}
        self._socket, self._keeper = ZYGOTE.fork(bounds | {"folders": self.folders})
        self._socket.setblocking(False)
        self.facts: Facts | None = None  # of the model that it has checked
        self.cohort: object = None  # what the records that it has were made of
        self.used_at = time.monotonic()
        ready = self._read(MORE, [at_most(READY_S, WorkerEnded("a worker does not start"))])
        if not isinstance(ready, Ready):
            raise self.broken("no greeting")
        self.missing: dict[str, str] = _object(ready.missing)

    def ask(self, task: Any, kind: type[T], most: int, stops: Sequence[Stop]) -> T | No:
        """The answer to a task, of at most so many bytes, unless one of `stops` says what to raise
        instead, which ends the worker. Raises WorkerEnded.
        """
        self.tell(task, stops)
        answer = self._read(most, stops)
        if not isinstance(answer, kind | No):
            raise self.broken(f"{type(answer).__name__} for {kind.__name__}")
        self.used_at = time.monotonic()
        return answer

    def tell(self, task: Any, stops: Sequence[Stop]) -> None:
        """A task without an answer."""
        self._look(stops)
        left = memoryview(frame(task))
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._wait(False, stops)
            except OSError as error:
                raise self.broken(str(error)) from error

    def _read(self, most: int, stops: Sequence[Stop]) -> Any:
        length, kind = HEAD.unpack(self._exactly(HEAD.size, stops))
        if length > most:
            raise self.broken(f"an answer of {length} bytes; {most} are the most")
        content = self._exactly(length, stops)
        try:
            return read(kind, content)
        except ProtocolError as error:
            raise self.broken(str(error)) from error

    def _exactly(self, length: int, stops: Sequence[Stop]) -> bytes:
        content = bytearray(length)
        left = memoryview(content)
        while left:
            try:
                more = self._socket.recv_into(left)
            except BlockingIOError:
                self._wait(True, stops)
                continue
            except OSError as error:
                raise self.broken(str(error)) from error
            if not more:
                raise self.broken("it has ended")
            left = left[more:]
        return bytes(content)

    def _wait(self, reading: bool, stops: Sequence[Stop]) -> None:
        """Until the socket may be read or written; looks at `stops` meanwhile."""
        own = [self._socket]
        while not any(select.select(own if reading else [], [] if reading else own, [], LOOK_S)):
            self._look(stops)

    def _look(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            if error := stop():
                self.end()
                raise error

    def broken(self, why: str) -> WorkerEnded:
        """End it, as it has said what no worker says."""
        self.end()
        return WorkerEnded(f"a job's worker has ended: {why}")

    @property
    def ended(self) -> bool:
        """Whether it was killed."""
        return self._keeper < 0

    def end(self) -> None:
        """Kill it with everything that it has started. Again is nothing."""
        if self._keeper >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._keeper, signal.SIGTERM)
            os.close(self._keeper)
            self._keeper = -1
            self._socket.close()


@dataclass(frozen=True)
class Facts:
    """What a node has to know of a model that it never opens: the multiplications of one pass, what
    it does (operation, shape, steps that it takes from) for people, the shapes of its parameters,
    those that stay as they are, the seconds that the job takes (0 for one that was admitted), and
    what it is trained on.
    """

    work: int
    operations: tuple[tuple[str, str, tuple[int, ...]], ...]
    shapes: Mapping[str, tuple[int, ...]]
    frozen: Mapping[str, np.ndarray]
    seconds: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """A job for workers: its id, what is to be checked (asked for where a worker is new), and what
    the hospital gives it; 0 threads are as many as there are processors. Without `gpu` it sees
    none.
    """

    id: str
    check: Callable[[], Check]
    minutes: int
    memory_gb: int
    threads: int = 0
    gpu: bool = True


class Workers:
    """The workers of a node's jobs."""

    def __init__(self) -> None:
        self._of_jobs: OrderedDict[str, Worker] = OrderedDict()
        self._said: dict[str, str] | None = None
        ZYGOTE.start()

    @property
    def missing(self) -> dict[str, str] | None:
        """Wall -> why this machine lacks it; None while no worker was needed."""
        return self._said

    def check(self, job: Job, seconds: float, stops: Sequence[Stop] = ()) -> Facts:
        """Whether a model may be trained, in so many seconds at most. Raises Refusal."""
        late = (
            f"checking this model took longer than the {seconds:.0f} s that this hospital gives it"
        )
        for _ in range(2):  # a machine's own trouble decides nothing
            try:
                worker = self._worker(job, "")
                return self._facts(worker, job, (*stops, at_most(seconds, PolicyRefusal(late))))
            except WorkerEnded as error:
                log.error("job %s: %s", job.id[:12], error)
        # not `from` what was caught: a refusal is made of the job, and says so to the gate
        raise PolicyRefusal("checking this model ended the process that did so, twice")

    def _facts(self, worker: Worker, job: Job, stops: Sequence[Stop]) -> Facts:
        """Of a model that this worker has checked by now. Raises Refusal."""
        if worker.facts is None:
            task = job.check()
            answer = worker.ask(task, Checked, 4 << 20, stops)
            if isinstance(answer, No):
                self.end(job.id)
                # nothing that it was given was anybody's record, so its words may be passed on
                raise _refusal(answer)
            try:
                names, steps = parse(answer.frozen), parse(answer.operations)
            except TermsError as error:
                raise worker.broken(str(error)) from error
            given = from_safetensors(task.weights)
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise worker.broken("names that are none")
            if not set(names) <= set(given) or not 0 <= answer.work <= 1 << 60:
                raise worker.broken(f"frozen {str(names)[:200]}, work={answer.work}")
            if not 0 <= answer.seconds <= 1e9:  # nor what is not a number
                raise worker.broken(f"seconds={answer.seconds}")
            if not isinstance(steps, list) or not all(
                isinstance(one, list) and len(one) == 3 for one in steps[:MOST_SHOWN]
            ):
                raise worker.broken("operations that are none")
            shapes = {name: array.shape for name, array in given.items()}
            frozen = {name: given[name] for name in names}
            worker.facts = Facts(
                answer.work, _shown(steps), shapes, frozen, answer.seconds, answer.device
            )
        return worker.facts

    def train(self, job: Job, data: Data, model: bytes, stops: Sequence[Stop]) -> Update:
        """A round from these parameters; see `_of_cohort`. Raises Refusal."""

        def good(update: Update, facts: Facts) -> bool:
            arrays = from_safetensors(update.model)
            return {name: array.shape for name, array in arrays.items()} == facts.shapes

        return self._of_cohort(job, data, Round(model), Update, good, len(model), stops)

    def look(self, job: Job, data: Data, model: bytes, cells: int, stops: Sequence[Stop]) -> Table:
        """The table of a model's scores; see `_of_cohort`. Raises Refusal."""

        def good(table: Table, _: Facts) -> bool:
            return len(table.scores) == cells

        return self._of_cohort(job, data, Look(model), Table, good, 64 * cells, stops)

    def _of_cohort(
        self,
        job: Job,
        data: Data,
        asked: Any,
        kind: type[T],
        good: Callable[[T, Facts], bool],
        size: int,
        stops: Sequence[Stop],
    ) -> T:
        """What a worker makes of a cohort.

        Whether a worker dies may depend on a record, and must not be seen: where it has died twice
        the answer is that of a cohort with nobody in it, which is noise alone. Only where that one
        ends it as well is the job refused: then nobody's record had to do with it.
        """
        for alone in (False, False, True):
            try:
                worker = self._worker(job, folder_of(data))
                facts = self._facts(worker, job, stops)
                if alone:
                    worker.tell(cohort(data.nobody()), stops)
                    worker.cohort = None
                elif worker.cohort is not data.of or data.of is None:
                    worker.tell(cohort(data), stops)
                    worker.cohort = data.of
                answer = worker.ask(asked, kind, size + MORE, stops)
                if isinstance(answer, No):
                    raise worker.broken(f"{answer.kind} {answer.reason}")
                if not _is(good, answer, facts):
                    raise worker.broken("an answer of another form than was asked for")
            except WorkerEnded as error:
                log.error("job %s: %s", job.id[:12], error)
                continue
            if alone:
                log.error("job %s is answered with noise alone: its worker dies", job.id[:12])
            return answer
        raise ProtocolError(ENDED)

    def _worker(self, job: Job, folder: str) -> Worker:
        """The job's worker: the one that it has, or a new one where that is gone or may not read
        the folder of pictures.
        """
        known = self._of_jobs.pop(job.id, None)
        if known is not None and (known.ended or (folder and folder not in known.folders)):
            known.end()
            known = None
        now = time.monotonic()
        for other, worker in list(self._of_jobs.items()):
            if len(self._of_jobs) >= KEPT or worker.used_at < now - IDLE_S:
                self.end(other)
        if known is None:
            threads = job.threads or os.cpu_count() or 1
            known = Worker(
                memory=2 * job.memory_gb * 10**9 + SPARE,
                seconds=(60 * job.minutes + 600) * threads,
                threads=threads,
                folders=[folder] if folder else [],
                gpu=job.gpu,
            )
            self._say(known.missing)
        self._of_jobs[job.id] = known
        return known

    @property
    def no_walls(self) -> str:
        """Names of the walls that this machine could not raise around the newest worker."""
        return ", ".join(sorted(self._said or {}))

    def _say(self, missing: dict[str, str]) -> None:
        """Once, and when it has changed."""
        if missing != self._said:
            self._said = missing
            for wall, why in missing.items():
                log.warning("no wall around jobs' %s: %s", wall, why)

    def end(self, job: str) -> None:
        """A job is over."""
        if worker := self._of_jobs.pop(job, None):
            worker.end()

    def close(self) -> None:
        """End all."""
        for job in list(self._of_jobs):
            self.end(job)

    def __del__(self) -> None:
        self.close()


def tried(secret: Path, port: int, process: int) -> tuple[dict[str, str], dict[str, str]]:
    """(walls that are missing -> why, wall -> what got through it from inside a new worker)."""
    worker = Worker(memory=SPARE, seconds=600, threads=1, folders=[])
    try:
        answer = worker.ask(Try(str(secret), port, process), Tried, 1 << 16, [])
        if isinstance(answer, No):
            raise NodeError(f"{answer.kind} {answer.reason}")
        return worker.missing, _object(answer.found)
    finally:
        worker.end()


def _is(good: Callable[[T, Facts], bool], answer: T, facts: Facts) -> bool:
    try:
        return good(answer, facts)
    except Refusal:
        return False


def _shown(steps: Sequence[Sequence[Any]]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    def before(i: int, taken: Any) -> tuple[int, ...]:
        whole = taken if isinstance(taken, list) else []
        return tuple(j for j in whole[:MOST_SHOWN] if type(j) is int and -1 <= j < i)

    shown = enumerate(steps[:MOST_SHOWN])
    return tuple((str(a)[:40], str(b)[:80], before(i, taken)) for i, (a, b, taken) in shown)


def at_most(seconds: float, error: Exception) -> Stop:
    """A stop with `error` once so many seconds of wall time are over."""
    end = time.monotonic() + seconds
    return lambda: error if time.monotonic() > end else None


def _object(raw: bytes) -> dict[str, str]:
    try:
        found = parse(raw)
    except TermsError as error:
        raise WorkerEnded(f"a worker's greeting is not understood: {error}") from error
    if not isinstance(found, dict):
        raise WorkerEnded("a worker's greeting is not understood: it is no object")
    return {str(k)[:40]: str(v)[:300] for k, v in found.items()}


def _refusal(answer: No) -> NodeError:
    """What a worker without a cohort has refused by."""
    text = "".join(c if c.isprintable() else " " for c in answer.reason)
    found = getattr(errors, answer.kind, None)
    if isinstance(found, type) and issubclass(found, Refusal):
        return found(text)
    return NodeError("a worker could not check a model; its own lines are above")
