"""What a worker shuts itself in with before it is given anything: each wall that the machine has is
raised, each that it has not is named. Knows nothing of jobs, models or records.

The order matters: a namespace of processes begins with the next child, so `apart` is called before
the fork and `shut` after it, in the child, which cannot take any of it back.
"""

from __future__ import annotations

import os
import resource
import site
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_client.worker import kernel

NOBODY = 65534
# one of them is hidden behind scratch, /tmp first: some programs know no other place
HIDDEN = tuple(Path(name) for name in ("/tmp", "/var/tmp", "/mnt", "/media"))  # noqa: S108
MIB = 1 << 20
SCRATCH_BYTES = 512 * MIB  # of memory that stands for a disk: a compiler's files
MOST_FILES = 1024  # open at once
SPARE_PROCESSES = 48  # besides the threads that train: compilers
SYSTEM = tuple(
    Path(name)
    for name in (
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/dev/urandom",
        "/dev/random",
        "/dev/zero",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/sys/devices/system/cpu",
    )
)
GPU = tuple(Path(name) for name in ("/proc/driver/nvidia", "/proc/devices", "/sys/bus/pci"))
WALLS = {
    "user": "an ordinary user of the machine, without capabilities",
    "privileges": "no new privileges, whatever is executed",
    "network": "a network of its own with nothing in it, and no sockets",
    "files": "reads programs and its own cohort's pictures; writes to its scratch memory alone",
    "processes": "sees no process but its own, and may start few",
    "system calls": "none that looks into other processes, mounts, or loads into the kernel",
    "memory": "a limit",
    "processor": "a limit of seconds",
    "disk": "scratch in memory, with a limit; files of a limited size",
}


@dataclass(frozen=True)
class Bounds:
    """What a worker may use: bytes of memory, seconds of all processors together, threads,
    folders that it may read besides the programs, and graphics processors.
    """

    memory: int
    seconds: int
    threads: int
    folders: tuple[Path, ...] = ()
    gpu: bool = True


def programs() -> tuple[Path, ...]:
    """Where Python, its packages and this package are."""
    here = Path(__file__).resolve().parents[2]
    found = [here / "fl_client", here / "datatokens", Path(sys.prefix), Path(sys.base_prefix)]
    return tuple(dict.fromkeys([*found, *(Path(p) for p in site.getsitepackages())]))


def apart(folders: tuple[Path, ...]) -> tuple[Path, dict[str, str]]:
    """Namespaces of this process's own; its next child lives in them. Where its scratch is, in
    memory if it can be, and wall -> what is missing, for those that could not be raised.
    """
    missing: dict[str, str] = {}
    if os.getuid() == 0:
        if _reachable_by_nobody():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self is not its own
        else:
            missing["user"] = (
                "the node runs as root from a folder that others cannot read: run it as a user of "
                "its own"
            )
            os.setresuid(NOBODY, 0, 0)  # processes are counted by the first of these ids
    ids = os.geteuid(), os.getegid()
    rest = kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS | kernel.NEW_PIDS | kernel.NEW_MOUNTS
    try:
        kernel.unshare(kernel.NEW_USER | rest)
        kernel.own_user(*ids)
    except OSError as error:
        why = f"this machine allows no user namespaces ({error})"
        missing |= {"processes": why, "disk": why}
        return Path(tempfile.mkdtemp(prefix="datahub-worker-")), missing
    needed = [place.resolve() for place in (*programs(), *folders)]
    free = [p for p in HIDDEN if p.is_dir() and not any(n.is_relative_to(p) for n in needed)]
    try:
        kernel.mount_scratch(free[0], SCRATCH_BYTES)
    except (OSError, IndexError) as error:
        missing["disk"] = f"scratch is on the disk ({error})"
        return Path(tempfile.mkdtemp(prefix="datahub-worker-")), missing
    return free[0], missing


def threads_of_others() -> int:
    """Threads that count against this user's limit besides a worker's own: none in a user namespace
    of its own, from Linux 5.14 on; on others all that the user runs. Before `apart`.
    """
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    if (major, minor) >= (5, 14) and _has_namespaces():
        return 0
    user, found = (NOBODY if os.getuid() == 0 else os.getuid()), 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended meanwhile
            continue
        if int(lines["Uid"].split()[0]) == user:
            found += int(lines.get("Threads", "1"))
    return found


def shut(scratch: Path, bounds: Bounds, others: int) -> dict[str, str]:
    """Every wall that this process can raise around itself and its children; `others` are threads
    of the same user that count as well. Wall -> what is missing.
    """
    missing: dict[str, str] = {}

    def wall(name: str, *raising: Callable[[], object]) -> None:
        try:
            for one in raising:
                one()
        except (OSError, ValueError) as error:
            missing[name] = str(error)

    wall("disk", lambda: _limit(resource.RLIMIT_FSIZE, SCRATCH_BYTES))
    wall(
        "processes",
        lambda: _limit(resource.RLIMIT_NPROC, others + bounds.threads + SPARE_PROCESSES),
        lambda: _limit(resource.RLIMIT_NOFILE, MOST_FILES),
        lambda: _limit(resource.RLIMIT_CORE, 0),
    )
    wall("memory", lambda: _limit(resource.RLIMIT_DATA, _data_bytes() + bounds.memory))
    wall("processor", lambda: _limit(resource.RLIMIT_CPU, bounds.seconds))
    wall("user", kernel.drop_capabilities)
    wall("privileges", lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
    null = Path("/dev/null")
    cards = tuple(Path("/dev").glob("nvidia*"))
    readable = (*SYSTEM, *GPU, *programs(), *bounds.folders)
    wall("files", lambda: kernel.landlock(readable, (scratch, null, *cards)))
    wall("network", kernel.forbid_system_calls)
    if "network" in missing:
        missing["system calls"] = missing["network"]
    return missing


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def _data_bytes() -> int:
    """Private memory of this process, as RLIMIT_DATA counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _has_namespaces() -> bool:
    """Whether this machine gives a user namespace. Tried in a child."""
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.NEW_USER)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _reachable_by_nobody() -> bool:
    """Whether a user without rights can read what has to be read. Tried in a child."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        places = [Path(__file__), Path(os.__file__), *programs()]
        os._exit(0 if all(os.access(place, os.R_OK) for place in places) else 1)
    return os.waitpid(child, 0)[1] == 0
