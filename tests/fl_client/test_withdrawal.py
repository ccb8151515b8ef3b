"""Who withdraws is told apart in every kind of source, and the hospital learns which jobs and
models had used them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from fl_client.data.sources import plain
from fl_client.errors import DatasetError
from fl_client.model.export import export_model
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.node import config
from fl_client.node.admission import admit
from fl_client.node.job_folder import JobFolder
from fl_client.node.rounds import train
from fl_client.node.versions import (
    JobWithPatient,
    remove_dataset,
    replace_dataset,
    withdraw_patient,
)
from fl_client.office import cli
from fl_client.office.owner_cli import owner
from fl_client.protocol import Signed, sha256_hex
from tests.clinic import Clinic, accepted, weights
from tests.fl_client.test_album import SCHEMA as X_RAY
from tests.fl_client.test_album import Small, dicom
from tests.fl_client.test_served import csv_file, database, entry_of

OWNER = accounts()[1]


def jobs_with(clinic: Clinic, who: str) -> list[str]:
    return [job.job_id for job in withdraw_patient(config.read(clinic.folder), who).jobs]


def several_rows(clinic: Clinic, folder: Path) -> None:
    """The clinic's table with two rows of each of 20 patients."""
    entry, file = entry_of(clinic), csv_file(clinic)
    head, *rows = file.read_text().split("\n")
    lines = [f"{head},who", *(f"{row},p{i // 2}" for i, row in enumerate(rows))]
    file.write_text("\n".join(lines))
    manifest = replace(entry.manifest, unit="patient", records_per_patient=2, persons=20)
    clinic.write(replace(entry, manifest=manifest, source=plain(file, "who")))


def as_query(clinic: Clinic, folder: Path) -> None:
    database(clinic, folder)


def a_round(clinic: Clinic) -> str:
    job = accepted(clinic, epsilon=0.5, persons={clinic.dataset_id: 20}).job_id.hex()
    train(clinic.room(), job, 1, weights())
    return job


@pytest.mark.parametrize("listed", [several_rows, as_query])
def test_withdraw_patient__jobs_over_tables__those_with_the_patient_and_no_others(
    clinic: Clinic, tmp_path: Path, hub_calls: list, listed: Callable[[Clinic, Path], None]
) -> None:
    listed(clinic, tmp_path)
    first = a_round(clinic)
    accepted(clinic, epsilon=0.2, persons={clinic.dataset_id: 20})
    assert jobs_with(clinic, "p3") == [first], "nobody was used by a job that trained nothing"
    second = a_round(clinic)
    assert jobs_with(clinic, "p3") == [first], "asked again, the same"
    assert jobs_with(clinic, "p5") == [first, second]
    with pytest.raises(DatasetError, match="nobody with this identifier"):
        withdraw_patient(config.read(clinic.folder), "p99")


def test_withdraw_patient__what_is_said_of_a_job__is_its_dataset_day_and_attested_model(
    clinic: Clinic, tmp_path: Path
) -> None:
    several_rows(clinic, tmp_path)
    job, today = a_round(clinic), datetime.now(UTC).date().isoformat()
    digest = model_hash(weights()).hex()
    JobFolder(clinic.folder, job).keep_attested(f"{digest} {'22' * 32}")
    (told,) = withdraw_patient(config.read(clinic.folder), "p3").jobs
    assert told == JobWithPatient(job, clinic.dataset_id, "T", told.date, digest)
    assert told.date in (today, datetime.now(UTC).date().isoformat())


