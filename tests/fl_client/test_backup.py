"""A node's folder in one file and out of it again: whole, sealed, no way to spend twice."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from datatokens.terms import JobTerms
from fl_client.errors import BackupError, LedgerError
from fl_client.node import backup, config, entries, sealed
from fl_client.node.admission import admit
from fl_client.node.audit_log import AuditLog, LogError
from fl_client.node.backup import back_up, restore
from fl_client.node.reconcile import Charged
from fl_client.node.rounds import train
from fl_client.node.sealed import Opener, Sealer
from fl_client.office.cli import node
from fl_client.privacy.accounting import lifetime_epsilon
from fl_client.privacy.counter import Counter
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge
from fl_client.protocol import JobSpec, Signed
from tests.clinic import GRAPH, WEIGHTS, Clinic, accepted, weights
from tests.faults.test_ledger_rollback import mend, put_on_chain
from tests.fl_client.test_ledger import patients

PASSPHRASE = "correct horse battery staple"
REAL_COST = sealed.COST


@pytest.fixture(autouse=True, scope="module")
def cheap() -> Iterator[None]:
    """Half a second a guess is for those who guess."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "COST", 2)
        yield


def small(folder: Path) -> Path:
    """What a node's folder looks like from far away."""
    folder.mkdir(mode=0o700)
    for name in ("keys/node.key", "datasets/removed/3.json", "jobs/a/terms.json", "audit.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "node.toml").write_text("name = 'x'")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(*words: str, typed: str = "") -> Any:
    return CliRunner().invoke(node, list(words), input=typed, catch_exceptions=False)


def reconciled(clinic: Clinic) -> list[Charged]:
    """Neither the log nor the ledger is enough alone."""
    for _ in range(2):  # asking again is no way round
        with pytest.raises(LogError, match=r"put back from a copy; .* datahub node reconcile"):
            clinic.room()
    AuditLog(clinic.folder).mend("put back from a backup")
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"put back from a backup; .* datahub node reconcile"):
            clinic.room()
    return mend(clinic)


# -- the whole way ---------------------------------------------------------------------------------


