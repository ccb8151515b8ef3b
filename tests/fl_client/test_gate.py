"""Whatever leaves a node passes the gate, and the gate lets nothing else out."""

from __future__ import annotations

import ast
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fl_client.errors import (
    BudgetExceeded,
    ConfigError,
    DatasetError,
    LedgerError,
    LedgerRefusal,
    PolicyRefusal,
    ProtocolError,
    Refusal,
)
from fl_client.model.weights import from_safetensors, to_safetensors
from fl_client.node import config, gate, rounds
from fl_client.node.audit_log import AuditLog
from fl_client.node.gate import STOPPED, Stopped
from fl_client.node.handlers import make_app
from fl_client.node.listing import hub_request, publish
from fl_client.node.offer import signed
from fl_client.node.publishing import make
from fl_client.privacy.evaluation import CELLS
from fl_client.protocol import (
    REPLY,
    REQUEST,
    Admit,
    Ask,
    Attest,
    Evaluate,
    Refused,
    Release,
    Released,
    Scored,
    Signed,
    Train,
    Trained,
    Waiting,
    read_reply,
    to_record,
)
from fl_client.worker.walls import WALLS
from tests.clinic import WEIGHTS, Clinic, accepted, weights
from tests.conftest import spec as any_spec

ROOT = Path(__file__).parents[2]
JOB = "ab" * 32
ABOUT = gate.About(any_spec(), 1, {n: a.shape for n, a in weights().items()})
GOOD = {
    Admit: Signed(b"s" * 65),
    Ask: Waiting(2_000_000_000, "a person at this hospital must say yes first"),
    Train: Trained(WEIGHTS, 0.5, 1.0, 2.0, 1e-5, "patient", 0.1, "cpu", JOB, ", ".join(WALLS)),
    Evaluate: Scored((1.5,) * CELLS, 1.0, 2.0, 1e-5),
    Attest: Signed(b"s" * 65),
    Release: Released(),
}
ASKED = [
    Admit(b"terms", b"graph", b"weights"),
    Ask(JOB),
    Train(JOB, 1, WEIGHTS),
    Evaluate(JOB, WEIGHTS),
    Attest(JOB, WEIGHTS, b"report"),
    Release(JOB),
]
every_request = pytest.mark.parametrize("asked", ASKED, ids=lambda asked: type(asked).__name__)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> config.NodeConfig:
    """A node without datasets, in a folder whose name nobody outside is told."""
    network: dict[str, Any] = {"chain_id": 31337, "superlink": "127.0.0.1:1", "ca_certificate": ""}
    network |= dict.fromkeys(("registry", "market", "payment_token"), "0x" + "1" * 40)
    folder = tmp_path_factory.mktemp("ward 7") / "node"
    chain = "http://chain.hospital.example:8545"
    return config.create(folder, name="C", hub="http://hub", chain=chain, network=network)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was stopped before."""
    monkeypatch.setattr(gate, "_said", {})


def answered(node: config.NodeConfig, asked: Any, said: Any) -> Any:
    return gate.reply(node, asked, said, ABOUT)


NO = to_record(Refused(STOPPED))


@every_request
def test_reply__what_was_asked_for__leaves_as_it_is(node: config.NodeConfig, asked: Any) -> None:
    assert answered(node, asked, GOOD[type(asked)]) == to_record(GOOD[type(asked)])
    no = Refused("purpose='research' is not allowed", b"s" * 65)
    assert answered(node, asked, no) == to_record(no)


@every_request
def test_reply__an_answer_to_another_question__does_not_leave(
    node: config.NodeConfig, asked: Any
) -> None:
    for said in (*GOOD.values(), asked, None, b"rows", {"a": 1}, "text", 7):
        if type(said) not in gate.ANSWERS[type(asked)]:
            assert answered(node, asked, said) == NO
    assert answered(node, None, GOOD[type(asked)]) == NO, "nor one to what is no request"


def other(**arrays: np.ndarray) -> bytes:
    return to_safetensors({**weights(), **arrays})


NAME = next(iter(weights()))
SHAPE = weights()[NAME].shape


@pytest.mark.parametrize(
    "model",
    [
        save(dict(reversed(weights().items()))) + b"\0" * 4,
        save(weights(), metadata={"patient": "4711 HIV"}),
        other(patient=np.zeros(1, np.float32)),
        other(**{NAME: np.zeros((*SHAPE, 1), np.float32)}),
        other(**{NAME: np.full(SHAPE, np.nan, np.float32)}),
        save({name: array.astype(np.float64) for name, array in weights().items()}),
        (int.from_bytes(WEIGHTS[:8], "little") + 8).to_bytes(8, "little")
        + WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")]
        + b" \t\t\t  \t "
        + WEIGHTS[8 + int.from_bytes(WEIGHTS[:8], "little") :],
        WEIGHTS + b"a row of the table",
        b"id,diagnosis\n4711,HIV\n",
        b"",
    ],
    ids=["order", "metadata", "name", "shape", "nan", "double", "blanks", "tail", "csv", "nothing"],
)
def test_reply__parameters_with_anything_else_in_them__do_not_leave(
    node: config.NodeConfig, model: bytes
) -> None:
    assert answered(node, ASKED[2], replace(GOOD[Train], model=model)) == NO
    line = list(AuditLog(node.folder).lines())[-1]
    assert line.event == "stopped" and line.facts["what"] == "Trained to Train"
    assert "4711" not in json.dumps(line.facts)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        *((ASKED[2], {"loss": loss}) for loss in (np.nan, np.inf, 1e6, -1e6, 4711.0)),
        *((ASKED[2], {"device": d}) for d in ("", "patient 4711", "cpu\n4711", "cpu" + "x" * 78)),
        (ASKED[2], {"unit": "4711"}),
        (ASKED[2], {"log_head": "patient 4711"}),
        (ASKED[2], {"no_walls": "network, patient"}),
        (ASKED[3], {"log_head": f"4711 {JOB}"[:64]}),
        *((ASKED[2], {name: -1.0}) for name in ("epsilon_job", "delta_lifetime")),
        (ASKED[2], {"compute_seconds": -4711.0}),
        *((ASKED[3], {"scores": s}) for s in ((1.0,), (1e9,) * CELLS, (np.nan,) * CELLS)),
    ],
    ids=str,
)
def test_reply__figures_that_no_patients_and_noise_come_to__do_not_leave(
    node: config.NodeConfig, asked: Any, changes: dict[str, Any]
) -> None:
    assert answered(node, asked, replace(GOOD[type(asked)], **changes)) == NO


ANY = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.floats())
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ASKED), st.data())
def test_reply__any_value_in_any_field__is_as_the_wire_reads_it_or_does_not_leave(
    node: config.NodeConfig, asked: Any, data: st.DataObject
) -> None:
    said = GOOD[type(asked)]
    names = list(type(said).__dataclass_fields__)
    if names:
        said = replace(said, **{data.draw(st.sampled_from(names)): data.draw(ANY)})
    record = gate.reply(node, asked, said, ABOUT)
    if record != NO:
        assert read_reply(type(said), record) == said


# -- sentences -------------------------------------------------------------------------------------


def refused_after(trouble: Exception, error: Exception, of: bool) -> Exception:
    """`error` as it is raised where `trouble` was caught, `from` it or not."""
    try:
        try:
            raise trouble
        except Exception as caught:
            if of:
                raise error from caught
            raise error  # noqa: B904 that is the point
    except Exception as made:
        return made


@pytest.mark.parametrize("of", [True, False])
@pytest.mark.parametrize(
    "trouble",
    [
        DatasetError("line 7: age='4711 HIV' is no number"),
        LedgerError("the ledger cannot be used"),
        ConfigError("/srv/ward7 holds no node.toml"),
        OSError(2, "No such file", "/data/hiv.csv"),
        sqlite3.OperationalError("near HIV: syntax error"),
        RuntimeError("worker said 4711"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_sentence__a_refusal_made_from_own_trouble__is_the_fixed_one(
    node: config.NodeConfig, trouble: Exception, of: bool
) -> None:
    made = refused_after(trouble, ProtocolError(f"not now: {trouble}"), of)
    assert gate.sentence(node, made) == STOPPED
    again = refused_after(made, PolicyRefusal(str(made)), of)
    assert gate.sentence(node, again) == STOPPED, "however often it was raised again"


def test_sentence__of_terms_and_policy__is_said(node: config.NodeConfig) -> None:
    for error in (PolicyRefusal("a"), BudgetExceeded("b"), LedgerRefusal("c"), ProtocolError("d")):
        assert gate.sentence(node, error) == str(error)
        made = refused_after(KeyError("rounds"), error, True)
        assert gate.sentence(node, made) == str(error), "a buyer's document lacks something"
    assert gate.sentence(node, PolicyRefusal("two\nlines\x1b[31m")) == "two lines [31m"


def test_sentence__that_names_the_nodes_folder_chain_or_is_no_refusal__is_the_fixed_one(
    node: config.NodeConfig,
) -> None:
    for error in (
        PolicyRefusal(f"{node.folder}/keys/node.key is not there"),
        PolicyRefusal(f"{node.chain} does not answer"),
        DatasetError("age='4711' is no number"),
        ValueError("4711"),
    ):
        assert gate.sentence(node, error) == STOPPED
    said = Waiting(2_000_000_000, f"look into {node.folder}")
    assert answered(node, ASKED[0], said) == NO


def test_nothing_that_reads_tables__raises_what_may_leave() -> None:
    """Sentences of readers quote cells; so none of them is of a kind that leaves."""
    kinds = {kind.__name__ for kind in (*Refusal.__subclasses__(), Refusal)} | {"BudgetExceeded"}
    for path in (ROOT / "fl_client" / "data").glob("*.py"):
        raised = {
            ast.unparse(one.exc).partition("(")[0]
            for one in ast.walk(ast.parse(path.read_text()))
            if isinstance(one, ast.Raise) and one.exc
        }
        assert not raised & kinds, path.name


@pytest.mark.parametrize("name", ["4711 has HIV", "", "a" * 81, "Value Error", "x.y", "\n"])
def test_error__anything_but_the_name_of_an_exception__does_not_leave(name: str) -> None:
    assert gate.error(name) == "Error"
    assert gate.error("ValueError") == "ValueError"
    assert gate.error("a sentence", ("a sentence",)) == "a sentence"


# -- documents and notices -------------------------------------------------------------------------


def manifest_of(clinic: Clinic) -> dict[str, Any]:
    (entry,) = config.read(clinic.folder).datasets
    return entry.manifest.as_dict()


def test_document__what_a_node_sends__passes(clinic: Clinic) -> None:
    node, room = config.read(clinic.folder), clinic.room()
    made = make(room, room.datasets[0], 1_900_000_000)
    assert made is not None
    signature = signed(made, node.chain_id, node.market, node.node_key)
    path = f"/api/v1/datasets/{clinic.dataset_id}"
    key = node.supernode_public_key.decode()
    for method, where, body, name in (
        ("PUT", f"{path}/manifest", manifest_of(clinic), "manifest"),
        (
            "PUT",
            f"{path}/offer",
            {"offer": made.to_json().decode(), "signature": signature.hex()},
            "offer",
        ),
        (
            "PUT",
            f"{path}/contributors",
            {"epoch": 1, "entries": [[node.node_address, 3]]},
            "contributors",
        ),
        (
            "POST",
            "/api/v1/nodes",
            {"node": node.node_address, "supernode_public_key": key},
            "registration",
        ),
        ("GET", "/api/v1/network", None, "network"),
        ("GET", f"/api/v1/jobs/{JOB}/terms", None, "job"),
        ("GET", f"/api/v1/schemas/{JOB}", None, "schema"),
    ):
        called, content = gate.document(method, where, body)
        assert called == name and (json.loads(content) == body if body else content == b"")


def test_document__anything_else__does_not_leave(clinic: Clinic) -> None:
    node, manifest = config.read(clinic.folder), manifest_of(clinic)
    path, pem = f"/api/v1/datasets/{clinic.dataset_id}", node.supernode_public_key.decode()
    private = (clinic.folder / "keys" / "supernode.key").read_text()
    address = node.node_address
    for method, where, body in (
        ("PUT", f"{path}/manifest", manifest | {"rows": [[4711, "HIV"]]}),
        ("PUT", f"{path}/manifest", manifest | {"persons": 9}),
        ("PUT", f"{path}/manifest", manifest | {"persons": 19, "minimum_persons": 20}),
        ("PUT", f"{path}/manifest", manifest | {"lifetime_epsilon": float("nan")}),
        ("PUT", f"{path}/manifest", [manifest]),
        ("PUT", f"{path}/manifest", None),
        ("PUT", f"{path}/offer", {"offer": "{}", "signature": "00" * 65}),
        ("PUT", f"{path}/offer", {"offer": "{}"}),
        ("PUT", f"{path}/contributors", {"epoch": 1, "entries": [["patient 4711", 1]]}),
        ("PUT", f"{path}/contributors", {"epoch": 1, "entries": [[address, "HIV"]]}),
        ("PUT", f"{path}/contributors", {"epoch": 1, "entries": [], "note": "4711"}),
        ("POST", "/api/v1/nodes", {"node": address, "supernode_public_key": private}),
        ("POST", "/api/v1/nodes", {"node": address, "supernode_public_key": pem + private}),
        ("POST", "/api/v1/nodes", {"node": "4711", "supernode_public_key": pem}),
        ("GET", "/api/v1/network", {"rows": 1}),
        ("GET", "/api/v1/network?patient=4711", None),
        ("GET", "/api/v1/schemas/4711", None),
        ("POST", f"{path}/manifest", manifest),
        ("PUT", "/api/v1/elsewhere", {}),
    ):
        with pytest.raises(Stopped, match="the gate has stopped") as stopped:
            gate.document(method, where, body)
        assert "HIV" not in str(stopped.value)
        with pytest.raises(Stopped):
            hub_request("http://127.0.0.1:1", method, where, body)


def test_publish__a_document__is_in_the_log_with_its_hash_before_it_is_sent(
    clinic: Clinic, hub_calls: list[tuple[str, dict]]
) -> None:
    node, path = config.read(clinic.folder), f"/api/v1/datasets/{clinic.dataset_id}/manifest"
    publish(node, "PUT", path, manifest_of(clinic))
    assert hub_calls == [(path, manifest_of(clinic))]
    _, content = gate.document("PUT", path, manifest_of(clinic))
    line = list(AuditLog(clinic.folder).lines())[-1]
    assert line.facts == {"what": "manifest", "path": path, **gate.fingerprint(content)}
    for _ in range(3):
        with pytest.raises(Stopped):
            publish(node, "PUT", path, manifest_of(clinic) | {"persons": 3})
    lines = list(AuditLog(clinic.folder).lines())
    assert len(hub_calls) == 1
    assert [one.event for one in lines[line.number :]] == ["stopped"], "once, however often"


def test_notice__other_fields_or_text__does_not_leave() -> None:
    good = {
        "event": "job waits",
        "node": "Clinic",
        "job": JOB,
        "dataset": "7",
        "until": "2026-11-27T12:00:00Z",
        "look": "datahub node inbox /srv/node",
    }
    assert gate.notice(good) == good
    for wrong in (
        good | {"rows": "4711"},
        {},
        good | {"dataset": "patient 4711"},
        good | {"until": "never"},
        good | {"node": "a\nb"},
    ):
        with pytest.raises(Stopped):
            gate.notice(wrong)


# -- the node's own door ---------------------------------------------------------------------------


def test_node__whose_round_says_more_than_it_may__answers_the_fixed_sentence(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accepted(clinic).job_id.hex()
    room = clinic.room()
    app = make_app(room)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def ask(number: int) -> Any:
        request = ConfigRecord(to_record(Train(job, number, WEIGHTS)))
        message = Message(RecordDict({REQUEST: request}), 7, "train.round")
        message.metadata.__dict__["_message_id"] = "1"
        context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
        return read_reply(Trained, app(message, context).content[REPLY])

    first = ask(1)
    assert isinstance(first, Trained) and from_safetensors(first.model).keys() == weights().keys()
    real = rounds.train
    told = save(weights(), metadata={"patient": "4711 HIV"})
    monkeypatch.setattr(rounds, "train", lambda *a: replace(real(*a), model=told))
    assert ask(1) == Refused(STOPPED)
    assert list(AuditLog(clinic.folder).lines())[-1].event == "stopped"

    def no(*_: object) -> None:
        raise refused_after(DatasetError("age='4711 HIV'"), ProtocolError("age='4711 HIV'"), True)

    monkeypatch.setattr(rounds, "train", no)
    assert ask(1) == Refused(STOPPED)


# -- every sender ----------------------------------------------------------------------------------

# what can take a byte out of the process, by the last two parts of its name
SENDS = {
    *("Message", "flwr.app.Error", "Error", "ConfigRecord"),
    *(f"httpx.{one}" for one in ("request", "get", "post", "put", "patch", "delete", "stream")),
    *("httpx.Client", "httpx.AsyncClient", "requests.Session", "requests.request"),
    *("requests.get", "requests.post", "requests.put", "smtplib.SMTP", "smtplib.SMTP_SSL"),
    *("client.HTTPConnection", "client.HTTPSConnection", "request.urlopen", "urlopen"),
    *("socket.socket", "socket.create_connection", "socket.socketpair", "socket.create_server"),
    *("uvicorn.Server", "uvicorn.run", "aiosmtplib.send", "http.server.HTTPServer"),
    *("hub_request", "create_engine", "sqlalchemy.create_engine", "broken.error.reason"),
}
NETWORK = {
    *("httpx", "requests", "smtplib", "http", "urllib", "socket", "socketserver", "asyncio"),
    *("ftplib", "telnetlib", "imaplib", "poplib", "aiohttp", "websockets", "xmlrpc", "grpc"),
    *("uvicorn", "hypercorn", "urllib3", "paramiko", "flask", "fastapi"),
}
# what sends without asking the gate, and why it may
EXCUSED = {
    ("node/turns.py", "__init__"): "carries what supernode.py has made of the gate's answers",
    ("node/skew.py", "_date_of"): "asks for the time with an empty HEAD",
    ("node/notices.py", "_send"): "carries what tell() has had from the gate",
    ("node/notices.py", "_mail"): "carries what tell() has had from the gate",
    ("node/listing.py", "terms_from"): "by hub_request, which asks the gate",
    ("node/listing.py", "fetch_schema"): "by hub_request, which asks the gate",
    ("office/cli.py", "init"): "by hub_request, which asks the gate",
    ("data/readers.py", "_sql"): "the owner's own query to the owner's own database",
    ("office/page.py", ""): "listens on loopback, for people of the house",
    ("office/preflight.py", "walls"): "a door on loopback for a worker to try",
    ("office/preflight.py", "dial"): "a TLS handshake, and nothing after it",
    ("office/machine_cli.py", "walls"): "a door on loopback for a worker to try",
    ("worker/workers.py", "_started"): "between this node's own processes",
    ("worker/workers.py", "fork"): "between this node's own processes",
    ("worker/zygote.py", ""): "between this node's own processes",
    ("worker/probe.py", ""): "tries the walls around it, with nothing in hand",
}
# files that import what reaches the network
REACHING = {
    *("node/turns.py", "node/skew.py", "node/notices.py", "node/listing.py", "node/supernode.py"),
    *("office/machine_cli.py", "worker/workers.py", "worker/zygote.py", "worker/probe.py"),
    *("worker/serve.py", "office/page.py", "office/preflight.py"),
}


def senders(tree: ast.AST) -> list[tuple[str, str, str]]:
    """(function, what it sends with, its source) for each call that sends."""
    found = []

    def visit(node: ast.AST, function: str, source: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, source = node.name, ast.unparse(node)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in SENDS or ".".join(name.split(".")[-2:]) in SENDS:
                found.append((function, name, source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in SENDS:
            found.append((function, ast.unparse(node.targets[0]), source))
        for child in ast.iter_child_nodes(node):
            visit(child, function, source)

    visit(tree, "", "")
    return found


def test_transactions__are_sent_by_what_the_owner_calls_alone() -> None:
    """A connection to the chain with a key can send; the node's own has none."""
    having = set()
    for path in (ROOT / "fl_client").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for one in ast.walk(function):
                    if isinstance(one, ast.Call) and ast.unparse(one.func) == "connect":
                        having |= {(path.name, function.name)} if len(one.args) > 1 else set()
    listing = {("listing.py", f) for f in ("list_dataset", "post_contributors", "rotate_key")}
    versions = {("versions.py", f) for f in ("replace_dataset", "remove_dataset")}
    assert having == listing | versions | {("owner_cli.py", "_open"), ("cli.py", "offer")}


def test_every_sender_asks_the_gate__or_says_here_why_it_need_not() -> None:
    excused, reaching = set(), set()
    for path in sorted((ROOT / "fl_client").rglob("*.py")):
        where = path.relative_to(ROOT / "fl_client").as_posix()
        tree = ast.parse(path.read_text())
        for one in ast.walk(tree):
            names = [a.name for a in one.names] if isinstance(one, ast.Import) else []
            names += [one.module or ""] if isinstance(one, ast.ImportFrom) else []
            if any(name.split(".")[0] in NETWORK for name in names):
                reaching.add(where)
        for function, name, source in senders(tree):
            if "gate." in source:
                continue
            key = next((k for k in ((where, function), (where, "")) if k in EXCUSED), None)
            assert key, f"{where}: {function} sends with {name} and does not ask the gate"
            excused.add(key)
    assert excused == set(EXCUSED), f"not there any more: {set(EXCUSED) - excused}"
    assert reaching == REACHING
