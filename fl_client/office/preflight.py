"""What a machine needs to run a node, tried one by one, each with what was found and what to do.
Dials out to the hub, the SuperLink and the chain as the node will; changes nothing. Knows nothing
of jobs or datasets.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from datatokens.chain.connection import connect
from datatokens.errors import BankError, TermsError
from datatokens.wire import parse
from fl_client.errors import NodeError
from fl_client.node.config import NodeConfig
from fl_client.node.policy import Policy
from fl_client.node.skew import clock_problem
from fl_client.node.turns import trusting
from fl_client.worker.workers import tried

T = TypeVar("T")
OK, WARNING, FAILED = "ok", "warning", "failed"
PATIENCE_S = 20.0  # for each party, whatever it sends however slowly
MOST_BYTES = 1 << 20  # of what a hub says of the network
GB = 10**9
LEAST_DISK, GOOD_DISK = GB, 20 * GB
LEAST_MEMORY, OWN_MEMORY = 2 * GB, 2 * GB
LEAST_PYTHON = (3, 11)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# wall -> what raises it
RAISES = {
    "user": "run the node as a user of its own, and not as root",
    "processes": "allow user namespaces (sysctl user.max_user_namespaces, and "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, its seccomp profile)",
    "files": "run a Linux from 5.13 on with Landlock (lsm=...,landlock)",
    "network": "run on Linux on x86-64 or ARM64 with seccomp filters",
}
RAISES |= {"disk": RAISES["processes"], "system calls": RAISES["network"]}


@dataclass(frozen=True)
class Check:
    """One thing that was tried: ok, warning or failed, what was found, and what to do ("" where
    nothing).
    """

    name: str
    result: str
    found: str
    do: str = ""


def within(seconds: float, question: Callable[[], T]) -> T:
    """The answer to a question that may take for ever. Raises TimeoutError."""
    answers: list[T] = []
    problems: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:  # noqa: BLE001 raised again, by whoever waits
            problems.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if problems:
        raise problems[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answers[0]


def preflight(config: NodeConfig) -> list[Check]:
    """Every check, in the order in which they are shown. Never raises what a machine or a party
    does wrong.
    """
    superlink_says, chain_says = superlink(config), chain(config)
    return [
        python(sys.version_info[:3]),
        clock(config, superlink_says.result != FAILED, chain_says.result != FAILED),
        disk(shutil.disk_usage(config.folder).free),
        memory(machine_memory(), _largest(config)),
        gpu(),
        hub(config),
        superlink_says,
        chain_says,
        walls(config.folder),
    ]


# -- the machine -----------------------------------------------------------------------------------


def python(version: tuple[int, ...]) -> Check:
    """Is this Python new enough, on a system that has walls?"""
    found = f"{'.'.join(map(str, version))} ({sys.executable}) on {platform.system()}"
    if version < LEAST_PYTHON:
        return Check("python", FAILED, found, "install Python 3.11 or newer")
    if platform.system() != "Linux":
        return Check("python", WARNING, found, "run the node on Linux: others have no walls")
    return Check("python", OK, found)


def clock(config: NodeConfig, superlink_answers: bool, chain_answers: bool) -> Check:
    """Is this machine's clock right, as the SuperLink and the chain see it?"""
    if not superlink_answers and not chain_answers:
        do = "put the two below right, and see that NTP is on (timedatectl)"
        return Check("clock", WARNING, "neither the SuperLink nor the chain says the time", do)
    try:
        newest = within(PATIENCE_S, lambda: connect(config.chain).newest_block_time())
    except (BankError, TimeoutError):
        newest = None
    where = config.superlink if superlink_answers else "127.0.0.1:0"
    if wrong := clock_problem(where, newest):
        return Check("clock", FAILED, wrong, "timedatectl set-ntp true, or your own time server")
    return Check("clock", OK, "as the others'")


def disk(free: int) -> Check:
    """Is there room for the ledger, snapshots and models?"""
    found = f"{free / GB:.1f} GB are free"
    if free < LEAST_DISK:
        return Check("disk", FAILED, found, "free some, or move the folder to another disk")
    if free < GOOD_DISK:
        do = f"{GOOD_DISK / GB:.0f} GB hold a full inbox of large models"
        return Check("disk", WARNING, found, do)
    return Check("disk", OK, found)


def memory(there: int, job_gb: int) -> Check:
    """Is there memory for one job as large as the policy allows?"""
    found = f"{there / GB:.1f} GB, jobs may take {job_gb} GB"
    if there < LEAST_MEMORY:
        return Check("memory", FAILED, found, f"give the machine {LEAST_MEMORY // GB} GB or more")
    if there < job_gb * GB + OWN_MEMORY:
        do = "give it more, or lower max_memory_gb in node.toml"
        return Check("memory", WARNING, found, do)
    return Check("memory", OK, found)


