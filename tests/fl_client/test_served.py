"""A node serves what was frozen when it was listed: a source that is gone stops nothing, one that
has changed is noticed and refused until it is the next version.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datatokens.chain.rpc_server import accounts
from fl_client.data import readers, snapshots
from fl_client.data.sources import Column, Source
from fl_client.data.tables import load
from fl_client.errors import SourceAway
from fl_client.node import config, entries, versions
from fl_client.node.entries import DatasetEntry
from fl_client.node.room import DataRoom
from fl_client.node.rounds import train
from fl_client.node.served import freeze, open_ledger, prune, read_table, standing
from fl_client.node.versions import remove_dataset, replace_dataset, withdraw_patient
from tests.clinic import Clinic, accepted, table, weights
from tests.fl_client.test_album import SCHEMA as X_RAY
from tests.fl_client.test_album import made_up, png

OWNER = accounts()[1]


def entry_of(clinic: Clinic) -> DatasetEntry:
    (entry,) = config.read(clinic.folder).datasets
    return entry


def csv_file(clinic: Clinic) -> Path:
    file = entry_of(clinic).source.file
    assert file is not None
    return file


def why_skipped(clinic: Clinic) -> str:
    return clinic.room().skipped.get(str(clinic.dataset_id), "")


def database(clinic: Clinic, folder: Path) -> Path:
    """The clinic's table in a database, its dataset listed as a query of it."""
    lines = csv_file(clinic).read_text().split("\n")[1:]
    path = folder / "ward.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("create table t (a, b, y, who)")
        rows = [(*map(float, line.split(",")), f"p{i // 2}") for i, line in enumerate(lines)]
        db.executemany("insert into t values (?,?,?,?)", rows)
    db.close()
    source = Source.from_dict(
        {
            "source": {"url": f"sqlite:///{path}", "query": "SELECT * FROM t"},
            "patients": {"columns": ["who"]},
        }
    )
    entry = entry_of(clinic)
    manifest = replace(entry.manifest, unit="patient", records_per_patient=2, persons=20)
    clinic.write(replace(entry, source=source, manifest=manifest))
    return path


def change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


def pictures(clinic: Clinic, folder: Path) -> Source:
    """The clinic's dataset as one of pictures, two of each patient."""
    source = png(folder, *made_up(24), 2)
    entry = entry_of(clinic)
    manifest = replace(entry.manifest, schema=X_RAY, unit="patient", persons=12)
    clinic.write(replace(entry, source=source, manifest=manifest))
    return source


def look(room: DataRoom) -> None:
    """What an hour does."""
    room._next_look = 0.0
    room.look_at_sources()
    assert room._looking is not None
    room._looking.join(60)
    room.refresh()


def test_data_room__entry_without_a_snapshot__is_frozen_at_the_first_start(clinic: Clinic) -> None:
    assert entry_of(clinic).snapshot == ""
    source = load(entry_of(clinic).source, entry_of(clinic).manifest.schema)
    first = clinic.room().records[clinic.dataset_id]
    entry = entry_of(clinic)
    (kept,) = (clinic.folder / "snapshots").iterdir()
    assert kept.name == f"{entry.snapshot}.parquet" and kept.stat().st_mode & 0o777 == 0o600
    assert entry.reading == entry.source.reading
    again = clinic.room().records[clinic.dataset_id]
    for found in (first, again):
        assert (found.features == source.features).all()
        assert (found.targets == source.targets).all()
    assert again.members is not None and again.members.content == entry.content


def test_data_room__source_gone__is_served_as_it_was_frozen_and_says_so(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    before = clinic.room().records[clinic.dataset_id]
    csv_file(clinic).unlink()
    room = clinic.room()
    assert (room.records[clinic.dataset_id].features == before.features).all()
    assert "is served as it was frozen" in caplog.text and "is not there" in caplog.text
    why, away = standing(clinic.folder, entry_of(clinic), open_ledger(clinic.folder)[1])
    assert why == "" and "is not there" in away


def test_data_room__file_changed_before_the_start__is_refused_until_it_is_the_next_version(
    clinic: Clinic, hub_calls: list
) -> None:
    clinic.room()
    first = entry_of(clinic).snapshot
    table(csv_file(clinic), 41)
    for _ in range(2):  # it is not forgotten
        assert "has changed since it was listed" in why_skipped(clinic)
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, csv_file(clinic))
    assert clinic.room().records[clinic.dataset_id].persons == 41
    assert entry_of(clinic).snapshot != first
    prune(clinic.folder)
    assert [p.stem for p in (clinic.folder / "snapshots").iterdir()] == [entry_of(clinic).snapshot]