def test_restored__everything_a_node_keeps_is_there_and_its_users_alone(
    clinic: Clinic, tmp_path: Path
) -> None:
    accepted(clinic)
    folder = clinic.folder
    assert (folder / "audit.log").exists() and (folder / "audit.mark").exists()
    for name in ("pictures/x/album.json", "datasets/removed/3.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "notes.txt").write_text("not the node's")
    (folder / "jobs" / ".terms.json.77").write_text("half written")
    before, file, again = files(folder), tmp_path / "node.backup", tmp_path / "again"
    back_up(folder, file, PASSPHRASE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for secret in (b"-----BEGIN", PASSPHRASE.encode(), b"SQLite format", b"node.toml"):
        assert secret not in file.read_bytes()
    restore(file, again, PASSPHRASE)
    after = files(again)
    for left in ("ledger.counter", "audit.mark", "notes.txt", "jobs/.terms.json.77"):
        before.pop(left)
    before = {n: c for n, c in before.items() if not n.endswith((".lock", "-wal", "-shm"))}
    del before["ledger.sqlite"]
    assert {n: c for n, c in after.items() if not n.startswith("ledger.")} == before
    assert set(after) - set(before) == {"ledger.sqlite", "ledger.counter"}
    for path in (again, *again.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert config.read(again).node_address == clinic.node
    assert sorted(p.name for p in tmp_path.iterdir() if "node" in p.name or "again" in p.name) == [
        "again",
        "node",
        "node.backup",
    ]


def test_older_ledger_put_back__serves_nothing_until_the_difference_is_charged_at_its_worst(
    clinic: Clinic, tmp_path: Path
) -> None:
    """A job was running when the backup was made, another came after it; the machine is lost."""
    terms = accepted(clinic)
    file = tmp_path / "node.backup"
    back_up(clinic.folder, file, PASSPHRASE)
    late = accepted(clinic)
    put_on_chain(clinic, late)
    for one in (terms, late):
        train(clinic.room(), one.job_id.hex(), 1, weights())
    clinic.folder.rename(tmp_path / "lost")
    restore(file, clinic.folder, PASSPHRASE)
    status = run("status", str(clinic.folder)).output
    assert "put back from a backup" in status.replace("\n", " ")
    charged = reconciled(clinic)
    assert [one.what.partition(",")[0] for one in charged] == [
        f"all that was left of job {terms.job_id.hex()[:12]}",
        f"job {late.job_id.hex()[:12]}",  # its terms are in no folder, and the hub is away
    ]
    room = clinic.room()
    assert room.ledger.epsilon_spent("t") >= room.ledger.budget("t").epsilon
    with pytest.raises(LedgerError, match="is closed"):
        train(room, terms.job_id.hex(), 1, {n: array + 1 for n, array in weights().items()})


@pytest.mark.parametrize("where", ["newer jobs are copied over", "nothing has changed since"])
def test_put_back__reconciled__is_charged_what_it_may_have_spent_and_serves_again(
    clinic: Clinic, tmp_path: Path, where: str
) -> None:
    file, done = tmp_path / "node.backup", list[JobTerms]()
    clinic.room()
    back_up(clinic.folder, file, PASSPHRASE)
    if where == "newer jobs are copied over":  # accepted and trained, never put on the chain
        done.append(accepted(clinic))
        train(clinic.room(), done[0].job_id.hex(), 1, weights())
    clinic.folder.rename(tmp_path / "lost")
    restore(file, clinic.folder, PASSPHRASE)
    if done:
        (tmp_path / "lost" / "jobs").rename(clinic.folder / "jobs")
    whats = [f"job {terms.job_id.hex()[:12]} as a whole" for terms in done]
    assert [one.what for one in reconciled(clinic)] == whats
    room = clinic.room()
    charges = [c for terms in done for c in JobSpec.from_dict(terms.spec).plan.charges()]
    expected = lifetime_epsilon(charges, 1e-5, room.ledger.budget("t").order) if charges else 0.0
    assert room.ledger.epsilon_spent("t") == pytest.approx(expected)
    next_job = clinic.paid(clinic.spec(epsilon=0.5))
    assert isinstance(admit(room, next_job.to_json(), GRAPH, WEIGHTS), Signed)


def test_put_back__the_command_mends_ledger_and_log_and_the_node_serves(
    clinic: Clinic, tmp_path: Path
) -> None:
    file = tmp_path / "node.backup"
    clinic.room()
    back_up(clinic.folder, file, PASSPHRASE)
    terms = accepted(clinic)
    put_on_chain(clinic, terms)
    clinic.folder.rename(tmp_path / "lost")
    restore(file, clinic.folder, PASSPHRASE)
    done = run("reconcile", str(clinic.folder)).output.replace("\n", " ")
    assert terms.job_id.hex()[:12] in done and "the ledger is whole" in done
    assert "goes on from a stated break" in done
    assert clinic.room().ledger.knows(terms.job_id.hex())
    assert "break" in [line.event for line in AuditLog(clinic.folder).lines()]


def test_put_back_ten_times__the_round_is_answered_once(tmp_path: Path) -> None:
    """The counter of a backup would fit its ledger: it is not in it."""
    folder, file = small(tmp_path / "node"), tmp_path / "node.backup"
    job = [Charge(1.5, 1.0, 1, "training")]
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.open_dataset("s", 4.0, 1e-5)
    ledger.set_members("s", patients("p"))
    ledger.reserve("s", "a" * 64, job)
    back_up(folder, file, PASSPHRASE)
    answered = []
    for day in range(10):
        try:
            ledger.begin_round("a" * 64, 1, bytes([day]), job)
            answered.append(day)
        except LedgerError as error:
            assert "put back from a backup" in str(error)
        folder = tmp_path / f"node{day}"
        restore(file, folder, PASSPHRASE)
        ledger = Ledger(folder / "ledger.sqlite")
    assert answered == [0]


def test_put_back__a_folder_that_had_no_ledger_yet__is_not_taken_for_a_new_one(
    tmp_path: Path,
) -> None:
    folder, file, again = small(tmp_path / "node"), tmp_path / "node.backup", tmp_path / "again"
    back_up(folder, file, PASSPHRASE)
    restore(file, again, PASSPHRASE)
    assert Ledger(again / "ledger.sqlite").file.behind() == "it was put back from a backup"


def test_backup__while_the_ledger_changes__is_one_moment_of_it(tmp_path: Path) -> None:
    folder, stop = small(tmp_path / "node"), threading.Event()
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.open_dataset("s", 1000.0, 1e-5)
    ledger.set_members("s", patients("p"))
    done = []

    def work() -> None:
        while not stop.is_set():
            ledger.charge("s", Charge(50.0, 1.0, 1, "training"))
            done.append(1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(3):
            file, again = tmp_path / f"{number}.backup", tmp_path / f"again{number}"
            least = len(done)
            back_up(folder, file, PASSPHRASE)
            most = len(done) + 1
            restore(file, again, PASSPHRASE)
            with sqlite3.connect(again / "ledger.sqlite") as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                (rows,) = db.execute("SELECT COUNT(*) FROM spent").fetchone()
            assert least <= rows <= most
            assert not list(folder.glob(".ledger.copy*"))
    finally:
        stop.set()
        worker.join()


def test_backup__a_listing_changes_meanwhile__is_made_again(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.room()
    (entry,) = config.read(clinic.folder).datasets
    real, times = backup._contents, []

    def contents(folder: Path) -> Iterator[Any]:
        yield from real(folder)
        if not times:
            entries.write(folder, entries.update(folder, entry.dataset_id, since=77))
        times.append(1)

    monkeypatch.setattr(backup, "_contents", contents)
    back_up(clinic.folder, tmp_path / "b", PASSPHRASE)
    restore(tmp_path / "b", tmp_path / "again", PASSPHRASE)
    assert len(times) == 2
    assert config.read(tmp_path / "again").datasets[0].since == 77


# -- what is refused -------------------------------------------------------------------------------


def test_backup__where_it_would_be_wrong__one_sentence_and_no_file(tmp_path: Path) -> None:
    folder, there = small(tmp_path / "node"), tmp_path / "there"
    there.write_text("something of mine")
    for file, passphrase, why in (
        (there, PASSPHRASE, "exists already"),
        (folder / "b", PASSPHRASE, "in the folder itself"),
        (folder / "keys" / "b", PASSPHRASE, "in the folder itself"),
        (tmp_path / "b", "short", "of 5 characters is guessed too soon"),
        (tmp_path / "no" / "b", PASSPHRASE, "No such file or directory; no backup is made"),
    ):
        with pytest.raises(BackupError, match=why):
            back_up(folder, file, passphrase)
    with pytest.raises(BackupError, match="holds no node"):
        back_up(tmp_path, tmp_path / "b", PASSPHRASE)
    (folder / "snapshots").symlink_to(tmp_path)
    with pytest.raises(BackupError, match="snapshots is neither a file nor a folder"):
        back_up(folder, tmp_path / "b", PASSPHRASE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node", "there"]
    assert there.read_text() == "something of mine"


def test_restore__folder_with_something_in_it__is_refused_and_left_alone(tmp_path: Path) -> None:
    folder, file = small(tmp_path / "node"), tmp_path / "b"
    back_up(folder, file, PASSPHRASE)
    before = files(folder)
    with pytest.raises(BackupError, match="is not empty"):
        restore(file, folder, PASSPHRASE)
    with pytest.raises(BackupError, match="is not empty"):
        restore(file, folder / "node.toml", PASSPHRASE)
    assert files(folder) == before
    (tmp_path / "empty").mkdir()
    restore(file, tmp_path / "empty", PASSPHRASE)
    assert (tmp_path / "empty" / "keys" / "node.key").exists()


def test_restore__wrong_passphrase_or_no_backup__one_sentence_and_no_folder(tmp_path: Path) -> None:
    folder, file = small(tmp_path / "node"), tmp_path / "b"
    back_up(folder, file, PASSPHRASE)
    (tmp_path / "text").write_text("a" * 500)
    (tmp_path / "nothing").touch()
    for of, passphrase, why in (
        (file, "another passphrase", "b: the passphrase is not the one that it was made with"),
        (tmp_path / "text", PASSPHRASE, "is no backup that this version"),
        (tmp_path / "nothing", PASSPHRASE, "is no backup that this version"),
        (tmp_path / "lacking", PASSPHRASE, "No such file"),
    ):
        with pytest.raises(BackupError, match=why):
            restore(of, tmp_path / "again", passphrase)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "node", "nothing", "text"]


@pytest.mark.parametrize("when", ["the copy", "the last step"])
def test_restore__cut_off_by_a_full_disk__leaves_no_half_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder, file = small(tmp_path / "node"), tmp_path / "b"
    back_up(folder, file, PASSPHRASE)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if when == "the copy" else (Counter, "write")), full)
    with pytest.raises(BackupError, match="No space left on device"):
        restore(file, tmp_path / "again", PASSPHRASE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "node"]


def test_backup__cut_off_by_a_full_disk__leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path / "node")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sealer, "write", full)
    with pytest.raises(BackupError, match="No space left on device; no backup is made"):
        back_up(folder, tmp_path / "b", PASSPHRASE)
    assert [p.name for p in tmp_path.iterdir()] == ["node"]


def forged(to: Path, *members: tarfile.TarInfo) -> Path:
    """What somebody makes who knows the passphrase."""
    with (
        to.open("wb") as file,
        Sealer(file, PASSPHRASE) as sealer,
        tarfile.open(fileobj=cast(Any, sealer), mode="w|") as tar,
    ):
        for one in members:
            tar.addfile(one, io.BytesIO(b"x" * one.size))
    return to


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("keys/../../outside"),
        member("/tmp/outside"),
        member("./keys/node.key"),
        member("keys//node.key"),
        member("elsewhere/file"),
        member("ledger.counter"),
        member("audit.mark"),
        member("ledger.sqlite-wal"),
        member("jobs/.lock"),
        member("keys/node.key", tarfile.SYMTYPE, "/etc/passwd"),
        member("keys", tarfile.SYMTYPE, "/tmp"),
        member("keys/node.key", tarfile.LNKTYPE, "node.toml"),
        member("keys/node.key", tarfile.CHRTYPE),
        member("keys/node.key", tarfile.FIFOTYPE),
        member("keys", tarfile.DIRTYPE),
    ],
    ids=lambda one: f"{one.name} {one.type.decode()}",
)
def test_restore__a_name_outside_a_link_or_a_device__is_refused_whole(
    tmp_path: Path, hostile: tarfile.TarInfo
) -> None:
    file = forged(tmp_path / "b", member("node.toml"), hostile)
    with pytest.raises(BackupError, match="which no backup holds"):
        restore(file, tmp_path / "in" / "again", PASSPHRASE)
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "in"]