def machine_memory() -> int:
    """Bytes that this process may have: the machine's, or the container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        said = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(said)) if said.isdecimal() else machine


def _largest(config: NodeConfig) -> int:
    policies: list[Policy] = [config.policy, *config.policies.values()]
    return max(policy.max_memory_gb for policy in policies)


def gpu() -> Check:
    """What jobs will train on. None is no fault."""
    import torch

    if torch.cuda.is_available():
        return Check("gpu", OK, str(torch.cuda.get_device_name()))
    if Path("/proc/driver/nvidia").exists():
        do = "install the driver that this build of PyTorch wants, or jobs train on processors"
        return Check("gpu", WARNING, "an NVIDIA driver is there, and PyTorch sees no GPU", do)
    return Check("gpu", OK, f"none: jobs train on {os.cpu_count()} processors")


def walls(folder: Path) -> Check:
    """Which walls around jobs does this machine have, and do they hold?"""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            key = (folder / "keys" / "node.key").resolve()
            missing, through = tried(key, server.getsockname()[1], os.getpid())
    except (NodeError, OSError) as error:
        return Check("walls", FAILED, f"no worker can be tried: {error}", "see the lines above")
    broken = {wall: got for wall, got in through.items() if got}
    if not broken and not missing:
        return Check("walls", OK, f"all {len(through)} hold")
    lacking = list(dict.fromkeys([*broken, *missing]))
    do = "; ".join(dict.fromkeys(RAISES[wall] for wall in lacking if wall in RAISES))
    found = "; ".join(
        f"{wall}: {broken.get(wall, 'holds')}{f' ({missing[wall]})' if wall in missing else ''}"
        for wall in lacking
    )
    return Check("walls", FAILED if broken else WARNING, found, do or "see datahub node walls")


# -- whom it dials ---------------------------------------------------------------------------------


def hub(config: NodeConfig) -> Check:
    """Does the hub answer over TLS, and name the same network as node.toml?"""
    host = urlsplit(config.hub).hostname or config.hub

    def ask() -> Mapping[str, Any]:
        from fl_client.node import gate  # which loads torch: commands that only look start fast

        gate.document("GET", "/api/v1/network")
        url = f"{config.hub.rstrip('/')}/api/v1/network"
        content = b""
        with httpx.stream("GET", url, timeout=PATIENCE_S) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError("a longer answer than any hub gives")
        found = parse(content)
        if not isinstance(found, dict):
            raise ValueError("an answer that no hub gives")
        return found

    try:
        said = within(PATIENCE_S, ask)
    except (httpx.HTTPError, httpx.InvalidURL, TermsError, ValueError, OSError) as error:
        return Check("hub", FAILED, _why(config.hub, error), _let_out(host, error))
    names = ("chain_id", "registry", "market", "payment_token", "superlink")
    other = [
        name for name in names if str(said.get(name)).lower() != str(getattr(config, name)).lower()
    ]
    if other:
        # another way to the SuperLink may be the hospital's own
        result = WARNING if other == ["superlink"] else FAILED
        found = f"{config.hub} names another {', '.join(other)} than node.toml"
        return Check("hub", result, found, "compare both with your contract, and ask the operator")
    return _unless_open("hub", config.hub, "answers, and names the same network")


def superlink(config: NodeConfig) -> Check:
    """Does the SuperLink answer with the certificate of its operator's authority?"""
    host, _, port = config.superlink.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 2**16:
        found = f"superlink={config.superlink!r:.100} is not host:port"
        return Check("superlink", FAILED, found, "put it right in node.toml")
    try:
        context = trusting(config.ca_file)
    except OSError as error:
        do = "put back the ca_certificate that the hub shows at /api/v1/network"
        return Check("superlink", FAILED, f"{config.ca_file.name} is no certificate: {error}", do)

    def dial() -> str:
        with (
            socket.create_connection((host, int(port)), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secret,
        ):
            return str(secret.version())

    try:
        version = within(PATIENCE_S, dial)
    except (OSError, ValueError) as error:
        found = _why(config.superlink, error)
        return Check("superlink", FAILED, found, _let_out(config.superlink, error))
    return Check("superlink", OK, f"{config.superlink} answers by {version}, with its own CA")


def chain(config: NodeConfig) -> Check:
    """Does the chain connection answer, and is it the chain that node.toml names?"""
    host = urlsplit(config.chain).netloc or config.chain
    try:
        found = within(PATIENCE_S, lambda: connect(config.chain).chain_id)
    except (BankError, OSError) as error:
        return Check("chain", FAILED, _why(config.chain, error), _let_out(host, error))
    if found != config.chain_id:
        said = f"{config.chain} is chain {found}; node.toml says chain_id={config.chain_id}"
        return Check("chain", FAILED, said, "name a connection to that chain in node.toml")
    return _unless_open("chain", config.chain, f"answers as chain {found}")


def _unless_open(name: str, url: str, found: str) -> Check:
    """Fine, unless what is said there can be read and changed on the way."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        do = "name it by https:// in node.toml, or be sure of every machine on the way"
        return Check(name, WARNING, f"{url} {found}, and is not encrypted", do)
    return Check(name, OK, f"{url} {found}")


def _why(where: str, error: Exception) -> str:
    """What went wrong, in one line of bounded length."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text if where in text else f"{where}: {text}"


def _let_out(host: str, error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(cause):
            return (
                f"have the firewall leave TLS to {host} unopened; its certificate is not the one "
                "that was to be expected"
            )
        cause = cause.__cause__ or cause.__context__
    return f"have the firewall let TCP out to {host}, and see that its name is known (DNS)"
