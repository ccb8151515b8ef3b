"""A changed table is the next version of its dataset, a withdrawn patient is out of the next round,
and a dataset that cannot be used takes no other down.
"""

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from fl_client.data.manifests import Manifest
from fl_client.data.sources import plain
from fl_client.errors import ConfigError, DatasetError, LedgerError, ProtocolError
from fl_client.model.weights import from_safetensors
from fl_client.node import config, entries
from fl_client.node.admission import admit
from fl_client.node.entries import DatasetEntry
from fl_client.node.rounds import train
from fl_client.node.served import open_ledger, standing
from fl_client.node.versions import remove_dataset, replace_dataset, withdraw_patient
from fl_client.privacy.ledger import Ledger
from fl_client.protocol import Signed
from tests.clinic import GRAPH, PRICE, SCHEMA, WEIGHTS, Clinic, accepted, refusal, weights

OWNER = accounts()[1]
LEDGERS = Path(__file__).parent / "ledgers"


def entry_of(clinic: Clinic) -> DatasetEntry:
    (entry,) = config.read(clinic.folder).datasets
    return entry


def with_patients(clinic: Clinic) -> DatasetEntry:
    """The clinic's dataset with a patient column: 20 patients, two records each."""
    entry = entry_of(clinic)
    head, *rows = entry.source.file.read_text().split("\n")
    lines = [f"{head},who", *(f"{row},p{i // 2}" for i, row in enumerate(rows))]
    entry.source.file.write_text("\n".join(lines))
    manifest = replace(entry.manifest, unit="patient", records_per_patient=2)
    clinic.write(replace(entry, manifest=manifest, source=plain(entry.source.file, "who")))
    return entry_of(clinic)


def spent(clinic: Clinic) -> float:
    return Ledger(clinic.folder / "ledger.sqlite").epsilon_spent(entry_of(clinic).name)


def test_replace_dataset__changed_table__is_the_next_version_with_its_patients_histories(
    clinic: Clinic, hub_calls: list, tmp_path: Path
) -> None:
    with_patients(clinic)
    job = accepted(clinic)
    room = clinic.room()
    first = from_safetensors(train(room, job.job_id.hex(), 1, weights()).model)
    before, old = spent(clinic), entry_of(clinic)
    more = tmp_path / "more.csv"
    more.write_text(old.source.file.read_text() + "\n1.0,0.5,1,p20\n0.3,0.1,0,p0")
    entry, version = replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, more)
    registry = Registry(connect(clinic.url), clinic.made.registry)
    assert registry.dataset(clinic.dataset_id).manifest_hash == entry.manifest.hash
    assert version == registry.standing(clinic.dataset_id).version == 2
    assert hub_calls == [
        (f"/api/v1/datasets/{clinic.dataset_id}/manifest", entry.manifest.as_dict())
    ]
    assert (entry.name, entry.source.file, entry.manifest.schema) == (old.name, more, SCHEMA)
    counted = spent(clinic)
    assert counted > before, "the new noised count is charged, on top of what was spent"
    # the node that runs takes the new table in; slots of a job follow from the count it was for
    with pytest.raises(ProtocolError, match=r"has a new version since job .* was accepted"):
        train(room, job.job_id.hex(), 2, first)
    assert room.records[clinic.dataset_id].persons == 21 and spent(clinic) == counted
    spec = clinic.spec(persons={clinic.dataset_id: entry.manifest.persons}, epsilon=0.5)
    new = clinic.paid(spec)
    assert isinstance(admit(room, new.to_json(), GRAPH, WEIGHTS), Signed)
    train(room, new.job_id.hex(), 1, weights())
    assert spent(clinic) > counted
    # again changes nothing: the count was drawn
    again, _ = replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, more)
    assert again.manifest == entry.manifest


def test_replace_dataset__moved_table__changes_the_place_alone(
    clinic: Clinic, hub_calls: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clinic.room()
    before = entry_of(clinic)
    moved = tmp_path / "elsewhere.csv"
    before.source.file.rename(moved)
    assert clinic.room().records[clinic.dataset_id].persons == 40
    assert "is not there; if it was moved: datahub node replace-dataset" in caplog.text
    entry, version = replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, moved)
    assert (entry.manifest, version, spent(clinic)) == (before.manifest, 1, 0.0)
    assert [e.source.file for e in clinic.room().datasets] == [moved]


def test_replace_dataset__rows_that_lack_a_value__are_not_dropped_without_a_word(
    clinic: Clinic, hub_calls: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holes = tmp_path / "holes.csv"
    holes.write_text(entry_of(clinic).source.file.read_text() + "\n1,,1\n?,2,1\n")
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, holes)
    assert "holes.csv: 2 rows lack a value and are left out: 1 b, 1 a" in caplog.text
    assert clinic.room().records[clinic.dataset_id].persons == 40


