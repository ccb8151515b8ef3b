"""The demo's four hospitals: where their tables come from, how they are split, which public
constants scale them.

breast-cancer: the Wisconsin diagnostic set that scikit-learn carries, one clinic's patients split
over four made-up sites (said so wherever it is shown). heart-disease: the four real hospitals of
the UCI set (1988), from a folder or downloaded with a checksum; train and test parts are those of
FLamby (train_test_split, 66 %, seed 43). Knows nothing of chains or jobs. The test part is never
given to a node: it is the buyer's own yardstick.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from datahub.errors import BadRequest
from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target

UCI_ARCHIVE = "https://archive.ics.uci.edu/static/public/45/heart+disease.zip"
HEART_SHA256 = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
# the column that tells patients apart; in both data sets every row is another patient
PATIENT = "patient"
HEART_NAMES = {
    "cleveland": "Cleveland Clinic",
    "hungarian": "Hungarian Institute of Cardiology",
    "switzerland": "University Hospitals Zurich and Basel",
    "va": "VA Medical Center Long Beach",
}
HEART_COUNTRIES = {"cleveland": "US", "hungarian": "HU", "switzerland": "CH", "va": "US"}
HEART_COLUMNS = (
    "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num".split()
)
# Clinical round numbers, chosen without looking at a patient (a resting pressure of 130, a
# cholesterol of 200, ...).
HEART_SCHEMA = Schema(
    features=(
        Feature("age", 55, 10, unit="a"),
        Feature("sex", 0.5, 0.5, kind="yes/no"),  # yes is male
        Feature("trestbps", 130, 20, unit="mm[Hg]"),
        Feature("chol", 200, 100, unit="mg/dL"),
        Feature("fbs", 0.25, 0.5, kind="yes/no"),
        Feature("thalach", 140, 25, unit="/min"),
        Feature("exang", 0.5, 0.5, kind="yes/no"),
        Feature("oldpeak", 1, 1),
        Feature("cp", 0.25, 0.5, (1, 2, 3, 4)),
        Feature("restecg", 0.25, 0.5, (0, 1, 2)),
    ),
    target=Target("num", 0),
)


@dataclass(frozen=True)
class Site:
    """One hospital: its name as shown, and the table that only its node reads."""

    key: str
    hospital: str
    table: Path
    country: str = ""  # where its patients were treated, as far as is known


@dataclass(frozen=True)
class DemoData:
    """Four sites, one schema, the buyer's test table, and what to say about where it comes from."""

    title: str
    origin: str
    schema: Schema
    sites: Sequence[Site]
    test: Path
    delta: float
    conditions: tuple[str, ...] = ()


def prepare(name: str, data_dir: Path | None, folder: Path) -> DemoData:
    """Write the tables of the data set `name` into `folder`. Raises BadRequest for an unknown or
    unreachable one.
    """
    makers = {"breast-cancer": _breast_cancer, "heart-disease": _heart}
    if name not in makers:
        raise BadRequest(f"DATA={name} must be one of {', '.join(makers)}")
    folder.mkdir(parents=True, exist_ok=True)
    return makers[name](data_dir, folder)


def _write(path: Path, header: Sequence[str], rows: np.ndarray | Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def _numbered(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[*row, f"p{number}"] for number, row in enumerate(rows, 1)]


def _breast_cancer(_: Path | None, folder: Path) -> DemoData:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    # The ranges are printed in the data set's public description; centre and scale are taken from
    # that table.
    ranges = re.findall(r"^[a-z ]+\([a-z ]+\):\s+([\d.]+)\s+([\d.]+)$", data.DESCR, re.MULTILINE)
    if len(ranges) != len(names):
        raise BadRequest(
            "breast-cancer: the description that scikit-learn carries has no table of ranges"
        )
    features = []
    for feature, (low, high) in zip(names, ranges, strict=True):
        width = float(high) - float(low)
        features.append(Feature(feature, round(float(low) + 0.3 * width, 6), round(width / 6, 6)))
    rows = np.column_stack([data.data, 1 - data.target])
    train, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=rows[:, -1])
    header = [*names, "malignant"]
    cuts = (np.cumsum([0.4, 0.3, 0.2]) * len(train)).astype(int)
    keys = ("north", "south", "east", "west")
    sites = [
        Site(
            key,
            f"{key.title()} site",
            _write(folder / f"{key}.csv", [*header, PATIENT], _numbered(part.tolist())),
        )
        for key, part in zip(keys, np.split(train, cuts), strict=True)
    ]
    return DemoData(
        "Breast cancer, diagnostic (Wisconsin)",
        "569 real patients of one clinic (scikit-learn's copy), split over four made-up sites for "
        "this demo",
        Schema(tuple(features), Target("malignant", 0.5)),
        sites,
        _write(folder / "test.csv", header, test),
        1e-5,
        ("breast cancer",),
    )