def test_restore__one_name_twice_or_no_node__is_refused_whole(tmp_path: Path) -> None:
    twice = forged(tmp_path / "twice", member("node.toml"), member("node.toml"))
    empty = forged(tmp_path / "empty", member("keys/node.key"))
    for file, why in ((twice, "File exists"), (empty, "there is no node in it")):
        with pytest.raises(BackupError, match=why):
            restore(file, tmp_path / "again", PASSPHRASE)
        assert not list(tmp_path.glob("again*"))


# -- sealed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "PIECE", 64)
        yield


def seal(content: bytes) -> bytes:
    file = io.BytesIO()
    with Sealer(file, PASSPHRASE) as sealer:
        sealer.write(content)
    return file.getvalue()


def opened(content: bytes, passphrase: str = PASSPHRASE, size: int = 50) -> bytes:
    opener = Opener(io.BytesIO(content), passphrase)
    return b"".join(iter(lambda: opener.read(size), b""))


HEAD = len(sealed.MAGIC) + sealed.SALT + sealed.CHECK
PIECE = 64 + sealed.TAG


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(1, 500), st.lists(st.integers(1, 200), max_size=6))
def test_sealed__any_length_in_any_portions__is_opened_as_it_was(
    short_pieces: None, content: bytes, size: int, portions: list[int]
) -> None:
    file, rest = io.BytesIO(), content
    with Sealer(file, PASSPHRASE) as sealer:
        for portion in portions:
            sealer.write(rest[:portion])
            rest = rest[portion:]
        sealer.write(rest)
    assert opened(file.getvalue(), size=size) == content


