"""What jobs see of a table is frozen when it is listed: exactly the records and people that the
source gave, whatever becomes of the source.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client.data import snapshots
from fl_client.data.features import Feature
from fl_client.data.identity import Members
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import Records, load
from fl_client.data.targets import Target
from fl_client.errors import DatasetError

SECRET = b"s" * 32
SCHEMA = Schema((Feature("a", 0, 1), Feature("b", 3, 0.1)), Target("y", 0))


def equal(one: Records, other: Records) -> bool:
    assert one.members is not None and other.members is not None
    there, here = one.members, other.members
    return (
        one.features[:].tobytes() == other.features[:].tobytes()
        and one.features.shape == other.features.shape
        and one.targets.tobytes() == other.targets.tobytes()
        and one.targets.shape == other.targets.shape
        and (one.patients is None) == (other.patients is None)
        and (one.patients is None or np.array_equal(one.patients, other.patients))
        and (one.dropped, one.lacking) == (other.dropped, other.lacking)
        and list(there.units) == list(here.units)
        and list(there.rows) == list(here.rows)
        and list(there.lacking) == list(here.lacking)
        and np.array_equal(there.held, here.held)
        and (there.who, there.content) == (here.who, here.content)
    )


CELL = st.sampled_from(["", "?", "0", "-0.0", "1e-30", "0.1", "7", "1e30"])
ROW = st.tuples(CELL, CELL, st.sampled_from(["", "0", "1"]), st.sampled_from(["", "p", "q", "r"]))


@settings(deadline=None, max_examples=25)
@given(st.lists(ROW, max_size=12), st.sampled_from(["", "who"]), st.sets(st.integers(0, 3)))
def test_snapshot__any_table__is_read_again_to_the_bit_with_the_same_people(
    tmp_path_factory: Any, lines: list[tuple[str, ...]], column: str, gone: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "t.csv").write_text("\n".join(["a,b,y,who", *map(",".join, lines)]) + "\n")
    records = load(plain(folder / "t.csv", column), SCHEMA, SECRET)
    assert records.members is not None
    sha256 = snapshots.write(folder / "kept", records)
    assert equal(snapshots.read(folder / "kept", sha256, folder), records)
    # without some, and without others of those who are left, as often as one likes
    keys = [key for i, key in enumerate(records.members.units) if i in gone]
    left = records.without(set(keys[:1]))
    again = snapshots.read(folder / "kept", snapshots.write(folder / "kept", left), folder)
    assert equal(again, left)
    assert equal(again.without(set(keys)), records.without(set(keys)))
    assert again.members is not None and again.members.content == records.members.content


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("width", [0, 2])
def test_snapshot__targets_of_several_numbers__are_read_again(
    tmp_path: Path, shape: tuple[int, ...], count: int, width: int
) -> None:
    rng = np.random.default_rng(0)
    keys = [bytes([i]) * 16 for i in range(count)]
    records = Records(
        rng.normal(size=(count, width)).astype(np.float32),
        rng.normal(size=(count, *shape)).astype(np.float32),
        0,
        None,
        Members(keys, np.ones(count, dtype=bool)),
    )
    assert equal(snapshots.read(tmp_path, snapshots.write(tmp_path, records), tmp_path), records)


def test_snapshot__is_its_users_alone_and_holds_no_cell_that_no_job_sees(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,y,who,name\n1,2,1,p-77,Ada Lovelace\n3,4,0,q-77,Grace Hopper\n")
    records = load(plain(path, "who"), SCHEMA, SECRET)
    folder = tmp_path / "kept"
    sha256 = snapshots.write(folder, records)
    (kept,) = folder.iterdir()
    assert (kept.name, kept.stat().st_mode & 0o777) == (f"{sha256}.parquet", 0o600)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not [word for word in (b"Lovelace", b"p-77", b"name") if word in kept.read_bytes()]
    assert snapshots.write(folder, records) == sha256, "the same is the same"


DAMAGE: dict[str, Any] = {
    "gone": Path.unlink,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "one bit": lambda path: path.write_bytes(b"p" + path.read_bytes()[1:]),
    "another one": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_snapshot__damaged__is_a_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,1\n")
    sha256 = snapshots.write(tmp_path / "kept", load(plain(tmp_path / "t.csv"), SCHEMA, SECRET))
    DAMAGE[damage](tmp_path / "kept" / f"{sha256}.parquet")
    with pytest.raises(DatasetError, match=r"\.parquet: (cannot be read|is damaged)"):
        snapshots.read(tmp_path / "kept", sha256, tmp_path)


def test_snapshot__that_cannot_be_written__is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,1\n")
    records = load(plain(tmp_path / "t.csv"), SCHEMA, SECRET)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "synced", full)
    with pytest.raises(DatasetError, match=r"the snapshot cannot be written: .*No space left"):
        snapshots.write(tmp_path / "kept", records)
    assert list((tmp_path / "kept").iterdir()) == []


def test_prune__what_is_not_listed__goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,1\n")
    records = load(plain(tmp_path / "t.csv"), SCHEMA, SECRET)
    one = snapshots.write(tmp_path, records)
    other = snapshots.write(tmp_path, replace(records, dropped=1))
    (tmp_path / ".1.x.parquet").touch()  # process 1 always is
    (tmp_path / ".999999999.x.parquet").touch()
    snapshots.prune(tmp_path, {one}, untouched_s=3600)
    assert (tmp_path / f"{other}.parquet").exists()
    snapshots.prune(tmp_path, {one}, untouched_s=0.0)
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == [".1.x.parquet", f"{one}.parquet"]