def _heart(data_dir: Path | None, folder: Path) -> DemoData:
    raw = _heart_files(data_dir)
    sites, tests = [], []
    used = [f.name for f in HEART_SCHEMA.features] + [HEART_SCHEMA.target.name]
    for key, content in raw.items():
        rows = [line.split(",") for line in content.decode().split()]
        table = [dict(zip(HEART_COLUMNS, row, strict=True)) for row in rows]
        complete = [row for row in table if "?" not in (row[name] for name in used)]
        labels = [float(row["num"]) > 0 for row in complete]
        rare = min(sum(labels), len(labels) - sum(labels)) <= 2
        train, test = train_test_split(
            complete,
            test_size=0.34,
            train_size=0.66,
            random_state=43,
            stratify=None if rare else labels,
        )
        lines = [[row[name] for name in used] for row in train]
        sites.append(
            Site(
                key,
                HEART_NAMES[key],
                _write(folder / f"{key}.csv", [*used, PATIENT], _numbered(lines)),
                HEART_COUNTRIES[key],
            )
        )
        tests += [[row[name] for name in used] for row in test]
    return DemoData(
        "Heart disease, four hospitals (UCI, 1988)",
        "740 real patients of four hospitals: Cleveland, Budapest, Zurich and Basel, Long Beach",
        HEART_SCHEMA,
        sites,
        _write(folder / "test.csv", used, tests),
        1e-3,
        ("coronary heart disease",),
    )


def _heart_files(data_dir: Path | None) -> Mapping[str, bytes]:
    """The four files, checked against their SHA-256, from `data_dir` or from UCI's archive."""
    if data_dir is not None:
        try:
            found = {key: (data_dir / f"processed.{key}.data").read_bytes() for key in HEART_SHA256}
        except OSError as error:
            raise BadRequest(
                f"DATA_DIR={data_dir} must hold processed.cleveland.data and so on: {error}"
            ) from error
    else:
        try:
            with urllib.request.urlopen(UCI_ARCHIVE, timeout=60) as answer:
                archive = zipfile.ZipFile(io.BytesIO(answer.read(64 * 1024 * 1024)))
            found = {key: archive.read(f"processed.{key}.data") for key in HEART_SHA256}
        except (urllib.error.URLError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadRequest(
                f"heart-disease cannot be downloaded from {UCI_ARCHIVE} ({error}); fetch it "
                "elsewhere, unpack it, and "
                "run: make demo DATA=heart-disease DATA_DIR=folder"
            ) from error
    for key, content in found.items():
        if hashlib.sha256(content).hexdigest() != HEART_SHA256[key]:
            raise BadRequest(
                f"processed.{key}.data is not the published file (its SHA-256 differs)"
            )
    return found


def auc_without_dp(data: DemoData) -> float:
    """The yardstick: the same model (logistic regression) on all tables pooled, without privacy;
    AUC on the test part.

    Computed here, outside the nodes: a node never trains without DP.
    """
    tables = [load(plain(site.table), data.schema) for site in data.sites]
    features = np.concatenate([t.features for t in tables])
    targets = np.concatenate([t.targets for t in tables])
    test = load(plain(data.test), data.schema)
    model = LogisticRegression(max_iter=5000).fit(features, targets)
    return float(roc_auc_score(test.targets, model.decision_function(test.features)))