@given(st.binary(max_size=400), st.data())
def test_sealed__any_byte_changed__is_refused(
    short_pieces: None, content: bytes, data: st.DataObject
) -> None:
    whole = bytearray(seal(content))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BackupError):
        opened(bytes(whole))


@given(st.binary(max_size=400), st.data())
def test_sealed__cut_off_anywhere_or_added_to__is_refused(
    short_pieces: None, content: bytes, data: st.DataObject
) -> None:
    whole = seal(content)
    ends = list(range(HEAD, len(whole), PIECE))  # where a cut is the least visible
    cut = data.draw(st.one_of(st.sampled_from(ends), st.integers(0, len(whole) - 1)))
    more = data.draw(st.binary(min_size=1, max_size=200))
    for changed in (whole[:cut], whole + more, whole + whole[HEAD:]):
        with pytest.raises(BackupError):
            opened(changed)


@given(st.binary(min_size=130, max_size=400), st.binary(min_size=130, max_size=400), st.data())
def test_sealed__pieces_swapped_doubled_left_out_or_of_another_backup__are_refused(
    short_pieces: None, content: bytes, other: bytes, data: st.DataObject
) -> None:
    whole, second = seal(content), seal(other)
    pieces = [whole[at : at + PIECE] for at in range(HEAD, len(whole), PIECE)]
    strange = [second[at : at + PIECE] for at in range(HEAD, len(second), PIECE)]
    taken = data.draw(st.lists(st.sampled_from([*pieces, *strange]), max_size=8))
    assume(taken != pieces)
    with pytest.raises(BackupError):
        opened(whole[:HEAD] + b"".join(taken))


