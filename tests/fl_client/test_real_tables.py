"""Real hospitals' files as they are, by a source's file and a public schema: the same numbers as a
reader written for each of them by hand.
"""

from __future__ import annotations

import csv
import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datahub.demo.data import HEART_COLUMNS, HEART_SCHEMA
from fl_client.data.drafts import becomes, draft
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import load
from fl_client.errors import DatasetError
from tests.real_data import (
    BRCA,
    COLUMNS,
    SHARED,
    STROKE,
    STROKE_SCHEMA,
    brca,
    brca_header,
    picture_schema,
    png_folder,
    read_idx,
)

needs_data = pytest.mark.skipif(not STROKE.exists(), reason="the evaluation data is not here")


def by_hand(row: dict[str, str]) -> list[float]:
    """The 28 inputs of a patient of the stroke trial, column by column."""
    half = ["RSLEEP", "RCT", "RVISINF"]
    known = {"Y": (1.0, 0.0), "N": (0.0, 0.0), "": (0.0, 1.0)}
    return [
        (float(row["AGE"]) - 70) / 10,
        (float(row["RSBP"]) - 160) / 25,
        (float(row["RDELAY"]) - 20) / 12,
        (row["SEX"] == "M") - 0.5,
        *(float(row["RCONSC"] == level) for level in "DU"),
        *((row[name] == "Y") - 0.5 for name in half),
        *(x for name in ("RATRIAL", "RHEP24", "RASP3") for x in known[row[name]]),
        *((row[f"RDEF{i}"] == "Y") - 0.5 for i in range(1, 9)),
        *(float(row["STYPE"] == level) for level in ("TACS", "LACS", "POCS")),
        (row["RXASP"] == "Y") - 0.5,
        (row["RXHEP"] != "N") - 0.5,
    ]


@pytest.fixture(scope="module")
def trial() -> list[dict[str, str]]:
    with gzip.open(STROKE, "rt", newline="") as file:
        return list(csv.DictReader(file))


@needs_data
def test_stroke_trial__text_categories_and_blanks__eighteen_hospitals_with_one_schema(
    tmp_path: Path, trial: list[dict[str, str]]
) -> None:
    seen = 0
    for name in sorted({row["SITE"] for row in trial}):
        rows = [row for row in trial if row["SITE"] == name]
        known = [row for row in rows if row["DEADDEP6"] != "-1"]
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
        source = {"file": str(path), "separator": ";"}
        patients = {"columns": ["PID"]}
        made = Source.from_dict({"source": source, "patients": patients, "columns": COLUMNS})
        found = load(made, STROKE_SCHEMA)
        wanted = np.clip([by_hand(row) for row in known], -10, 10)
        assert found.features == pytest.approx(wanted, abs=1e-6)
        assert found.targets.tolist() == [float(row["DEADDEP6"]) for row in known]
        assert found.dropped == len(rows) - len(known)
        seen += found.persons
    assert seen == 13_500 and STROKE_SCHEMA.width == 28


@needs_data
def test_stroke_trial__packed_file_as_it_is__reads_whole(trial: list[dict[str, str]]) -> None:
    source = Source.from_dict({"source": {"file": str(STROKE)}, "columns": COLUMNS})
    found = becomes(load(source, STROKE_SCHEMA), STROKE_SCHEMA)
    (outcome,) = found["target"]
    assert outcome["records"] == sum(row["DEADDEP6"] == "1" for row in trial)
    assert found["lacking"] == {"dead or dependent": 106}
    assert [line["input"] for line in found["inputs"]][4:6] == [
        "conscious is drowsy",
        "conscious is unconscious",
    ]


@needs_data
def test_stroke_trial__a_level_that_the_schema_has_not__is_named_with_its_line() -> None:
    wrong = COLUMNS | {"conscious": {"column": "RCONSC", "levels": {"F": "alert", "D": "drowsy"}}}
    source = Source.from_dict({"source": {"file": str(STROKE)}, "columns": wrong})
    said = r"ist_dev.csv.gz line \d+: conscious=U is not one of alert, drowsy, unconscious"
    with pytest.raises(DatasetError, match=said):
        load(source, STROKE_SCHEMA)