def test_replace_dataset__too_few_or_unknown_or_another_schema__refused_and_nothing_changes(
    clinic: Clinic, tmp_path: Path
) -> None:
    before, node = entry_of(clinic), config.read(clinic.folder)
    few = tmp_path / "few.csv"
    few.write_text("\n".join(before.source.file.read_text().split("\n")[:9]))
    with pytest.raises(DatasetError, match="persons=8 is under the floor of 10"):
        replace_dataset(node, OWNER[1], clinic.dataset_id, few)
    few.write_text("a,y\n1,1\n")
    with pytest.raises(DatasetError, match=r"lacks the column.* b"):
        replace_dataset(node, OWNER[1], clinic.dataset_id, few)
    with pytest.raises(ConfigError, match=f"not one of this node's datasets: {clinic.dataset_id}"):
        replace_dataset(node, OWNER[1], 10**6, few)
    assert entry_of(clinic) == before


def test_withdraw_patient__while_the_node_runs__is_out_of_the_next_round_and_later_versions(
    clinic: Clinic, hub_calls: list, tmp_path: Path
) -> None:
    with_patients(clinic)
    job = accepted(clinic)
    room = clinic.room()
    first = from_safetensors(train(room, job.job_id.hex(), 1, weights()).model)
    released = entry_of(clinic).manifest
    assert withdraw_patient(config.read(clinic.folder), " p3 ").datasets == [clinic.dataset_id]
    train(room, job.job_id.hex(), 2, first)
    assert room.records[clinic.dataset_id].persons == 19
    assert len(room.records[clinic.dataset_id].targets) == 38
    assert entry_of(clinic).manifest == released, "nothing of it is published"
    assert clinic.room().records[clinic.dataset_id].persons == 19, "after a restart as well"
    more = tmp_path / "more.csv"
    more.write_text(entry_of(clinic).source.file.read_text() + "\n1.0,0.5,1,p20")
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, more)
    assert clinic.room().records[clinic.dataset_id].persons == 20, "p3 is still in the file"
    with pytest.raises(DatasetError, match="nobody with this identifier"):
        withdraw_patient(config.read(clinic.folder), "p99")


def test_withdraw_patient__same_file_listed_by_record__loses_the_patient_s_records_too(
    clinic: Clinic,
) -> None:
    by_record = entry_of(clinic)
    entry = with_patients(clinic)
    registry = Registry(connect(clinic.url, OWNER[1]), clinic.made.registry)
    node = config.read(clinic.folder).node_address
    second = registry.list_dataset(node, PRICE, 5000, by_record.manifest.hash, "u", "T")
    clinic.write(
        DatasetEntry(
            second, plain(entry.source.file), replace(by_record.manifest, name="R"), name="records"
        )
    )
    found = withdraw_patient(config.read(clinic.folder), "p3")
    assert found.datasets == [clinic.dataset_id, second]
    room = clinic.room()
    assert {i: r.persons for i, r in room.records.items()} == {clinic.dataset_id: 19, second: 38}


def test_remove_dataset__is_retired_on_the_chain_and_served_no_more(clinic: Clinic) -> None:
    job = accepted(clinic)
    clinic_folder = config.read(clinic.folder)
    remove_dataset(clinic_folder, OWNER[1], clinic.dataset_id)
    registry = Registry(connect(clinic.url), clinic.made.registry)
    assert registry.standing(clinic.dataset_id).state is State.RETIRED
    assert config.read(clinic.folder).datasets == ()
    room = clinic.room()
    assert (room.datasets, room.skipped) == ([], {})
    assert room.ledger.reserved("t") == [] and room.ledger.open_jobs() == []
    assert room.ledger.datasets() == ["t"], "its budget binds its patients for ever"
    assert job.job_id.hex() in {line.job_id for line in room.ledger.jobs("t")}


def test_data_room__one_bad_dataset_of_three__the_others_are_served(
    clinic: Clinic, tmp_path: Path
) -> None:
    registry = Registry(connect(clinic.url, OWNER[1]), clinic.made.registry)
    node, entry = config.read(clinic.folder).node_address, entry_of(clinic)
    ids = [
        registry.list_dataset(node, PRICE, 5000, entry.manifest.hash, "u", f"T{i}")
        for i in range(3)
    ]
    for i, dataset_id in enumerate(ids):
        file = tmp_path / f"{i}.csv"
        file.write_text(entry.source.file.read_text() + f"\n0.{i + 1},1,1")
        clinic.write(replace(entry, dataset_id=dataset_id, source=plain(file), name=f"d{i}"))
    (tmp_path / "0.csv").unlink()
    registry.set_state(ids[1], State.RETIRED)
    entries.path_of(clinic.folder, ids[2]).write_text("{")
    room = clinic.room()
    assert [e.dataset_id for e in room.datasets] == [clinic.dataset_id]
    assert set(room.skipped) == {str(ids[0]), str(ids[1]), f"{ids[2]}.json"}
    assert "is retired; datahub node remove-dataset" in room.skipped[str(ids[1])]
    assert isinstance(admit(room, clinic.paid().to_json(), GRAPH, WEIGHTS), Signed)


