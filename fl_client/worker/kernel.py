"""Linux system calls that Python 3.11 has no name for: namespaces, capabilities, Landlock, seccomp.
Knows nothing of workers and decides nothing. Every function raises OSError where the kernel says
no; on other systems than Linux all of them do.

Sources: unshare(2), capset(2), landlock(7), seccomp(2), linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET, NEW_CGROUP = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
    0x02000000,
)
EVERY_NAMESPACE = 0x7E020000
SIGKILL = 9
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 1 << 18


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "this is not Linux")
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc(), name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int, third: int = 0) -> None:
    """prctl(2)."""
    _call("prctl", option, *(ctypes.c_ulong(v) for v in (value, third, 0, 0)))


def unshare(flags: int) -> None:
    """Namespaces of this process's own; processes' (NEW_PIDS) begins with its next child."""
    _call("unshare", ctypes.c_int(flags))


def own_user(uid: int, gid: int) -> None:
    """In a new user namespace: the same ids as outside, and no others."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text)


def mount_scratch(folder: Path, size: int) -> None:
    """In new mount and user namespaces: `size` bytes of memory instead of a disk at `folder`."""
    _call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    data = f"size={size},mode=1777".encode()
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV)
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", flags, data)


def drop_capabilities() -> None:
    """None left, and none to come back by executing a file."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:  # beyond the last one, or not there to begin with
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


# -- Landlock --------------------------------------------------------------------------------------

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL = 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # of access to files that a version knows; later ones 16


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fs", "net", "scoped")]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Leave this process and its children these files and folders, with what is beneath them, and
    no others; no TCP, and no signal or abstract socket to the outside where the kernel knows how.
    Needs no_new_privs. Returns the version of Landlock that the kernel has.
    """
    version = _call("syscall", 444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    known = (1 << _FS_BITS.get(version, 16)) - 1
    rules = _Ruleset(known, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24)
    ruleset = _call("syscall", 444, ctypes.byref(rules), size, ctypes.c_uint32(0))
    try:
        for paths, access in ((readable, READ), (writable, known & ~EXECUTE | READ)):
            for path in paths:
                _allow(ruleset, path, access & known)
        _call("syscall", 446, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = _Beneath(access if path.is_dir() else access & _OF_FILES, place)
        _call("syscall", 445, ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.byref(rule), 0)
    finally:
        os.close(place)


# -- seccomp ---------------------------------------------------------------------------------------

# name -> its number on x86_64 and on aarch64 (None: it has none)
FORBIDDEN: Mapping[str, tuple[int | None, int]] = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "pidfd_getfd": (438, 438),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "setuid": (105, 146),
    "setreuid": (113, 145),
    "setresuid": (117, 147),
    "setfsuid": (122, 151),
    "acct": (163, 89),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "sethostname": (170, 161),
}
_CLONE, _CLONE3 = (56, 220), 435
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


class _Step(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step))]


def forbid_system_calls() -> None:
    """Answer FORBIDDEN with EPERM, and every way to a new namespace, for this process and its
    children. Needs no_new_privs.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    audit, column = _ARCHITECTURES[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_ABOVE, 0, 1, 0x40000000),  # the x32 numbers of the same calls
        refuse,
        # its flags are behind a pointer; without it the C library takes clone
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for numbers in FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            steps += [(_EQUAL, 0, 1, number), refuse]
    steps += [
        (_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, 16),
        (_ANY_BIT, 0, 1, EVERY_NAMESPACE),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = (_Step * len(steps))(*(_Step(*step) for step in steps))
    pointer = ctypes.byref(_Program(len(steps), program))
    _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(2), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))
