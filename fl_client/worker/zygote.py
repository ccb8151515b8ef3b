"""The process that workers are made of: it has loaded everything that trains, and nothing else, and
forks one child for each worker that it is asked for. Knows nothing of jobs.

    python -m fl_client.worker.zygote DESCRIPTOR

The node starts it with an empty environment and one socket, before anything is asked of it, so
that neither it nor what comes of it has ever held a key, an open ledger or a connection. Between it
and each worker stands a keeper, which lives outside the walls only to end the worker, with all that
the worker has started, when the node says so or is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from datatokens.terms import canonical_json
from datatokens.wire import parse
from fl_client.worker import kernel, walls
from fl_client.worker.tasks import Ready, frame

MOST_SAID = 16 * 1024  # bytes of a worker's messages that are passed on to the node's log


def main() -> None:
    """Fork a worker for every socket that comes; end when the node has."""
    control = socket.socket(fileno=int(sys.argv[1]))
    import_module("fl_client.worker.serve")  # everything heavy, once
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    control.sendall(b"1")
    # by handle, not by number: a number is somebody else's once its process is gone
    keepers: list[int] = []
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not asked:
            for keeper in keepers:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    signal.pidfd_send_signal(keeper, signal.SIGTERM)
            return
        child = os.fork()
        if child == 0:
            for keeper in keepers:
                os.close(keeper)
            control.close()
            _keep(socket.socket(fileno=descriptors[0]), _bounds(parse(asked)))
        keepers = [keeper for keeper in keepers if _lives(keeper)]
        with suppress(ProcessLookupError):
            keepers.append(os.pidfd_open(child))
        os.close(descriptors[0])
        control.sendall(child.to_bytes(8, "big"))


def _bounds(asked: dict[str, Any]) -> walls.Bounds:
    memory, seconds, threads = (int(asked[name]) for name in ("memory", "seconds", "threads"))
    folders = tuple(map(Path, asked["folders"]))
    return walls.Bounds(memory, seconds, threads, folders, bool(asked["gpu"]))


def _lives(process: int) -> bool:
    """Whether the process of this handle runs; the handle is closed where it does not."""
    looked = select.poll()
    looked.register(process, select.POLLIN)
    if looked.poll(0):
        os.close(process)
        return False
    return True


def _keep(connection: socket.socket, bounds: walls.Bounds) -> None:
    """The keeper of a worker: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    others = walls.threads_of_others()
    scratch, missing = walls.apart(bounds.folders)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    said, says = os.pipe()
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(said)
        _work(connection, scratch, missing, says, bounds, others)
    connection.close()
    os.close(says)

    def stop(number: int, where: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(worker, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() == 1:  # the zygote was gone before this one listened
        stop(0, None)
    _pass_on(said)
    _, status = os.waitpid(worker, 0)
    if "disk" in missing:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0 if os.WIFEXITED(status) else 1)


def _pass_on(said: int) -> None:
    """What a worker writes about itself, in plain characters, up to a limit."""
    left = MOST_SAID
    while more := os.read(said, 4096):
        text = "".join(c if c.isprintable() or c == "\n" else " " for c in more.decode("latin-1"))
        os.write(2, text[:left].encode())
        left = max(0, left - len(text))


def _work(
    connection: socket.socket,
    scratch: Path,
    missing: dict[str, str],
    says: int,
    bounds: walls.Bounds,
    others: int,
) -> None:
    """The worker: raises its walls, says which are missing, and serves. Never returns."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard, place in ((0, null), (1, says), (2, says)):
        os.dup2(place, standard)
    own = os.dup2(connection.fileno(), 3)
    os.closerange(4, walls.MOST_FILES)
    os.chdir(scratch)
    tempfile.tempdir = str(scratch)
    for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(scratch)
    if not bounds.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for
    form = "%(asctime)s %(name)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, force=True)
    missing = missing | walls.shut(scratch, bounds, others)
    served = socket.socket(fileno=own)
    served.sendall(frame(Ready(canonical_json(missing))))
    from fl_client.worker.serve import serve

    serve(served, bounds.threads)
    os._exit(0)


if __name__ == "__main__":
    main()
