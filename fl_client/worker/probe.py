"""Tries to get through each wall from inside a worker, harmlessly, and says what it got. Knows
nothing of how walls are raised: it would find one that is only claimed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fl_client.worker.tasks import Try

MIB = 1 << 20
MANY = 2000  # processes; a bomb has no end
LARGE = 1 << 36  # bytes of memory: 64 GiB
# where many programs may write
PLACES = [Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/root")]  # noqa: S108
NO_RESERVE = 0x4000  # MAP_NORESERVE: no page of it is touched


def everything(asked: Try) -> dict[str, str]:
    """Wall -> what got through it, in words; "" for nothing."""
    tries: dict[str, Callable[[], str]] = {
        "user": _user,
        "privileges": _privileges,
        "network": lambda: _network(asked.port),
        "files": lambda: _files(Path(asked.secret)),
        "system calls": lambda: _other_process(asked.process),
        "memory": _memory,
        "processor": _processor,
        "disk": _disk,
        "processes": _processes,
    }
    found = dict.fromkeys(tries, "")
    for wall, attempt in tries.items():
        with suppress(OSError):
            found[wall] = attempt()
    return found


def _user() -> str:
    if os.geteuid() == 0:
        return "it is root"
    ctypes.CDLL(None).setuid(0)
    return "it became root" if os.geteuid() == 0 else ""


def _privileges() -> str:
    got = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)  # PR_GET_NO_NEW_PRIVS
    return "" if got == 1 else "a program with set-user-id could give it more"


def _network(port: int) -> str:
    with socket.socket() as connection:
        connection.settimeout(2.0)
        connection.connect(("127.0.0.1", port))
    return f"it reached port {port} of this machine"


def _files(secret: Path) -> str:
    got = []
    for path in (secret, Path("/etc/passwd"), Path("/proc/1/environ")):
        with suppress(OSError):
            path.read_bytes()
            got.append(f"read {path}")
    for folder in sorted({secret.parent, *PLACES} - {Path(tempfile.gettempdir())}):
        beside = folder / f"datahub-probe-{os.getpid()}"
        with suppress(OSError):
            beside.write_text("")
            beside.unlink()
            got.append(f"wrote in {folder}")
    return ", ".join(got)


def _other_process(process: int) -> str:
    got = []
    with suppress(OSError):
        os.kill(process, 0)
        got.append(f"could signal process {process}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, process, None, None) == 0:  # PTRACE_ATTACH
        libc.ptrace(17, process, None, None)
        got.append(f"attached to process {process}")
    if libc.unshare(0x10000000) == 0:
        got.append("made a user namespace")
    return ", ".join(got)


def _memory() -> str:
    mmap.mmap(-1, LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE).close()
    return f"it got {LARGE >> 30} GiB"


def _processor() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or soft == resource.RLIM_INFINITY:
        return "its seconds have no limit"
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard + 1))
        return "it raised its own limit"
    return ""


def _disk() -> str:
    place = Path(tempfile.gettempdir()) / "large"
    try:
        with place.open("wb") as file:
            for _ in range(1024):
                file.write(b"\0" * MIB)
                file.flush()
    finally:
        place.unlink(missing_ok=True)
    return "it wrote a GiB"


def _processes() -> str:
    """Last of all, as its children take a moment to go."""
    children: list[int] = []
    try:
        for _ in range(MANY):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
        return f"it started {MANY} processes"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