def test_data_room__file_that_no_longer_parses__is_changed_not_gone(clinic: Clinic) -> None:
    clinic.room()
    csv_file(clinic).write_text('a,b,y\n1,"2,1\n')
    assert "is not closed" in why_skipped(clinic)


def test_data_room__file_touched_or_put_back__is_served(clinic: Clinic) -> None:
    clinic.room()
    content = csv_file(clinic).read_text()
    csv_file(clinic).write_text(content + "\n1,1,1")
    assert why_skipped(clinic)
    csv_file(clinic).write_text(content)
    assert why_skipped(clinic) == ""


def test_data_room__file_changed_while_it_runs__is_noticed_within_the_hour_and_by_no_job(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accepted(clinic).job_id.hex()
    room = clinic.room()
    content = csv_file(clinic).read_text()
    csv_file(clinic).write_text(content + "\n1,1,1")
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.node.served.load", None)
        train(room, job, 1, weights())  # what was frozen, to the end
        room.look_at_sources()
        assert room._looking is None, "the hour is not over"
    look(room)
    assert "has changed since it was listed" in room.skipped[str(clinic.dataset_id)]
    assert room.datasets == []
    csv_file(clinic).write_text(content)
    look(room)
    assert [e.dataset_id for e in room.datasets] == [clinic.dataset_id]


def test_sql__database_down__is_served_as_it_was_frozen(
    clinic: Clinic, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = database(clinic, tmp_path)
    before = clinic.room().records[clinic.dataset_id]
    path.rename(tmp_path / "away.sqlite")
    room = clinic.room()
    assert (room.records[clinic.dataset_id].features == before.features).all()
    assert "is served as it was frozen: the database answers the query" in caplog.text
    look(room)
    assert [e.dataset_id for e in room.datasets] == [clinic.dataset_id]


@pytest.mark.parametrize(
    "statement",
    ["delete from t where who = 'p3'", "update t set a = a + 1 where who = 'p3'"],
)
def test_sql__query_gives_other_rows__is_refused_at_the_start_and_within_the_hour(
    clinic: Clinic, tmp_path: Path, statement: str
) -> None:
    path = database(clinic, tmp_path)
    room = clinic.room()
    change(path, statement)
    look(room)
    for skipped in (room.skipped, clinic.room().skipped):
        said = skipped[str(clinic.dataset_id)]
        assert "the query has changed since it was listed" in said and "--source" in said


def test_sql__no_job_runs_the_query(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(clinic, tmp_path)
    room = clinic.room()
    monkeypatch.setattr("fl_client.node.served.load", None)
    room.refresh()
    withdraw_patient(config.read(clinic.folder), "p3")
    room.refresh()  # the withdrawal neither
    assert room.records[clinic.dataset_id].persons == 19


@pytest.mark.parametrize(
    "changes",
    [{"query": "SELECT * FROM t WHERE a > -9"}, {"columns": {"a": Column("b"), "b": Column("a")}}],
    ids=["query", "columns"],
)
def test_data_room__source_edited_by_hand__is_no_longer_what_was_listed(
    clinic: Clinic, tmp_path: Path, hub_calls: list, changes: dict[str, Any]
) -> None:
    database(clinic, tmp_path)
    clinic.room()
    edited = replace(entry_of(clinic).source, **changes)
    entries.update(clinic.folder, clinic.dataset_id, source=edited)
    assert "how its table is read (query, columns, words) is not as" in why_skipped(clinic)
    node = config.read(clinic.folder)
    _, version = replace_dataset(node, OWNER[1], clinic.dataset_id, edited)
    assert version == 2 and why_skipped(clinic) == ""


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_snapshot__lost__is_made_again_from_the_same_source_or_says_what_to_do(
    clinic: Clinic, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = clinic.room().records[clinic.dataset_id]
    (kept,) = (clinic.folder / "snapshots").iterdir()

    def lose() -> None:
        kept.write_bytes(b"") if damage == "damaged" else kept.unlink()

    lose()
    assert (clinic.room().records[clinic.dataset_id].features == before.features).all()
    assert "it was made again from its source" in caplog.text and kept.stat().st_size
    csv_file(clinic).rename(csv_file(clinic).with_name("elsewhere.csv"))
    lose()
    said = why_skipped(clinic)
    for part in (kept.name, "cannot be made again", "replace-dataset", "from a backup"):
        assert part in said
    why, _ = standing(clinic.folder, entry_of(clinic), open_ledger(clinic.folder)[1])
    assert kept.name in why


def test_snapshot__named_after_no_hash__is_refused_in_the_entry(clinic: Clinic) -> None:
    path = entries.path_of(clinic.folder, clinic.dataset_id)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"snapshot": "../../x"}))
    assert entries.read(clinic.folder)[1]


def test_withdrawn_patient__is_not_in_the_snapshot_any_more_and_still_known(
    clinic: Clinic, tmp_path: Path
) -> None:
    path = database(clinic, tmp_path)
    clinic.room()
    secret = open_ledger(clinic.folder)[1]
    whole = read_table(clinic.folder, entry_of(clinic), secret)
    withdraw_patient(config.read(clinic.folder), "p3")
    path.unlink()
    entry = entry_of(clinic)
    assert len(list((clinic.folder / "snapshots").iterdir())) == 1, "the one with them is gone"
    left = snapshots.read(clinic.folder / "snapshots", entry.snapshot, tmp_path)
    assert len(left.targets) == len(whole.targets) - 2 == 38
    gone = whole.features[6:8].tolist()
    assert not [row for row in left.features.tolist() if row in gone]
    assert left.members is not None and left.members.content == entry.content
    assert clinic.room().records[clinic.dataset_id].persons == 19
    withdraw_patient(config.read(clinic.folder), "p5")
    assert clinic.room().records[clinic.dataset_id].persons == 18


def test_withdrawal__killed_before_the_snapshot_is_made_again__the_node_does_it(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, their inputs stayed on the disk for good, though no job saw them."""
    database(clinic, tmp_path)
    room = clinic.room()
    gone = room.records[clinic.dataset_id].features[6:8].tolist()

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(versions, "freeze", killed)
        withdraw_patient(config.read(clinic.folder), "p3")
    for look_again in (room.refresh, room.refresh, clinic.room):
        look_again()
        (only,) = (clinic.folder / "snapshots").iterdir()
        assert only.stem == entry_of(clinic).snapshot
        left = snapshots.read(clinic.folder / "snapshots", only.stem, tmp_path)
        assert len(left.targets) == 38
        assert not [row for row in left.features.tolist() if row in gone]
    assert room.records[clinic.dataset_id].persons == 19
    assert not room.skipped


def test_withdrawal__beside_a_command_that_is_about_to_list__leaves_it_its_snapshot(
    clinic: Clinic, tmp_path: Path
) -> None:
    path = database(clinic, tmp_path)
    clinic.room()
    entry = entry_of(clinic)
    change(path, "update t set a = a + 1")
    made = load(entry.source, entry.manifest.schema, open_ledger(clinic.folder)[1])
    beside = freeze(clinic.folder, made)
    withdraw_patient(config.read(clinic.folder), "p3")
    names = {one.stem for one in (clinic.folder / "snapshots").iterdir()}
    assert names == {beside, entry_of(clinic).snapshot}, "and the one with them is gone"


def test_snapshot__of_another_version_than_is_listed__is_never_served(
    clinic: Clinic, tmp_path: Path
) -> None:
    """Half of a backup was put back, or two commands ran into each other."""
    path = database(clinic, tmp_path)
    clinic.room()
    entry = entry_of(clinic)
    before = clinic.room().records[clinic.dataset_id].features
    change(path, "update t set a = -a")
    other = load(entry.source, entry.manifest.schema, open_ledger(clinic.folder)[1])
    wrong = freeze(clinic.folder, other)
    entries.update(clinic.folder, clinic.dataset_id, snapshot=wrong)
    assert "is of another version, and cannot be made again" in why_skipped(clinic)
    change(path, "update t set a = -a")
    again = clinic.room().records[clinic.dataset_id].features
    assert (again[:] == before[:]).all() and entry_of(clinic).snapshot != wrong


def test_data_room__share_that_fails_while_it_is_read__is_served_as_it_was_frozen(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, a file that is there and cannot be read now counted as changed, for an hour."""
    clinic.room()
    os.utime(csv_file(clinic), (1, 1))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers, "opened", denied)
    assert clinic.room().datasets
    assert "is served as it was frozen: " in caplog.text and "Permission denied" in caplog.text


def test_data_room__look_ends_while_datasets_are_taken_in__what_it_found_counts(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, it was forgotten, and a changed table was served until the next start."""
    room, file = clinic.room(), csv_file(clinic)
    taken_in = room._taken_in

    def meanwhile(entry: DatasetEntry) -> DatasetEntry:
        found = taken_in(entry)
        file.write_text(file.read_text().replace("1", "2"))
        room._next_look = 0.0
        room.look_at_sources()
        assert room._looking is not None
        room._looking.join(60)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(room, "_taken_in", meanwhile)
        os.utime(entries.path_of(clinic.folder, clinic.dataset_id), (1, 1))
        room.refresh()
    assert room.datasets
    room.refresh()
    assert not room.datasets and "has changed since it was listed" in str(room.skipped)


def test_prune__what_cannot_be_deleted__is_named_and_stops_no_node(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    clinic.room()
    there = clinic.folder / "snapshots" / "x.parquet"
    there.mkdir()
    os.utime(there, (0, 0))
    assert clinic.room().datasets
    assert "x.parquet: cannot be deleted: " in caplog.text


def test_pictures__files_gone__are_served_as_they_were_frozen(
    clinic: Clinic, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(clinic, tmp_path / "x")
    before = clinic.room().records[clinic.dataset_id]
    shutil.rmtree(tmp_path / "x" / "files")
    room = clinic.room()
    assert (room.records[clinic.dataset_id].features[:] == before.features[:]).all()
    assert "none of the 24 pictures of table.csv is there" in caplog.text
    shutil.rmtree(tmp_path / "x")
    assert clinic.room().records[clinic.dataset_id].persons == 12


def test_pictures__one_changed__is_refused_and_what_is_kept_of_it_is_deleted_in_the_end(
    clinic: Clinic, tmp_path: Path, hub_calls: list
) -> None:
    source = pictures(clinic, tmp_path / "x")
    clinic.room()
    (first,) = (clinic.folder / "pictures").iterdir()
    made, labels = made_up(24)
    made[3] = 7
    png(tmp_path / "x", made, labels, 2)
    assert "has changed since it was listed" in why_skipped(clinic)
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, source)
    room = clinic.room()
    assert room.records[clinic.dataset_id].features[3].max() < 0
    assert first.exists(), "a command that has just made it may not have listed it yet"
    os.utime(first, (0, 0))
    clinic.room()
    (second,) = (clinic.folder / "pictures").iterdir()
    assert second != first
    remove_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id)
    for name in ("pictures", "snapshots"):
        assert list((clinic.folder / name).iterdir()) == []


def test_pictures__shard_damaged__is_read_again_from_the_files(
    clinic: Clinic, tmp_path: Path
) -> None:
    pictures(clinic, tmp_path / "x")
    before = np.array(clinic.room().records[clinic.dataset_id].features[:])
    (shard,) = (clinic.folder / "pictures").glob("*/*.npy")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert (clinic.room().records[clinic.dataset_id].features[:] == before).all()


def test_prune__dataset_file_that_cannot_be_read__deletes_nothing(clinic: Clinic) -> None:
    clinic.room()
    entries.path_of(clinic.folder, clinic.dataset_id).write_text("{")
    prune(clinic.folder)
    assert len(list((clinic.folder / "snapshots").iterdir())) == 1


def test_source_away__a_query_that_cannot_be_asked__is_told_from_rows_that_do_not_parse(
    clinic: Clinic, tmp_path: Path
) -> None:
    path = database(clinic, tmp_path)
    source, schema = entry_of(clinic).source, entry_of(clinic).manifest.schema
    change(path, "alter table t rename to u")
    with pytest.raises(SourceAway):
        load(source, schema)
    change(path, "alter table u rename to t")
    change(path, "update t set a = 'x' where who = 'p3'")
    began = time.monotonic()
    assert "a='x' is not a number" in why_skipped(clinic) and time.monotonic() - began < 60
