"""A log of which no line can be changed, moved, taken out or put in, and which cannot be cut."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fl_client.model.weights import model_hash
from fl_client.node import audit_log, config
from fl_client.node.admission import NOT_NOW, admit
from fl_client.node.audit_log import AuditLog, Head, LogError
from fl_client.node.rounds import attest
from fl_client.node.served import anchors
from fl_client.office.cli import node
from fl_client.protocol import Refused, Signed
from fl_server.report import Round, build
from tests.clinic import GRAPH, WEIGHTS, Clinic, trained


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path)
    for number in range(5):
        made.note("decided", job="ab" * 32, yes=bool(number % 2), reason="ü")
    return made


def test_note__lines_follow_each_other_and_verify(log: AuditLog) -> None:
    assert [line.number for line in log.lines()] == [1, 2, 3, 4, 5]
    assert log.verify() == log.head == log.verify([log.head.hash, Head(0).hash])
    assert log.path.stat().st_mode & 0o077 == 0
    assert Head.parse(str(log.head)) == log.head


@pytest.mark.parametrize("tail", [1 << 20, 700])
def test_newest__are_those_of_the_whole_log_and_a_changed_one_is_found(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch, tail: int
) -> None:
    monkeypatch.setattr(audit_log, "NEWEST", tail)
    whole = [*log.lines()]
    assert log.newest(2) == whole[:2:-1]
    found = log.newest(99)
    assert found == whole[::-1][: len(found)] and len(found) == (5 if tail > 700 else 2)
    with log.path.open("ab") as file:
        file.write(b"torn")
    assert log.newest(2) == whole[:2:-1]
    text = log.path.read_bytes()
    log.path.write_bytes(text[:-300].replace(b"true", b"null") + text[-300:])
    if tail > 700:
        with pytest.raises(LogError, match="does not follow"):
            log.newest(99)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a log of five lines, and the lines of another one."""
    folder, other = tmp_path_factory.mktemp("log"), tmp_path_factory.mktemp("other")
    for number in range(5):
        AuditLog(folder).note("decided", job="ab" * 32, number=number)
        AuditLog(other).note("decided", job="cd" * 32, number=number)
    files = {name: (folder / name).read_bytes() for name in (audit_log.LOG, audit_log.MARK)}
    return files | {"other": (other / audit_log.LOG).read_bytes()}


PLACE = st.floats(0, 1, exclude_max=True)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["byte", "out", "twice", "swap", "cut", "rewrite"]), PLACE, PLACE)
def test_verify__any_single_change__is_found(
    written: dict[str, bytes], kind: str, first: float, second: float
) -> None:
    """A byte, a line taken out, doubled, two in each other's place, the end cut, another log."""
    raw = written[audit_log.LOG]
    lines = raw.splitlines(keepends=True)
    i, j, at = int(first * len(lines)), int(second * len(lines)), int(first * len(raw))
    swapped = {i: lines[j], j: lines[i]}
    changed = {
        "byte": raw[:at] + bytes([int(second * 256)]) + raw[at + 1 :],
        "out": b"".join(lines[:i] + lines[i + 1 :]),
        "twice": b"".join(lines[: i + 1] + lines[i:]),
        "swap": b"".join(swapped.get(k, line) for k, line in enumerate(lines)),
        "cut": raw[:at],
        "rewrite": written["other"],
    }[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / audit_log.MARK).write_bytes(written[audit_log.MARK])
        (folder / audit_log.LOG).write_bytes(changed)
        if changed == raw:
            assert AuditLog(folder).verify().number == 5
        else:
            with pytest.raises(LogError):
                AuditLog(folder).verify()


def test_head__log_that_was_cut_or_put_back__is_refused_and_mended_in_words(
    log: AuditLog, tmp_path: Path
) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:3]))
    for use in (lambda: log.head, lambda: log.note("x"), log.verify):
        with pytest.raises(LogError, match="ends at line 3, and line 5 was written last"):
            use()
    head = log.mend("restored from the backup of Monday")
    assert head.number == 4 and log.verify() == head
    last = list(log.lines())[-1]
    assert last.event == "break" and last.facts["why"] == "restored from the backup of Monday"
    assert last.facts["the mark knew"][0].startswith("5 ")


