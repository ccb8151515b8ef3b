"""What a round costs beside training: stock Flower and our SuperLink, in one run.

    python -m tests.benchmarks.round [--quick] [--json FILE]

Four nodes, TLS, node authentication, a model of 100 KB of random numbers both ways, nothing
trained. Stock Flower is started as its manual says (subprocess isolation). `round_s` are medians;
`superlink_cpu_s` is CPU of the SuperLink's process and its children per round, the run's start
included; `start_s` goes from the order of a run to the first answer of all nodes; `wakeup_s` is a
whole round after three seconds in which nothing was said. Idle nodes: four real ones, then 16 and
100 that are threads of this process, each with a key and a connection of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from datahub.demo.stack import free_ports
from fl_client.node.turns import Turns
from fl_server.certificates import write_certificates
from fl_server.runs import SuperLink
from fl_server.superlink import operator_token

RUN_S = 300.0
NODES, MODEL_BYTES, IDLE_FOR_S = 4, 100_000, 3.0
TICK = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
# a run's process of stock Flower imports this file
ENVIRONMENT["PYTHONPATH"] = str(Path(__file__).parents[2])
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# -- what both run: rounds that train nothing ------------------------------------------------------

echo = ClientApp()


@echo.train()
def _echo(message: Message, context: Context) -> Message:
    model = bytes(message.content["request"]["model"])[::-1]  # type: ignore[arg-type,index]
    return Message(
        RecordDict({"reply": ConfigRecord({"model": model, "at": time.time()})}), reply_to=message
    )


rounds_only = ServerApp()


@rounds_only.main()
def _rounds(grid: Grid, context: Context) -> None:
    """As many rounds as asked, one more after a silence; times go to a file."""
    plan = json.loads(Path(os.environ["ROUND_PLAN"]).read_text())
    took, replied = [], None
    for number in range(plan["rounds"] + 1):
        if number == plan["rounds"]:
            time.sleep(IDLE_FOR_S)
        record = RecordDict({"request": ConfigRecord({"model": os.urandom(MODEL_BYTES)})})
        begun = time.monotonic()
        messages = [Message(record, node, "train") for node in plan["nodes"]]
        replies = list(grid.send_and_receive(messages, timeout=120))
        took.append(time.monotonic() - begun)
        assert len(replies) == len(messages) and not any(one.has_error() for one in replies)
        replied = replied or time.time()
    done = {"took": took[:-1], "wakeup": took[-1], "replied": replied}
    done["requests"] = json.loads(os.environ.get("ROUND_REQUESTS", "0"))
    Path(plan["out"]).write_text(json.dumps(done))


STOCK = {
    "pyproject.toml": b"""[project]
name = "rounds"
version = "1.0.0"
description = "x"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "datahub"
[tool.flwr.app.components]
serverapp = "tests.benchmarks.round:rounds_only"
clientapp = "tests.benchmarks.round:echo"
[tool.flwr.app.config]
job-id = ""
""",
    "README.md": b"rounds",
}

# -- processes -------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*commands: list[str], log: Path, **environment: str) -> Iterator[list[int]]:
    """Processes of these commands; their ids. Stopped at the end, with their children."""
    with log.open("ab") as out, contextlib.ExitStack() as stack:
        found = []
        for command in commands:
            process = subprocess.Popen(
                command,
                env=ENVIRONMENT | environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
            found.append(process.pid)
        yield found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, of its children that live, and of those that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/children")]
    except FileNotFoundError:
        return 0.0
    own = sum(map(int, fields[11:15])) / TICK
    return own + sum(cpu_s(int(child)) for line in children for child in line.split())


def idle_percent(pid: int, seconds: float) -> float:
    """Of one core, over so many seconds."""
    before = cpu_s(pid)
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / seconds


def new_key(folder: Path, name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A node's key, written as Flower's SuperNode reads it; and its public key (PEM)."""
    key = ec.generate_private_key(ec.SECP384R1())
    kind = serialization.PrivateFormat.OpenSSH
    plain = serialization.NoEncryption()
    (folder / name).write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, plain))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    return key, key.public_key().public_bytes(serialization.Encoding.PEM, public)