def test_sealed__not_to_its_end__is_never_whole(short_pieces: None) -> None:
    file = io.BytesIO()
    with pytest.raises(ZeroDivisionError), Sealer(file, PASSPHRASE) as sealer:
        sealer.write(b"x" * 200)
        raise ZeroDivisionError
    with pytest.raises(BackupError, match="damaged or cut off"):
        opened(file.getvalue())


def test_sealed__same_content_twice__nothing_is_alike(short_pieces: None) -> None:
    first, second = seal(bytes(640)), seal(bytes(640))
    places = range(HEAD, len(first), PIECE)
    pieces = [one[at : at + 64] for one in (first, second) for at in places]
    assert len(set(pieces)) == len(pieces)


def test_passphrase__typed_on_another_keyboard__is_the_same(short_pieces: None) -> None:
    file = io.BytesIO()
    with Sealer(file, "Schl\u00fcssel zum Keller") as sealer:
        sealer.write(b"x")
    assert opened(file.getvalue(), "Schlu\u0308ssel zum Keller") == b"x"


def test_cost_of_a_guess__is_what_is_said_and_the_format_what_is_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read by nothing of ours: a backup of today has to open in ten years."""
    monkeypatch.setattr(sealed, "COST", REAL_COST)
    whole = seal(b"keys and all")
    magic, salt, rest = whole[:17], whole[17:49], whole[49:]
    assert magic == b"datahub backup 1\n"
    key = hashlib.scrypt(
        PASSPHRASE.encode(), salt=salt, n=1 << 17, r=8, p=1, dklen=64, maxmem=1 << 28
    )
    assert rest[:32] == key[32:]
    nonce = bytes(11) + b"\1"  # number 0, the last
    assert AESGCM(key[:32]).decrypt(nonce, rest[32:], whole[:81]) == b"keys and all"


# -- the commands ----------------------------------------------------------------------------------


def test_commands__passphrase_is_typed_or_read_from_a_file_or_stdin(tmp_path: Path) -> None:
    folder, secret = small(tmp_path / "node"), tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\r\n")
    typed = f"{PASSPHRASE}\n"
    here, end = str(folder), ["--json"]
    for number, (words, given_) in enumerate(
        (
            ([], typed * 2),
            (["--passphrase-file", "-"], typed),
            (["--passphrase-file", str(secret)], ""),
        )
    ):
        file = str(tmp_path / f"{number}.backup")
        done = run("backup", here, file, *words, *end, typed=given_)
        assert done.exit_code == 0 and '"files": 5' in done.output
        done = run("restore", file, str(tmp_path / f"again{number}"), *words, typed=given_)
        assert done.exit_code == 0 and "datahub node reconcile" in done.output
        assert files(tmp_path / f"again{number}").keys() - files(folder).keys() == {
            "ledger.counter"
        }


def test_commands__two_passphrases_or_no_line_of_text__no_backup(tmp_path: Path) -> None:
    folder, secret, file = small(tmp_path / "node"), tmp_path / "passphrase", tmp_path / "b"
    done = run("backup", str(folder), str(file), typed=f"{PASSPHRASE}\n{PASSPHRASE}x\n")
    assert done.exit_code == 1 and not file.exists()
    for content, why in (
        (b"", "it has 0 lines"),
        (b"one line of it\nanother", "it has 2 lines"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
    ):
        secret.write_bytes(content)
        with pytest.raises(BackupError, match=why):
            run("backup", str(folder), str(file), "--passphrase-file", str(secret))
    assert not file.exists()