def test_verify__log_and_mark_put_back_together__the_anchored_head_tells(
    log: AuditLog, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (audit_log.LOG, audit_log.MARK):
        shutil.copy(tmp_path / name, copy / name)
    anchor = log.note("attested").hash
    for name in (audit_log.LOG, audit_log.MARK):
        shutil.copy(copy / name, tmp_path / name)
    log.verify()
    with pytest.raises(
        LogError, match="ends at line 5, and 1 reports on the chain name lines that are not"
    ):
        log.verify([anchor])
    log.note("something else")
    with pytest.raises(
        LogError, match="ends at line 6, and 1 reports on the chain name lines that are not"
    ):
        log.verify([anchor])


def test_note__after_a_torn_line__takes_it_off_and_says_so(log: AuditLog) -> None:
    """The power went in the middle of a line: it was never acknowledged."""
    head = log.head
    with log.path.open("ab") as file:
        file.write(b'{"at":1,"bef')
    assert log.head == head
    log.note("started")
    events = [(line.event, line.facts) for line in log.lines()]
    assert events[5:] == [("torn line taken off", {"bytes": 12}), ("started", {})]


def test_note__killed_between_mark_and_line__goes_on(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    for step in ("write", "fsync"):
        before = log.head
        with monkeypatch.context() as patch:
            patch.setattr(audit_log.os, step, killed)
            with pytest.raises(KeyboardInterrupt):
                log.note("never told")
        after = log.head
        assert after.number in (before.number, before.number + 1)
        log.note("next")
    log.verify()


def test_note__two_processes_at_once__no_line_is_lost(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fl_client.node.audit_log import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for i in range(40): log.note('line', who=sys.argv[2], i=i)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), who]) for who in "ab"]
    assert [one.wait(60) for one in both] == [0, 0]
    assert AuditLog(tmp_path).verify().number == 80


def test_mend__a_line_in_the_middle_was_changed__sets_the_log_aside_and_begins_with_its_hash(
    log: AuditLog, tmp_path: Path
) -> None:
    raw = log.path.read_bytes()
    log.path.write_bytes(raw.replace(b'"yes":true', b'"yes":tru3', 1))
    log.mend("found by the auditor", [log.head.hash])
    (first,) = log.lines()
    name, digest = first.facts["aside"].split()
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    log.note("next")
    assert log.verify(first.facts["lost"]).number == 2


def test_mend__more_lost_heads_than_a_line_holds__none_is_asked_for_again(log: AuditLog) -> None:
    heads = [f"{number:064x}" for number in range(1, 3 * audit_log.MOST_LOST)]
    log.mend("restored", heads)
    assert log.verify(heads).number == 5 + 3


# -- of a node -------------------------------------------------------------------------------------


def attested(clinic: Clinic) -> str:
    """A whole job of the clinic; its id."""
    terms, spec, arrays, part = trained(clinic)
    parts = {part.dataset_id: part}
    report, _ = build(terms, spec, model_hash(arrays), [Round(1, 0.5, 0.1)], parts)
    attest(clinic.room(), terms.job_id.hex(), arrays, report)
    return terms.job_id.hex()


def run(*words: str) -> Result:
    return CliRunner().invoke(node, ["audit-log", *words])


def test_node__a_whole_job__is_in_the_log_and_its_head_in_the_report_that_it_signed(
    clinic: Clinic,
) -> None:
    job = attested(clinic)
    lines = [line for line in AuditLog(clinic.folder).lines() if line.facts.get("job") == job]
    assert [line.event for line in lines] == [
        "accepted", "charged", "released", "charged", "released", "attested",
    ]  # fmt: skip
    accepted, released = lines[0].facts, lines[2].facts
    assert accepted["by"] == "rule everybody" and accepted["epsilon_after"] > 0
    assert released["bytes"] > 0 and len(released["sha256"]) == 64
    heads = anchors(config.read(clinic.folder))
    assert heads == [lines[3].hash], "of the last round's charge; its number is nobody's business"
    assert json.loads(run("verify", str(clinic.folder), "--json").output)["reports"] == 1


def test_node__nothing_in_the_log__tells_who_is_in_a_table(clinic: Clinic) -> None:
    attested(clinic)
    (entry,) = config.read(clinic.folder).datasets
    text = (clinic.folder / audit_log.LOG).read_text()
    assert len(entry.content) >= 32 and len(entry.snapshot) == 64
    assert entry.content not in text and entry.snapshot not in text


def test_node__whose_log_was_cut_or_taken_away__serves_nothing_until_it_is_said_why(
    clinic: Clinic,
) -> None:
    attested(clinic)
    path = clinic.folder / audit_log.LOG
    there, terms = clinic.room(), clinic.paid()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert admit(there, terms.to_json(), GRAPH, WEIGHTS) == Refused(NOT_NOW)
    with pytest.raises(LogError, match="datahub node reconcile"):
        clinic.room()
    done = run("verify", str(clinic.folder))
    assert done.exit_code == 1 and "does NOT hold" in done.output
    for name in (audit_log.LOG, audit_log.MARK):
        (clinic.folder / name).unlink()
    with pytest.raises(LogError):
        clinic.room()
    assert CliRunner().invoke(node, ["reconcile", str(clinic.folder)]).exit_code == 0
    assert [line.event for line in AuditLog(clinic.folder).lines()] == ["break", "reconciled"]
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)


def test_export__is_read_again_with_the_proofs(clinic: Clinic, tmp_path: Path) -> None:
    job = attested(clinic)
    file = tmp_path / "log.jsonl"
    assert run("export", str(clinic.folder), str(file)).exit_code == 0
    *lines, proof = file.read_bytes().splitlines()
    before = "0" * 64
    for raw in lines:
        assert json.loads(raw)["before"] == before
        before = hashlib.sha256(raw).hexdigest()
    assert json.loads(proof)["report_of"] == job
    shown = run("show", str(clinic.folder), "--job", job[:8])
    assert shown.exit_code == 0 and "accepted" in shown.output and "started" not in shown.output