def control(folder: Path, port: int) -> SuperLink:
    """The operator's connection, once the SuperLink answers."""
    for _ in range(600):
        with contextlib.suppress(Exception):
            link = SuperLink(f"127.0.0.1:{port}", folder / "ca.crt", operator_token(folder))
            link.online_nodes()
            return link
        time.sleep(0.1)
    raise SystemExit("the SuperLink is not up after a minute")


def online(link: SuperLink, count: int) -> None:
    """Wait until so many nodes are connected."""
    for _ in range(600):
        if len(link.online_nodes()) >= count:
            return
        time.sleep(0.1)
    raise SystemExit(f"{count} nodes are not connected after a minute")


def conducted(link: SuperLink, start: Any, plan: Path, pid: int) -> dict[str, float]:
    """One run by `start`, in figures."""
    facts = json.loads(plan.read_text())
    out, before, begun = Path(facts["out"]), cpu_s(pid), time.time()
    start()
    while not out.exists():
        time.sleep(0.05)
        if time.time() - begun > RUN_S:
            raise SystemExit(f"the run has no result after {RUN_S:.0f} s: {plan.parent / 'log'}")
    time.sleep(0.1)
    done = json.loads(out.read_text())
    count = len(done["took"])
    return {
        "round_s": statistics.median(done["took"]),
        "wakeup_s": done["wakeup"],
        "start_s": done["replied"] - begun,
        "superlink_cpu_s": (cpu_s(pid) - before) / (count + 1),
        "requests": done["requests"],
    }


def planned(folder: Path, rounds: int, nodes: list[int]) -> Path:
    """What a run is to do, in a file."""
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps({"rounds": rounds, "nodes": nodes, "out": str(folder / "done.json")})
    )
    return plan


def stock(folder: Path, rounds: int, idle_s: float) -> dict[str, float]:
    """Stock Flower, as its manual starts it."""
    from flwr.cli.build import build_fab_from_files
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    folder.mkdir()
    write_certificates(folder)
    port, *ports = free_ports(1 + NODES)
    superlink = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
    superlink += ["--ssl-ca-certfile", str(folder / "ca.crt"), "--enable-supernode-auth"]
    superlink += ["--ssl-certfile", str(folder / "server.pem")]
    superlink += ["--ssl-keyfile", str(folder / "server.key")]
    superlink += ["--disable-runtime-dependency-installation"]
    plan = folder / "plan.json"
    shared = {"ROUND_PLAN": str(plan), "FLWR_HOME": str(folder / "home")}
    with running(superlink, log=folder / "log", **shared) as (pid,):
        link = control(folder, port)
        keys = [new_key(folder, f"{i}.key")[1] for i in range(NODES)]
        nodes = [link.register_node(key, f"node {i}") for i, key in enumerate(keys)]
        planned(folder, rounds, nodes)
        commands = [
            [
                "flower-supernode",
                *("--superlink", f"127.0.0.1:{port}", "--port", str(ports[i])),
                *("--root-certificates", str(folder / "ca.crt")),
                *("--auth-supernode-private-key", str(folder / f"{i}.key")),
            ]
            for i in range(NODES)
        ]
        with running(*commands, log=folder / "log", **shared) as pids:
            online(link, NODES)
            time.sleep(3)
            found = {"idle_cpu_percent": idle_percent(pid, idle_s)}
            content, _ = build_fab_from_files(STOCK)
            fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
            before = sum(map(cpu_s, pids))
            found |= conducted(
                link, lambda: link._client.StartRun(StartRunRequest(fab=fab)), plan, pid
            )
            found["node_cpu_s"] = (sum(map(cpu_s, pids)) - before) / NODES / (rounds + 1)
    return found