@needs_data
@pytest.mark.parametrize("hospital", ["cleveland", "hungarian", "switzerland", "va"])
def test_heart__files_as_they_come__without_a_header_and_with_question_marks(
    hospital: str,
) -> None:
    file = SHARED / "heart-disease" / f"processed.{hospital}.data"
    said = {"file": str(file), "names": list(HEART_COLUMNS)}
    found = load(Source.from_dict({"source": said}), HEART_SCHEMA)
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    used = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13)  # slope, ca and thal are not in the schema
    known = [[float(row[i]) for i in used] for row in rows if "?" not in (row[i] for i in used)]
    assert found.dropped == len(rows) - len(known)
    assert found.targets.tolist() == [float(row[10] > 0) for row in known]
    ages = [(row[0] - 55) / 10 for row in known]
    pains = [((row[2] == 3) - 0.25) / 0.5 for row in known]
    assert found.features[:, 0] == pytest.approx(ages) and found.features[:, 9] == pytest.approx(
        pains
    )


@needs_data
def test_draft_schema__names_and_types_and_no_number_of_the_table() -> None:
    source = Source.from_dict({"source": {"file": str(STROKE)}, "patients": {"columns": ["PID"]}})
    proposed, notes = draft(source, "DEADDEP6")
    by_name = {feature["name"]: feature for feature in proposed["features"]}
    assert by_name["AGE"] == {"name": "AGE", "centre": 55, "scale": 15, "unit": "a"}
    assert by_name["RDELAY"]["centre"] == "FILL IN"
    assert by_name["SEX"]["categories"] == ["female", "male", "other", "unknown"]
    assert by_name["RCONSC"]["categories"] == ["D", "F", "U"]
    assert by_name["RATRIAL"]["kind"] == "yes/no" and by_name["RATRIAL"]["missing"] == "drop"
    assert "PID" not in by_name
    assert any("never from this table" in note for note in notes)
    with pytest.raises(DatasetError, match="centre of HOSPNUM='FILL IN' must be a finite number"):
        Schema.from_dict(proposed)
    with pytest.raises(DatasetError, match="target='' must be one of the table's columns: PID"):
        draft(source, "")


@needs_data
def test_breast_cancer__six_regions__survival_in_intervals(tmp_path: Path) -> None:
    with (BRCA / "brca.csv").open(newline="") as file:
        rows = {row["pid"]: row for row in csv.DictReader(file)}
    sizes = []
    for region, (train, test) in brca(tmp_path).items():
        sizes += [len(train.targets), len(test.targets)]
        assert train.features.shape[1] == len(brca_header()) - 3 == 39
        with (tmp_path / f"{region}.train.csv").open(newline="") as file:
            own = [rows[row["pid"]] for row in csv.DictReader(file)]
        edges = (0, 365, 730, 1095, 1825, 3650)
        for row, numbers in zip(own, train.targets, strict=True):
            time, dead = float(row["T"]), float(row["E"]) == 1
            for i, (low, high) in enumerate(pairwise(edges)):
                event = dead and (low < time or low == 0) and time <= high
                assert numbers[i] == event
                assert numbers[5 + i] == (event or time >= (low + high) / 2)
    assert sizes == [248, 63, 156, 40, 164, 42, 129, 33, 129, 33, 40, 11]


@needs_data
def test_mnist__as_a_folder_of_pictures__ten_classes(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pictures need pillow")
    pictures, labels = (
        read_idx(SHARED / "mnist" / f"test-dev-{kind}-ubyte.gz")[:200]
        for kind in ("images-idx3", "labels-idx1")
    )
    target = {"name": "label", "kind": "classes", "levels": list(range(10))}
    source = png_folder(tmp_path / "digits", pictures, labels)
    found = load(source, picture_schema(target), b"s" * 32, tmp_path / "store")
    assert found.targets.tolist() == labels.tolist()
    assert found.features[:][:, 0] == pytest.approx((pictures / 255 - 0.5) / 0.5, abs=1e-6)
