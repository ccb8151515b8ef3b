"""Real hospitals' files as they are, read as a hospital's node reads them: by a private source and
a public schema. For tests and benchmarks; the data itself is not in the repository.
"""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datahub.demo.data import HEART_COLUMNS, HEART_SCHEMA
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import Records, load

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
STROKE = SHARED / "ist-stroke" / "ist_dev.csv.gz"
BRCA = SHARED / "tcga-brca"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def yes_no(*names: str, centre: float = 0.5, **more: Any) -> list[dict[str, Any]]:
    usual = {"kind": "yes/no", "centre": centre, "scale": 1}
    return [{"name": name, **usual, **more} for name in names]


def category(name: str, *levels: str) -> dict[str, Any]:
    return {"name": name, "categories": list(levels)}


STROKE_SCHEMA = Schema.from_dict(
    {
        "features": [
            {"name": "age", "centre": 70, "scale": 10, "unit": "a"},
            {"name": "systolic", "centre": 160, "scale": 25, "unit": "mm[Hg]"},
            {"name": "delay", "centre": 20, "scale": 12, "unit": "h"},
            *yes_no("male"),
            category("conscious", "alert", "drowsy", "unconscious"),
            *yes_no("woke with it", "scan before", "infarct seen"),
            *yes_no("fibrillation", "heparin", "aspirin", centre=0, missing={"value": "no"}),
            *yes_no(*(f"deficit {i}" for i in range(1, 9))),
            category("kind", "partial", "total", "lacunar", "posterior"),
            *yes_no("given aspirin", "given heparin"),
        ],
        "target": {"name": "dead or dependent", "kind": "yes/no"},
    }
)
Y_N = {"Y": "yes", "N": "no"}
COLUMNS = {
    "age": {"column": "AGE"},
    "systolic": {"column": "RSBP"},
    "delay": {"column": "RDELAY"},
    "male": {"column": "SEX", "levels": {"M": "yes", "F": "no"}},
    "conscious": {
        "column": "RCONSC",
        "levels": {"F": "alert", "D": "drowsy", "U": "unconscious"},
    },
    "woke with it": {"column": "RSLEEP", "levels": Y_N},
    "scan before": {"column": "RCT", "levels": Y_N},
    "infarct seen": {"column": "RVISINF", "levels": Y_N},
    "fibrillation": {"column": "RATRIAL", "levels": Y_N},
    "heparin": {"column": "RHEP24", "levels": Y_N},
    "aspirin": {"column": "RASP3", "levels": Y_N},
    **{f"deficit {i}": {"column": f"RDEF{i}", "levels": {**Y_N, "C": "no"}} for i in range(1, 9)},
    "kind": {
        "column": "STYPE",
        "levels": {
            "PACS": "partial",
            "OTH": "partial",
            "TACS": "total",
            "LACS": "lacunar",
            "POCS": "posterior",
        },
    },
    "given aspirin": {"column": "RXASP", "levels": Y_N},
    "given heparin": {"column": "RXHEP", "levels": dict.fromkeys("LMH", "yes") | {"N": "no"}},
    "dead or dependent": {"column": "DEADDEP6", "missing": ["-1"]},
}


def heart(folder: Path) -> dict[str, tuple[Records, Records]]:
    """{hospital: (train, test)} of the four heart files, FLamby's split, written to `folder`."""
    with (SHARED / "heart-disease" / "flamby_split.csv").open(newline="") as file:
        split = list(csv.DictReader(file))
    found = {}
    for hospital in HOSPITALS:
        path = SHARED / "heart-disease" / f"processed.{hospital}.data"
        lines = path.read_text().splitlines()
        parts = []
        for which in ("train", "test"):
            mine = [r for r in split if (r["hospital"], r["set"]) == (hospital, which)]
            part = folder / f"{hospital}.{which}.data"
            part.write_text("".join(lines[int(r["row_0based_in_file"])] + "\n" for r in mine))
            said = {"file": str(part), "names": list(HEART_COLUMNS)}
            parts.append(load(Source.from_dict({"source": said}), HEART_SCHEMA))
            assert len(parts[-1].targets) == len(mine)
        found[hospital] = (parts[0], parts[1])
    return found


def stroke() -> tuple[Records, list[dict[str, str]]]:
    """The stroke trial's file as it is, and its rows with a known outcome, in the same order."""
    source = Source.from_dict({"source": {"file": str(STROKE)}, "columns": COLUMNS})
    with gzip.open(STROKE, "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["DEADDEP6"] != "-1"]
    return load(source, STROKE_SCHEMA), rows


def brca_header() -> list[str]:
    """The columns of the breast cancer file: pid, 39 features, E (an event), T (days)."""
    with (BRCA / "brca.csv").open(newline="") as file:
        return next(csv.reader(file))


def brca_schema(edges: Sequence[float] = (365, 730, 1095, 1825, 3650)) -> Schema:
    """Survival after breast cancer in intervals that end at these days."""
    age, *others = brca_header()[1:-2]
    return Schema.from_dict(
        {
            "features": [
                {"name": age, "centre": 60, "scale": 12, "unit": "a"},
                *yes_no(*others, centre=0),
            ],
            "target": {
                "name": "survival",
                "kind": "time to event",
                "time": "T",
                "event": "E",
                "edges": list(edges),
                "unit": "d",
            },
        }
    )


def brca(folder: Path) -> dict[int, tuple[Records, Records]]:
    """{region 0 to 5: (train, test)}, FLamby's split, written to `folder` as six hospitals."""
    with (BRCA / "train_test_split.csv").open(newline="") as file:
        place = {row["pid"]: row["fold2"] for row in csv.DictReader(file)}
    with (BRCA / "brca.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    found = {}
    for region in range(6):
        parts = []
        for which in ("train", "test"):
            path = folder / f"{region}.{which}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(header)
                writer.writerows(r for r in rows if place.get(r[0]) == f"{which}_{region}")
            said = {"source": {"file": str(path)}, "patients": {"columns": ["pid"]}}
            parts.append(load(Source.from_dict(said), brca_schema()))
        found[region] = (parts[0], parts[1])
    return found


def read_idx(path: Path) -> np.ndarray:
    """The array in one of MNIST's files."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def png_folder(folder: Path, pictures: np.ndarray, labels: Sequence[int]) -> Source:
    """PNG files of pictures [n, h, w] of made-up patients, and a table that names them."""
    from PIL import Image

    (folder / "files").mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "who"])
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            Image.fromarray(picture).save(folder / "files" / f"{i}.png")
            writer.writerow([f"files/{i}.png", int(label), f"p{i}"])
    return Source.from_dict(
        {
            "source": {"file": str(folder / "table.csv")},
            "patients": {"columns": ["who"]},
            "columns": {"picture": {"column": "file"}, "label": {"column": "label"}},
        }
    )


def picture_schema(target: dict[str, Any]) -> Schema:
    """Grey pictures of 28 by 28 as they are, with a target."""
    rules = {"channels": 1, "size": [28, 28], "window": None, "fit": "stretch"}
    return Schema.from_dict({"picture": rules, "target": target})