def ours(folder: Path, rounds: int, idle_s: float) -> dict[str, float]:
    """Our SuperLink with the same rounds in place of a job, and nodes that echo."""
    folder.mkdir()
    (port,) = free_ports(1)
    here = [sys.executable, "-m", "tests.benchmarks.round"]
    plan = folder / "plan.json"
    shared = {"ROUND_PLAN": str(plan)}
    link_command = [*here, "superlink", str(folder), str(port)]
    with running(link_command, log=folder / "log", **shared) as (pid,):
        link = control(folder, port)
        keys = [new_key(folder, f"{i}.key")[1] for i in range(NODES)]
        nodes = [link.register_node(key, f"node {i}") for i, key in enumerate(keys)]
        planned(folder, rounds, nodes)
        commands = [[*here, "node", str(folder), str(port), f"{i}.key"] for i in range(NODES)]
        with running(*commands, log=folder / "log", **shared) as pids:
            online(link, NODES)
            time.sleep(3)
            found = {"idle_cpu_percent": idle_percent(pid, idle_s)}
            before = sum(map(cpu_s, pids))
            found |= conducted(link, lambda: link.start_run("0" * 64), plan, pid)
            found["node_cpu_s"] = (sum(map(cpu_s, pids)) - before) / NODES / (rounds + 1)
        for count in (16, 100):
            with idle_nodes(folder, port, link, count):
                time.sleep(3)
                found[f"idle{count}_cpu_percent"] = idle_percent(pid, idle_s)
    found["requests_per_round_and_node"] = found.pop("requests") / NODES / (rounds + 1)
    return found


@contextlib.contextmanager
def idle_nodes(folder: Path, port: int, link: SuperLink, count: int) -> Iterator[None]:
    """So many nodes that take turns and have nothing to do, as threads of this process."""
    made = []
    for i in range(count):
        key, public = new_key(folder, f"idle{count}.{i}.key")
        node_id = link.register_node(public, f"idle {count} {i}")
        made.append(Turns(f"127.0.0.1:{port}", folder / "ca.crt", key, node_id))
    over = threading.Event()

    def wait(turns: Turns) -> None:
        while not over.is_set():
            try:
                turns.take()
            except Exception:
                if not over.is_set():
                    raise

    threads = [threading.Thread(target=wait, args=(one,), daemon=True) for one in made]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for one in made:
        one.close()


def serve_superlink(folder: Path, port: int) -> None:
    """Our SuperLink, with rounds in place of jobs, and its requests counted."""
    import fl_server.app
    import fl_server.gate
    from fl_server import superlink

    fl_server.app.app = rounds_only
    answer, count = fl_server.gate.OperatorGate.__call__, 0

    async def counted(gate: Any, scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        count += scope["type"] == "http" and scope["path"].startswith("/v1/fleet/")
        os.environ["ROUND_REQUESTS"] = str(count)
        await answer(gate, scope, receive, send)

    fl_server.gate.OperatorGate.__call__ = counted  # type: ignore[method-assign]
    sys.argv = ["superlink", "--folder", str(folder), "--port", str(port)]
    superlink.main()


def serve_node(folder: Path, port: int, name: str) -> None:
    """A node that echoes."""
    from fl_client.node.supernode import serve

    raw = (folder / name).read_bytes()
    key = serialization.load_ssh_private_key(raw, None)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    serve(
        echo,
        superlink=f"127.0.0.1:{port}",
        ca_file=folder / "ca.crt",
        key=key,  # type: ignore[arg-type]
        stop=stop,
        on_connected=lambda node_id: None,
    )


def main() -> None:
    """Both, side by side."""
    if sys.argv[1:2] == ["superlink"]:
        serve_superlink(Path(sys.argv[2]), int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["node"]:
        serve_node(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    idle_s = 5.0 if arguments.quick else 30.0
    with tempfile.TemporaryDirectory() as made:
        print("ours ...", flush=True)
        mine = ours(Path(made) / "ours", 20 if arguments.quick else 200, idle_s)
        print("stock Flower ...", flush=True)
        theirs = stock(Path(made) / "stock", 2 if arguments.quick else 8, idle_s)
    theirs.pop("requests")
    figures = {f"ours.{name}": round(value, 4) for name, value in mine.items()}
    figures |= {f"stock.{name}": round(value, 4) for name, value in theirs.items()}
    print(f"{'':28}{'stock':>12}{'ours':>12}{'stock/ours':>12}")
    for name, value in mine.items():
        other = theirs.get(name)
        told = "" if other is None else f"{other:12.3f}"
        ratio = "" if other is None else f"{other / max(value, 1e-9):12.1f}"
        print(f"{name:28}{told:>12}{value:12.4f}{ratio:>12}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