def test_data_room__manifest_with_a_higher_budget_than_promised__is_skipped(clinic: Clinic) -> None:
    clinic.room()
    entry = entry_of(clinic)
    entries.write(
        clinic.folder, replace(entry, manifest=replace(entry.manifest, lifetime_epsilon=9.0))
    )
    assert "may fall, never rise to 9" in clinic.room().skipped[str(clinic.dataset_id)]
    entries.write(
        clinic.folder, replace(entry, manifest=replace(entry.manifest, lifetime_epsilon=2.0))
    )
    assert clinic.room().ledger.budget(entry.name).epsilon == 2.0


def test_open_ledger__secret_lost__is_noticed_and_never_replaced(clinic: Clinic) -> None:
    clinic.room()
    key = clinic.folder / "keys" / "patients.key"
    kept = key.read_text()
    assert key.stat().st_mode & 0o077 == 0
    key.unlink()
    for ledger in (clinic.folder / "ledger.sqlite", None):
        if ledger is None:  # with the ledger lost as well, the datasets still know
            for path in clinic.folder.glob("ledger.*"):
                path.unlink()
        with pytest.raises(ConfigError, match=r"patients\.key is missing"):
            open_ledger(clinic.folder)
        assert not key.exists()
    key.write_text(kept.replace(kept[0], "f" if kept[0] != "f" else "e", 1))


def test_open_ledger__another_secret__refused(clinic: Clinic) -> None:
    clinic.room()
    (clinic.folder / "keys" / "patients.key").write_text("ab" * 32)
    with pytest.raises(LedgerError, match="is not the secret that this ledger knows"):
        open_ledger(clinic.folder)


def test_standing__file_untouched__is_not_read_again(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.room()
    entry, secret = entry_of(clinic), open_ledger(clinic.folder)[1]
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.node.served.load", None)
        assert standing(clinic.folder, entry, secret) == ("", "")
    entry.source.file.write_text(entry.source.file.read_text() + "\n1,1,1")
    assert "replace-dataset" in standing(clinic.folder, entry, secret)[0]


# -- folders of before patients were known ---------------------------------------------------------


@pytest.fixture
def older(clinic: Clinic) -> Clinic:
    """The clinic's folder as the version of 2026-11-25 left it, a job under way."""
    entry = entry_of(clinic)
    for path in [*clinic.folder.glob("ledger.*"), clinic.folder / "keys" / "patients.key"]:
        path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(clinic.folder / "ledger.sqlite")) as db:
        db.executescript((LEDGERS / "format_1.sql").read_text())
    (key, other) = Ledger(clinic.folder / "ledger.sqlite").datasets()[::-1]
    document = {
        "file": str(entry.source.file),
        "patient_set": key,
        "patient_column": "",
        "manifest": entry.manifest.as_dict() | {"version": 1},
    }
    del document["manifest"]["records_per_patient"]
    entries.path_of(clinic.folder, clinic.dataset_id).write_text(json.dumps(document))
    assert other.startswith("5e")
    return clinic


def test_data_room__older_folder__patients_are_bound_by_all_that_was_spent(older: Clinic) -> None:
    room = older.room()
    (entry,) = room.datasets
    assert room.skipped == {} and entry.name == str(older.dataset_id)
    assert (older.folder / "keys" / "patients.key").stat().st_mode & 0o077 == 0
    before = room.ledger.epsilon_spent(entry.name)
    assert before > 1.1
    assert "lifetime budget" in refusal(older, older.paid(older.spec(epsilon=2.8)))
    assert older.room().ledger.epsilon_spent(entry.name) == before, "once is enough"


def test_data_room__older_folder_with_a_changed_table__is_skipped_and_replaced(
    older: Clinic, hub_calls: list
) -> None:
    entry = entry_of(older)
    entry.source.file.write_text(entry.source.file.read_text() + "\n1,1,1")
    assert "replace-dataset" in older.room().skipped[str(older.dataset_id)]
    replace_dataset(config.read(older.folder), OWNER[1], older.dataset_id, entry.source.file)
    room = older.room()
    assert [e.dataset_id for e in room.datasets] == [older.dataset_id]
    assert room.ledger.epsilon_spent(entry.name) > 1.1, "what the old table spent binds the new one"


def test_manifest__of_an_older_folder__keeps_the_hash_on_the_chain(older: Clinic) -> None:
    document = json.loads(entries.path_of(older.folder, older.dataset_id).read_text())["manifest"]
    older.room()
    assert Manifest.from_dict(document).hash == entry_of(older).manifest.hash
    assert np.isfinite(entry_of(older).manifest.persons)
