"""Nothing that a node answers, computes in shape, bills or refuses depends on one patient, whatever
kind of source the table is: two nodes alike but for one patient, asked the same.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from fl_client.data.manifests import Manifest
from fl_client.data.readers import quiet_duckdb
from fl_client.data.sources import Source
from fl_client.model.export import export_model
from fl_client.model.weights import from_safetensors
from fl_client.node.admission import admit
from fl_client.node.rounds import evaluate, train
from fl_client.privacy.training import Patients
from fl_client.protocol import Refused, Signed, sha256_hex
from fl_client.worker import workers
from fl_client.worker.serve import Desk
from tests.clinic import GRAPH, WEIGHTS, Clinic
from tests.fl_client.test_album import SCHEMA as X_RAY
from tests.fl_client.test_album import Small, made_up, named, png
from tests.fl_client.test_served import entry_of

PATIENTS, EACH = 20, 2
Row = list[str]  # a, b, y, who
PATIENT = {"patients": {"columns": ["who"]}}


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    made = rng.normal(size=(PATIENTS * EACH, 2))
    return [
        [f"{a:.4f}", f"{b:.4f}", str(int(a + b > 0)), f"p{i // EACH}"]
        for i, (a, b) in enumerate(made)
    ]


def csv(folder: Path, table: list[Row]) -> Source:
    (folder / "t.csv").write_text("\n".join(["a,b,y,who", *map(",".join, table)]) + "\n")
    return Source.from_dict({"source": {"file": str(folder / "t.csv")}, **PATIENT})


def sql(folder: Path, table: list[Row]) -> Source:
    with sqlite3.connect(folder / "t.sqlite") as db:
        db.execute("create table t (a, b, y, who)")
        db.executemany("insert into t values (?,?,?,?)", table)
    db.close()
    said = {"url": f"sqlite:///{folder}/t.sqlite", "query": "SELECT * FROM t"}
    return Source.from_dict({"source": said, **PATIENT})


def parquet(folder: Path, table: list[Row]) -> Source:
    csv(folder, table)
    with quiet_duckdb() as db:
        db.execute(f"COPY (FROM read_csv('{folder}/t.csv')) TO '{folder}/t.parquet'")
    return Source.from_dict({"source": {"file": str(folder / "t.parquet")}, **PATIENT})


def many_records(table: list[Row]) -> list[Row]:
    return table + [[f"{i / 60:.2f}", "1.5", "1", "p3"] for i in range(60)]


def missing_values(table: list[Row]) -> list[Row]:
    return [["", *row[1:]] if row[3] == "p3" else row for row in table]


def one_missing_value(table: list[Row]) -> list[Row]:
    return [["", *row[1:]] if i == 7 else row for i, row in enumerate(table)]


def absent(table: list[Row]) -> list[Row]:
    return [row for row in table if row[3] != "p3"]


def extreme(table: list[Row]) -> list[Row]:
    return [["1e30", "-1e30", "1", "p3"] if row[3] == "p3" else row for row in table]


class Within:
    """A worker in this process, without walls, so that its batches can be watched."""

    ended, used_at, facts, cohort = False, 0.0, None, None
    missing: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *, folders: list[str], **_: int):
        self.folders, self._desk = folders, Desk()

    def ask(self, task: Any, *_: Any) -> Any:
        return self._desk.answer(task)

    tell = ask

    def end(self) -> None:
        pass


def asked(
    clinic: Clinic, source: Source, manifest: Manifest, jobs: list[Any], model: tuple[bytes, bytes]
) -> Any:
    """All that a buyer, or somebody who watches the machine's batches, learns from a node."""
    clinic.write(replace(entry_of(clinic), source=source, manifest=manifest))
    shapes: list[tuple[torch.Size, ...]] = []
    whole = Patients.seated

    def seen(self: Patients, places: torch.Tensor) -> Any:
        found = whole(self, places)
        shapes.append(tuple(part.shape for part in found))
        return found

    good, *bad = jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patients, "seated", seen)
        patch.setattr(workers, "Worker", Within)
        room = clinic.room()
        answers = [admit(room, terms.to_json(), *model) for terms in (good, *bad)]
        told: list[dict[str, Any]] = []
        arrays = from_safetensors(model[1])
        for number in (1, 2):
            reply = train(room, good.job_id.hex(), number, arrays)
            # the log's head is a hash of its lines, times among them
            hidden = {"loss": None, "model": len(reply.model), "log_head": len(reply.log_head)}
            told.append(asdict(reply) | hidden)
            arrays = from_safetensors(reply.model)
        scored = evaluate(room, good.job_id.hex(), arrays)
        hidden = {"scores": len(scored.scores), "log_head": len(scored.log_head)}
        told.append(asdict(scored) | hidden)
    assert [type(answer) for answer in answers] == [Signed, Refused, Refused]
    assert len(shapes) > 2, "batches are looked at"
    return answers, told, shapes


