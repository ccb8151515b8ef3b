"""Pictures as a hospital has them, through its node: files and a table become records, a broken one
is named, a model trains on them by the batch.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_client.data.schemas import Schema
from fl_client.data.shards import Chosen
from fl_client.data.sources import Source
from fl_client.data.tables import load
from fl_client.errors import DatasetError
from fl_client.model.export import export_model
from fl_client.model.weights import from_safetensors
from fl_client.node import config, entries
from fl_client.node.admission import admit
from fl_client.node.rounds import evaluate, train
from fl_client.privacy.evaluation import CELLS
from fl_client.privacy.training import by_patient
from fl_client.protocol import Signed, sha256_hex
from tests.clinic import Clinic

pytest.importorskip("PIL", reason="pictures need pillow")
X_RAYS = Path(__file__).parents[3] / "shared" / "data" / "pneumoniamnist"
SECRET = b"s" * 32
SCHEMA = Schema.from_dict(
    {
        "picture": {"channels": 1, "size": [28, 28], "window": None, "fit": "stretch"},
        "target": {"name": "pneumonia", "kind": "yes/no"},
    }
)
SIDE = 28


def made_up(count: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8), [i % 2 for i in range(count)]


def png(folder: Path, pictures: np.ndarray, labels: list[int], each: int = 1) -> Source:
    """PNG files of made-up patients, each with `each` pictures, and a table that names them."""
    from PIL import Image

    (folder / "files").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "files" / f"{i}.png")
        rows.append([f"files/{i}.png", labels[i], f"p{i // each}"])
    return named(folder, rows)


def named(folder: Path, rows: list[list[Any]], **patients: Any) -> Source:
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "who"], *rows])
    return Source.from_dict(
        {
            "source": {"file": str(folder / "table.csv")},
            "patients": {"columns": ["who"]} | patients,
            "columns": {"picture": {"column": "file"}, "pneumonia": {"column": "label"}},
        }
    )


def dicom(folder: Path, pictures: np.ndarray, labels: list[int], each: int = 1) -> Source:
    """The same as DICOM files, the patients in their tags."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    rows = []
    for i, picture in enumerate(pictures):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset(f"{i}.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        made.PatientID, made.PatientName = f"p{i // each}", "Nobody"
        made.Rows = made.Columns = SIDE
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit, made.PixelRepresentation = 7, 0
        made.PixelData = picture.tobytes()
        made.save_as(folder / f"{i}.dcm")
        rows.append([f"{i}.dcm", labels[i], ""])
    return named(folder, rows, columns=["dicom:PatientID"])


def scaled(pictures: np.ndarray) -> np.ndarray:
    return ((pictures / 255 - 0.5) / 0.5)[:, None]


@pytest.mark.skipif(not X_RAYS.exists(), reason="the evaluation data is not here")
def test_x_rays__as_png_and_as_dicom__are_the_same_records_of_the_same_patients(
    tmp_path: Path,
) -> None:
    from numpy.lib import format as npy

    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    import zipfile

    with zipfile.ZipFile(X_RAYS / "pneumoniamnist_dev.npz") as file:
        pictures = npy.read_array(file.open("val_images.npy"))[:60]
        labels = [int(x) for x in npy.read_array(file.open("val_labels.npy"))[:60].ravel()]
    store = tmp_path / "store"
    one = load(png(tmp_path / "png", pictures, labels, 2), SCHEMA, SECRET, store)
    other = load(dicom(tmp_path / "dicom", pictures, labels, 2), SCHEMA, SECRET, store)
    window = replace(SCHEMA, picture=replace(SCHEMA.picture, window=(0, 255)))
    third = load(
        replace(png(tmp_path / "png", pictures, labels, 2)), window, SECRET, tmp_path / "w"
    )
    for found in (one, other, third):
        assert found.features[:] == pytest.approx(scaled(pictures), abs=1e-6)
        assert found.targets.tolist() == labels and found.persons == 30
    assert one.members is not None and other.members is not None
    assert one.members.who == other.members.who


def test_pictures__renamed_or_elsewhere__are_the_same_records(tmp_path: Path) -> None:
    pictures, labels = made_up(12)
    one = load(png(tmp_path / "a", pictures, labels), SCHEMA, SECRET, tmp_path / "store")
    (tmp_path / "b").mkdir()
    rows = []
    for i in range(12):
        shutil.copy(tmp_path / "a" / "files" / f"{i}.png", tmp_path / "b" / f"other-{i}.png")
        rows.append([str(tmp_path / "b" / f"other-{i}.png"), labels[i], f"p{i}"])
    other = load(named(tmp_path / "b", rows), SCHEMA, SECRET, tmp_path / "store")
    assert one.members is not None and other.members is not None
    assert one.members.content == other.members.content


def test_pictures__read_once__are_found_again_until_a_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, labels = made_up(12)
    source, store = png(tmp_path / "a", pictures, labels), tmp_path / "store"
    first = load(source, SCHEMA, SECRET, store)
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.data.album.read_picture", None)
        again = load(source, SCHEMA, SECRET, store)
    assert (again.features[:] == first.features[:]).all()
    (folder,) = store.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    (folder / "album.json").unlink()  # killed while it was written
    assert load(source, SCHEMA, SECRET, store).persons == 12
    pictures[3] = 0
    png(tmp_path / "a", pictures, labels)
    changed = load(source, SCHEMA, SECRET, store)
    assert changed.members is not None and first.members is not None
    assert changed.members.content != first.members.content


def bytes_flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 0xFF
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no list": lambda f: (f / "album.json").unlink(),
    "an empty list": lambda f: (f / "album.json").write_text(""),
    "a list of another kind": lambda f: (f / "album.json").write_text("[1]"),
    "a list of nobody": lambda f: (f / "album.json").write_text("{}"),
    "a list without hashes": lambda f: (f / "album.json").write_text(
        (f / "album.json").read_text().replace("sha256", "sha")
    ),
    "no index": lambda f: (f / "index.json").unlink(),
    "pixels cut short": lambda f: (f / "pictures-00000.npy").write_bytes(b"x"),
    "one pixel": lambda f: bytes_flipped(f / "pictures-00000.npy"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_pictures__what_was_kept_is_damaged_or_put_back_in_part__is_read_again(
    tmp_path: Path, damage: str
) -> None:
    pictures, labels = made_up(12)
    source, store = png(tmp_path / "a", pictures, labels), tmp_path / "store"
    load(source, SCHEMA, SECRET, store)
    (folder,) = store.iterdir()
    DAMAGE[damage](folder)
    again = load(source, SCHEMA, SECRET, store)
    assert again.features[:] == pytest.approx(scaled(pictures), abs=1e-6)
    assert again.persons == 12


def test_pictures__one_study_of_many_is_broken__is_named_and_left_out_if_the_owner_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures, labels = made_up(12)
    source, store = png(tmp_path / "a", pictures, labels), tmp_path / "store"
    (tmp_path / "a" / "files" / "3.png").write_bytes(b"\x89PNG cut short")
    (tmp_path / "a" / "files" / "5.png").unlink()
    said = r"2 of 12 pictures cannot be read: 3.png: .*; 5.png: .*source.unreadable = \"leave out\""
    with pytest.raises(DatasetError, match=said):
        load(source, SCHEMA, SECRET, store)
    found = load(replace(source, unreadable="leave out"), SCHEMA, SECRET, store)
    assert (found.persons, found.dropped) == (10, 2)
    assert found.lacking == {"a picture that can be read": 2}
    assert "left out: 3.png" in caplog.text and "left out: 5.png" in caplog.text
    kept = [i for i in range(12) if i not in (3, 5)]
    assert found.features[:] == pytest.approx(scaled(pictures[kept]), abs=1e-6)


def test_pictures__a_folder_of_folders__is_a_table_with_the_folder_as_label(
    tmp_path: Path,
) -> None:
    from PIL import Image

    pictures, _ = made_up(6)
    for i, picture in enumerate(pictures):
        there = tmp_path / "all" / ("sick" if i % 2 else "well")
        there.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(there / f"{i}.png")
    columns = {"pneumonia": {"column": "folder", "levels": {"sick": "yes", "well": "no"}}}
    source = Source.from_dict({"source": {"file": str(tmp_path / "all")}, "columns": columns})
    found = load(source, SCHEMA)
    assert sorted(found.targets.tolist()) == [0, 0, 0, 1, 1, 1]
    assert found.features.shape == (6, 1, SIDE, SIDE)


def test_by_patient__pictures_on_disk__are_what_they_are_in_memory(tmp_path: Path) -> None:
    pictures, labels = made_up(12)
    found = load(png(tmp_path, pictures, labels, 3), SCHEMA, SECRET, tmp_path / "store")
    found = found.without({found.members.units[1]}) if found.members else found
    assert found.patients is not None and found.persons == 3
    given = found.targets, found.patients, 2
    disk, memory = by_patient(found.features, *given), by_patient(found.features[:], *given)
    places = torch.tensor([2, 3, 0, 3, 1])
    for one, other in zip(disk.seated(places), memory.seated(places), strict=True):
        assert torch.equal(one, other)
    assert not isinstance(disk.x, torch.Tensor) and disk.persons == memory.persons == 3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.see, self.say = nn.Conv2d(1, 4, 5, stride=4), nn.Linear(4 * 36, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.say(torch.tanh(self.see(x)).flatten(1))


def test_node__pictures__are_admitted_trained_on_and_looked_at(
    clinic: Clinic, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    labels = [int(i) for i in rng.integers(0, 2, 40)]
    dark = rng.integers(0, 100, (40, SIDE, SIDE))
    pictures = (dark + 120 * np.array(labels)[:, None, None]).astype(np.uint8)
    source = png(tmp_path / "x", pictures, labels)
    (entry,) = config.read(clinic.folder).datasets
    manifest = replace(entry.manifest, schema=SCHEMA, unit="patient", records_per_patient=1)
    clinic.write(replace(entry, manifest=manifest, source=source))
    torch.manual_seed(0)
    graph, start = export_model(Small(), torch.zeros(1, 1, SIDE, SIDE))
    spec = clinic.spec(
        epsilon=2.8,
        schema_hash=SCHEMA.hash,
        graph_hash=sha256_hex(graph),
        weights_hash=sha256_hex(start),
    )
    terms = clinic.paid(spec)
    room = clinic.room()
    assert isinstance(room.records[clinic.dataset_id].features, Chosen)
    assert isinstance(admit(room, terms.to_json(), graph, start), Signed)
    arrays = from_safetensors(start)
    for number in range(1, spec.rounds + 1):
        reply = train(clinic.room(), terms.job_id.hex(), number, arrays)
        arrays = from_safetensors(reply.model)
    assert any((arrays[name] != first).any() for name, first in from_safetensors(start).items())
    assert len(evaluate(clinic.room(), terms.job_id.hex(), arrays).scores) == CELLS
    again = clinic.room()
    for path in (clinic.folder / "pictures").glob("*/*.npy"):
        path.unlink()
    spent = again.ledger.epsilon_spent(entry.name)
    with pytest.raises(DatasetError, match="cannot be read"):
        evaluate(again, terms.job_id.hex(), arrays)
    assert again.ledger.epsilon_spent(entry.name) == spent
    shutil.rmtree(clinic.folder / "pictures")
    flat = clinic.paid(clinic.spec(schema_hash=SCHEMA.hash, epsilon=0.01))
    refused = admit(clinic.room(), flat.to_json(), *_logistic())
    assert "the dataset has pictures of shape (1, 28, 28)" in getattr(refused, "reason", "")


def _logistic() -> tuple[bytes, bytes]:
    from tests.clinic import GRAPH, WEIGHTS

    return GRAPH, WEIGHTS


def test_entry__a_source_of_pictures__is_written_and_read_again(tmp_path: Path) -> None:
    pictures, labels = made_up(3)
    source = replace(png(tmp_path, pictures, labels), unreadable="leave out", pictures=tmp_path)
    assert Source.from_dict(source.as_dict()) == source
    assert entries.stamp_of(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"picture": {}, "features": []}, "features or a picture, and not both"),
        ({"picture": {"channels": 2}}, "must have exactly the fields channels, size, window, fit"),
        (
            {"picture": {"channels": 2, "size": [8, 8], "window": None, "fit": "pad"}},
            "channels=2 must be 1",
        ),
    ],
)
def test_schema__of_pictures__what_is_wrong_is_named(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        Schema.from_dict(said | {"target": {"name": "y", "kind": "yes/no"}})
    assert Schema.from_dict(SCHEMA.as_dict()) == SCHEMA and SCHEMA.width == SIDE * SIDE
