"""Older ledgers are migrated with all their history; a copy that is not the one written last is not
changed.
"""

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fl_client.data.identity import Members, patient_key
from fl_client.errors import BudgetExceeded, LedgerError
from fl_client.privacy.accounting import best_order, lifetime_epsilon
from fl_client.privacy.counter import Counter, Mark
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.ledger_file import LedgerFile
from fl_client.privacy.plan import Charge

LEDGERS = Path(__file__).parent / "ledgers"  # written by the code of 2026-11-25
WARD, OTHER = "e07c908dc062ba32acec200b13e5543ca24c748f40319865a4f0ac1b8d3daa16", "5e" * 32
COUNT = Charge(5.0, 1.0, 1, "released count")
ROUND = (Charge(30.0, 0.5, 2, "training"), Charge(60.0, 1.0, 1, "metrics"))


def people(*names: str) -> Members:
    keys = [patient_key(b"secret", name) for name in names]
    return Members(keys, np.ones(len(keys), dtype=bool))


def old(tmp_path: Path, name: str = "format_1.sql") -> Path:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript((LEDGERS / name).read_text())
    return path


def test_format_1__opened__keeps_every_charge_reservation_round_and_reply(tmp_path: Path) -> None:
    for _ in range(2):  # the second time it is of this format already
        ledger = Ledger(
            old(tmp_path)
            if not (tmp_path / "ledger.sqlite").exists()
            else tmp_path / "ledger.sqlite"
        )
        assert ledger.datasets() == sorted([WARD, OTHER])
        assert ledger.history(WARD) == [
            COUNT,
            Charge(30.0, 0.5, 8, "training"),
            Charge(60.0, 1.0, 4, "metrics"),
        ]
        assert ledger.reserved(WARD) == list(ROUND)
        assert (ledger.history(OTHER), ledger.reserved(OTHER)) == ([COUNT], list(ROUND))
        assert [(j.job_id[:2], j.rounds_answered, j.closed) for j in ledger.jobs(WARD)] == [
            ("bb", 1, False),
            ("aa", 2, True),
        ]
        assert ledger.reply("aa" * 32, 2) == b"reply 2" and ledger.reply("bb" * 32, 2) is None
        budget = ledger.budget(WARD)
        assert (budget.epsilon, budget.delta, budget.order) == (3.0, 1e-5, best_order(3.0, 1e-5))
        with contextlib.closing(sqlite3.connect(ledger.path)) as db:
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
            assert not {t for t in tables if t.startswith("old_")} | ({"patient_set"} & tables)
            with pytest.raises(sqlite3.IntegrityError, match="spent rows stay"):
                db.execute("DELETE FROM spent")


def test_format_1__round_under_way__goes_on_where_it_was(tmp_path: Path) -> None:
    ledger = Ledger(old(tmp_path))
    members = people("p", "q")
    ledger.inherit(WARD, members)
    ledger.open_dataset("1", 3.0, 1e-5)
    ledger.set_members("1", members)
    before = ledger.epsilon_committed("1")
    assert ledger.begin_round("bb" * 32, 1, b"model", ROUND) == b"reply of b"
    assert ledger.begin_round("bb" * 32, 2, b"model", ROUND) is None, "its charge is on disk"
    assert ledger.begin_round("bb" * 32, 3, b"model", ROUND, "1", members) is None
    assert ledger.epsilon_committed("1") == pytest.approx(before)
    assert ledger.reserved(WARD) == ledger.reserved("1") == []


def test_format_1__members_known_later__are_bound_by_what_the_patient_set_has_spent(
    tmp_path: Path,
) -> None:
    ledger = Ledger(old(tmp_path))
    for name, who in (("1", people("p", "q")), ("2", people("q", "r")), ("3", people("s"))):
        ledger.open_dataset(name, 3.0, 1e-5)
        ledger.set_members(name, who)
    ledger.inherit(WARD, people("p", "q"))
    spent = lifetime_epsilon(ledger.history(WARD), 1e-5, best_order(3.0, 1e-5))
    assert ledger.epsilon_spent("1") == ledger.epsilon_spent("2") == spent
    assert ledger.epsilon_spent("3") == 0
    big = Charge(1.6, 1.0, 1, "training")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("1", "dd" * 32, [big])
    ledger.reserve("3", "dd" * 32, [big])
    ledger.inherit("a set that no older ledger knew", people("s"))


def test_format_1__migration_cut_off__starts_again(tmp_path: Path, monkeypatch) -> None:
    path = old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.privacy.ledger_file.FORMAT_1", ("spent", "reserved", "no table"))
        with pytest.raises(LedgerError, match="cannot be used"):
            Ledger(path)
    assert Ledger(path).reserved(WARD) == list(ROUND)


def test_format_1_empty__opened__is_an_empty_ledger(tmp_path: Path) -> None:
    assert Ledger(old(tmp_path, "format_1_empty.sql")).datasets() == []