def two_nodes(clinic: Clinic, folder: Path) -> tuple[Clinic, Clinic]:
    """The clinic's node, and the same node again, with the same keys."""
    if not (folder / "other node").exists():
        shutil.copytree(clinic.folder, folder / "other node")
    return clinic, replace(clinic, folder=folder / "other node")


def jobs_of(clinic: Clinic, model: tuple[bytes, bytes], schema_hash: str) -> list[Any]:
    """One that is good, one too costly, one for a model that was another when it was paid."""
    hashes = {
        "schema_hash": schema_hash,
        "graph_hash": sha256_hex(model[0]),
        "weights_hash": sha256_hex(model[1]),
        "persons": {clinic.dataset_id: PATIENTS},
    }
    specs = [
        clinic.spec(**hashes),
        clinic.spec(epsilon=4.0, **hashes),
        clinic.spec(**(hashes | {"weights_hash": "11" * 32})),
    ]
    return [clinic.paid(spec) for spec in specs]


EVERY = [many_records, missing_values, one_missing_value, absent, extreme]
# behind the reader all kinds are one
ASKED = [(csv, change) for change in EVERY]
ASKED += [(kind, change) for kind in (sql, parquet) for change in (many_records, missing_values)]


@pytest.mark.parametrize(("kind", "change"), ASKED)
def test_node__tables_that_differ_in_one_patient__answers_shapes_bills_and_refusals_are_equal(
    clinic: Clinic,
    tmp_path: Path,
    kind: Callable[[Path, list[Row]], Source],
    change: Callable[[list[Row]], list[Row]],
) -> None:
    manifest = replace(
        entry_of(clinic).manifest, unit="patient", records_per_patient=EACH, persons=PATIENTS
    )
    jobs = jobs_of(clinic, (GRAPH, WEIGHTS), manifest.schema.hash)
    found = []
    for i, node in enumerate(two_nodes(clinic, tmp_path)):
        (tmp_path / str(i)).mkdir()
        source = kind(tmp_path / str(i), change(rows()) if i else rows())
        found.append(asked(node, source, manifest, jobs, (GRAPH, WEIGHTS)))
    assert found[0] == found[1]
    one, other = (node.room().records[clinic.dataset_id] for node in two_nodes(clinic, tmp_path))
    assert not np.array_equal(one.features, other.features), "they do differ"


def unreadable(folder: Path) -> None:
    for i in (6, 7):
        (folder / "files" / f"{i}.png").write_bytes(b"\x89PNG cut short")


def relabelled(folder: Path, label: Callable[[int], list[list[Any]]]) -> None:
    named(folder, [row for i in range(PATIENTS * EACH) for row in label(i)])


def no_label(folder: Path) -> None:
    relabelled(
        folder, lambda i: [[f"files/{i}.png", "" if i in (6, 7) else i % 2, f"p{i // EACH}"]]
    )


def not_there(folder: Path) -> None:
    relabelled(
        folder, lambda i: [] if i in (6, 7) else [[f"files/{i}.png", i % 2, f"p{i // EACH}"]]
    )


def thirty_of_one(folder: Path) -> None:
    relabelled(
        folder, lambda i: [[f"files/{i}.png", i % 2, f"p{i // EACH}"]] * (15 if i in (6, 7) else 1)
    )


@pytest.mark.parametrize("change", [unreadable, no_label, not_there, thirty_of_one])
def test_node__pictures_that_differ_in_one_patient__answers_shapes_bills_and_refusals_are_equal(
    clinic: Clinic, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    manifest = replace(
        entry_of(clinic).manifest,
        schema=X_RAY,
        unit="patient",
        records_per_patient=EACH,
        persons=PATIENTS,
    )
    torch.manual_seed(0)
    model = export_model(Small(), torch.zeros(1, 1, 28, 28))
    jobs = jobs_of(clinic, model, X_RAY.hash)
    found = []
    for i, node in enumerate(two_nodes(clinic, tmp_path)):
        source = png(tmp_path / str(i), *made_up(PATIENTS * EACH), EACH)
        if i:
            change(tmp_path / str(i))
        found.append(asked(node, replace(source, unreadable="leave out"), manifest, jobs, model))
    assert found[0] == found[1]
    one, other = (node.room().records[clinic.dataset_id] for node in two_nodes(clinic, tmp_path))
    assert len(one.targets) != len(other.targets), "they do differ"
