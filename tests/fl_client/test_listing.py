"""What is released of a table's size: how many it holds and how many it leaves out, two cells of
one noisy histogram.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client.data.features import Feature
from fl_client.data.identity import patient_key
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import Records, load
from fl_client.data.targets import Target
from fl_client.node import listing
from fl_client.node.listing import released_count
from fl_client.node.served import members_of
from fl_client.privacy.accounting import best_order, lifetime_epsilon
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.ledger_file import LedgerFile
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import COUNT_NOISE

SECRET = b"s" * 32
SCHEMA = Schema((Feature("a", 0, 1),), Target("y", 0))
COUNT = Charge(COUNT_NOISE, 1.0, 1, "released count")
ONCE = lifetime_epsilon([COUNT], 1e-5, best_order(3.0, 1e-5))


def records(folder: Path, rows: list[str], column: str = "who") -> Records:
    path = folder / "t.csv"
    path.write_text("\n".join(["who,a,y", *rows]) + "\n")
    return load(plain(path, column), SCHEMA, SECRET)


def ward(ledger: Ledger, found: Records, name: str = "ward") -> None:
    ledger.open_dataset(name, 3.0, 1e-5)
    ledger.set_members(name, members_of(found))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts without noise."""

    class Silence:
        def normal(self, count: int, sd: float) -> np.ndarray:
            assert sd == COUNT_NOISE
            return np.zeros(count)

    monkeypatch.setattr(listing, "SecureRandom", Silence)


HELD = [f"h{i},{i},1" for i in range(20)]
LEFT = [f"l{i},,1" for i in range(6)]


@pytest.mark.parametrize(("column", "counts"), [("who", (20, 6)), ("", (21, 9))])
def test_released_count__patients_or_rows_without_a_value__are_counted_apart(
    ledger: Ledger, tmp_path: Path, exact: None, column: str, counts: tuple[int, int]
) -> None:
    # h0 has a complete row and one that lacks a value; a row that names nobody is nobody's
    more = ["h0,,1", "l0,,0", ",,0"] if column else ["h0,,1", "l0,,0", ",,0", ",1,1"]
    found = records(tmp_path, HELD + LEFT + more, column)
    ward(ledger, found)
    assert released_count(ledger, "ward", found, 10) == counts


def test_released_count__both__cost_everybody_who_is_counted_one_mechanism(
    ledger: Ledger, tmp_path: Path
) -> None:
    found = records(tmp_path, HELD + LEFT)
    ward(ledger, found)
    first = released_count(ledger, "ward", found, 10)
    assert released_count(ledger, "ward", found, 10) == first, "drawn once"
    assert ledger.history("ward") == [COUNT]
    for who in ("h3,1,1", "l3,1,1"):  # whoever was left out has paid as well
        other = records(tmp_path, [who])
        ward(ledger, other, who)
        assert ledger.epsilon_spent(who) == pytest.approx(ONCE)
    other = records(tmp_path, ["x,1,1"])
    ward(ledger, other, "others")
    assert ledger.epsilon_spent("others") == 0


def test_released_count__somebody_else_is_left_out__is_drawn_and_charged_again(
    ledger: Ledger, tmp_path: Path
) -> None:
    found = records(tmp_path, HELD + LEFT)
    ward(ledger, found)
    released_count(ledger, "ward", found, 10)
    found = records(tmp_path, HELD + LEFT[1:])
    ward(ledger, found)
    released_count(ledger, "ward", found, 10)
    assert ledger.history("ward") == [Charge(COUNT_NOISE, 1.0, 2, "released count")]


def test_released_count__kept_by_a_ledger_of_before__stays_and_says_nothing_of_the_others(
    ledger: Ledger, tmp_path: Path
) -> None:
    found = records(tmp_path, HELD + LEFT)
    ward(ledger, found)
    with LedgerFile(ledger.path).change() as db:
        db.execute("INSERT INTO counted VALUES (?, 23)", (members_of(found).who,))
    assert released_count(ledger, "ward", found, 10) == (23, None)
    assert ledger.history("ward") == []


def test_released_count__who_has_withdrawn__is_in_neither(
    ledger: Ledger, tmp_path: Path, exact: None
) -> None:
    found = records(tmp_path, HELD + LEFT).without(
        {patient_key(SECRET, "h0"), patient_key(SECRET, "l0")}
    )
    ward(ledger, found)
    assert released_count(ledger, "ward", found, 10) == (19, 5)


def test_released_count__floors__of_one_the_owner_s_of_the_other_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Low:
        def normal(self, count: int, sd: float) -> np.ndarray:
            return np.full(count, -15.4)

    monkeypatch.setattr(listing, "SecureRandom", Low)
    found = records(tmp_path, HELD + LEFT)
    ward(ledger, found)
    assert released_count(ledger, "ward", found, 17) == (17, 0)


ROW = st.tuples(
    st.sampled_from(["p", "q", "r", "s", ""]), st.sampled_from(["", "1"]), st.sampled_from("01")
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROW, max_size=12), st.sampled_from(["p", "q", "r", "s"]))
def test_counts__one_patient_more_or_less__moves_one_of_the_two_by_one(
    tmp_path_factory: Any, rows: list[tuple[str, ...]], who: str
) -> None:
    """The claim that the price of one rests on: an L2 sensitivity of 1."""
    folder = tmp_path_factory.mktemp("counts")

    def cells(some: list[tuple[str, ...]]) -> tuple[int, int]:
        found = records(folder, [",".join(row) for row in some])
        return found.persons, len(members_of(found).lacking)

    there = who in {row[0] for row in rows}
    held, left = np.subtract(cells(rows), cells([row for row in rows if row[0] != who]))
    assert (held, left) in {(1, 0), (0, 1)} if there else (held, left) == (0, 0)