def test_format_of_a_later_version__refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ledger.file.change() as db:
        db.execute("UPDATE meta SET value='3' WHERE name='format'")
    with pytest.raises(LedgerError, match="has format 3; this version reads 2"):
        Ledger(ledger.path)


# -- another copy than was written last ------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    opened = Ledger(tmp_path / "ledger.sqlite")
    opened.open_dataset("ward", 3.0, 1e-5)
    opened.set_members("ward", people("p", "q"))
    return opened


def copy_of(ledger: Ledger, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger.path)) as db:
        db.execute("VACUUM INTO ?", (str(to),))


def put_back(ledger: Ledger, backup: Path) -> None:
    for path in ledger.path.parent.glob("ledger.sqlite*"):
        path.unlink()
    if backup.exists():
        ledger.path.write_bytes(backup.read_bytes())


@pytest.mark.parametrize("backup", ["older", "none"])
def test_change__ledger_put_back_from_a_backup__refuses_every_change(
    ledger: Ledger, tmp_path: Path, backup: str
) -> None:
    ledger.reserve("ward", "job", ROUND)
    if backup == "older":
        copy_of(ledger, tmp_path / "backup")
    ledger.begin_round("job", 1, b"model", ROUND)
    put_back(ledger, tmp_path / "backup")
    again = Ledger(ledger.path)
    assert "so it is another copy than the node worked with last" in again.file.behind()
    for change in (
        lambda: again.begin_round("job", 1, b"other", ROUND),
        lambda: again.finish_round("job", 1, b"reply"),
        lambda: again.charge("ward", COUNT),
        lambda: again.reserve("ward", "another", ROUND),
        lambda: again.close_job("job"),
        lambda: again.open_dataset("ward", 3.0, 1e-5),
    ):
        with pytest.raises(LedgerError, match="datahub node reconcile FOLDER"):
            change()
    again.history("ward") if backup == "older" else None  # it can still be looked at


def test_change__counter_lost_or_spoiled__refuses(ledger: Ledger) -> None:
    counter = ledger.path.with_suffix(".counter")
    kept = counter.read_text()
    counter.unlink()
    with pytest.raises(LedgerError, match=r"ledger\.counter is missing"):
        ledger.charge("ward", COUNT)
    counter.write_text("{")
    with pytest.raises(LedgerError, match=r"ledger\.counter cannot be read"):
        ledger.charge("ward", COUNT)
    counter.write_text(kept)
    ledger.charge("ward", COUNT)


def test_change__killed_between_counter_and_commit__goes_on_either_way(
    ledger: Ledger, monkeypatch
) -> None:
    written: list[tuple[Mark, ...]] = []
    write = Counter.write

    def cut(self: Counter, *marks: Mark) -> None:
        if len(written) == at:
            raise KeyboardInterrupt
        written.append(marks)
        write(self, *marks)

    for at in (0, 1):  # before the commit, after it
        ledger.charge("ward", Charge(40.0 + at, 1.0, 1, "count"))  # settles what was cut off
        written.clear()
        before = len(ledger.history("ward"))
        with monkeypatch.context() as patch:
            patch.setattr(Counter, "write", cut)
            with pytest.raises(KeyboardInterrupt):
                ledger.charge("ward", Charge(50.0 + at, 1.0, 1, "count"))
        assert ledger.file.behind() == ""
        ledger.charge("ward", Charge(60.0 + at, 1.0, 1, "count"))
        assert len(ledger.history("ward")) == before + 1 + at
        assert len(json.loads(ledger.path.with_suffix(".counter").read_text())) == 1


def test_change__nothing_changed__moves_no_mark(ledger: Ledger) -> None:
    counter = ledger.path.with_suffix(".counter")
    before = counter.read_text()
    ledger.open_dataset("ward", 3.0, 1e-5)
    ledger.set_members("ward", people("q", "p"))
    assert ledger.free_idle(0.0) == []
    assert counter.read_text() == before


def test_change__two_copies_that_went_on_separately__only_one_is_the_ledger(
    ledger: Ledger, tmp_path: Path
) -> None:
    copy_of(ledger, tmp_path / "fork")
    ledger.charge("ward", COUNT)
    mine = ledger.path.with_suffix(".counter").read_text()
    other = LedgerFile(tmp_path / "fork")
    with other.mending(), other.change() as db:  # as many changes, other ones
        db.execute("UPDATE dataset SET epsilon = 2.5")
    put_back(ledger, tmp_path / "fork")
    ledger.path.with_suffix(".counter").write_text(mine)
    with pytest.raises(LedgerError, match="another copy"):
        Ledger(ledger.path).charge("ward", COUNT)


def test_bind_secret__another_one__is_noticed(ledger: Ledger) -> None:
    assert not ledger.file.has_secret
    ledger.file.bind_secret(b"one")
    ledger.file.bind_secret(b"one")
    assert ledger.file.has_secret
    with pytest.raises(LedgerError, match=r"keys/patients\.key is not the secret"):
        ledger.file.bind_secret(b"two")