def test_withdraw_patient__only_an_earlier_version_held_them__its_jobs_are_listed(
    clinic: Clinic, tmp_path: Path, hub_calls: list
) -> None:
    several_rows(clinic, tmp_path)
    older = a_round(clinic)
    lines = csv_file(clinic).read_text().split("\n")
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if not line.endswith(",p3")))
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, fewer)
    manifest = entry_of(clinic).manifest
    newer = accepted(clinic, epsilon=0.5, persons={clinic.dataset_id: manifest.persons})
    train(clinic.room(), newer.job_id.hex(), 1, weights())
    done = withdraw_patient(config.read(clinic.folder), "p3")
    assert (done.datasets, [job.job_id for job in done.jobs]) == ([], [older])
    assert jobs_with(clinic, "p5") == [older, newer.job_id.hex()]
    # the table that comes back with them is served without them
    back = tmp_path / "back.csv"
    back.write_text("\n".join(lines))
    replace_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id, back)
    assert clinic.room().records[clinic.dataset_id].persons == 18


def test_withdraw_patient__dataset_was_removed__its_jobs_are_listed_by_its_number(
    clinic: Clinic, tmp_path: Path
) -> None:
    several_rows(clinic, tmp_path)
    job = a_round(clinic)
    remove_dataset(config.read(clinic.folder), OWNER[1], clinic.dataset_id)
    done = withdraw_patient(config.read(clinic.folder), "p3")
    assert [(one.job_id, one.dataset_id) for one in done.jobs] == [(job, clinic.dataset_id)]


def test_withdraw_patient__pictures_of_a_dicom_patient__leave_and_their_job_is_listed(
    clinic: Clinic, tmp_path: Path
) -> None:
    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    rng = np.random.default_rng(1)
    source = dicom(
        tmp_path / "x", rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), [0, 1] * 20, 2
    )
    entry = entry_of(clinic)
    manifest = replace(
        entry.manifest, schema=X_RAY, unit="patient", records_per_patient=2, persons=20
    )
    clinic.write(replace(entry, manifest=manifest, source=source))
    graph, start = export_model(Small(), torch.zeros(1, 1, 28, 28))
    hashes = {"graph_hash": sha256_hex(graph), "weights_hash": sha256_hex(start)}
    spec = clinic.spec(schema_hash=X_RAY.hash, persons={clinic.dataset_id: 20}, **hashes)
    terms = clinic.paid(spec)
    assert isinstance(admit(clinic.room(), terms.to_json(), graph, start), Signed)
    train(clinic.room(), terms.job_id.hex(), 1, from_safetensors(start))
    assert jobs_with(clinic, "p3") == [terms.job_id.hex()]
    left = clinic.room().records[clinic.dataset_id]
    assert (left.persons, len(left.targets)) == (19, 38)


def test_withdraw_patient_command__says_what_had_used_them_and_what_is_left_to_do(
    clinic: Clinic, tmp_path: Path
) -> None:
    several_rows(clinic, tmp_path)
    job = a_round(clinic)
    run = CliRunner().invoke
    said = run(cli.node, ["withdraw-patient", str(clinic.folder), "p3"]).output
    for part in (
        job,
        f"dataset {clinic.dataset_id} (T)",
        "no model attested here",
        "only you know",
    ):
        assert part in said
    assert "datahub owner contributors" in said
    told = json.loads(
        run(cli.node, ["withdraw-patient", str(clinic.folder), "p5", "--json"]).output
    )
    assert told["datasets"] == [clinic.dataset_id] and told["jobs"][0]["job_id"] == job


def test_contributors_command__another_list__waits_on_the_chain(
    clinic: Clinic, tmp_path: Path, hub_calls: list
) -> None:
    (tmp_path / "key").write_text(OWNER[1])
    (tmp_path / "list.csv").write_text(f"account,weight\n{accounts()[3][0]},2\n")
    arguments = [str(clinic.folder), str(clinic.dataset_id), str(tmp_path / "list.csv")]
    done = CliRunner().invoke(
        owner, ["contributors", *arguments, "--owner-key-file", str(tmp_path / "key")]
    )
    assert "a list of 1 contributors is posted as epoch 1" in done.output
    revenue = Revenue(connect(clinic.url), clinic.made.market)
    assert revenue.next_epoch(clinic.dataset_id) == 2
    assert hub_calls[-1][1]["entries"] == [[accounts()[3][0], 2]]
