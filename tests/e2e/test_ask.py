"""A question over four hospitals on the running marketplace, by the command: paid, charged, settled
and answered like any job.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datahub.demo.stack import BUYER
from datahub.errors import OrderRefused
from tests.e2e.conftest import Marketplace

pytestmark = pytest.mark.e2e
QUESTION = "mean of mean radius from 5 to 30 by malignant"


def test_ask__over_four_hospitals__answers_within_its_interval_and_is_charged(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    m = marketplace
    (tmp_path / "key").write_text(m.stack.accounts[BUYER][1])
    sites = [f"--dataset={dataset_id}" for dataset_id in m.ids]
    told = ["--epsilon=1", "--purpose=research", f"--key-file={tmp_path / 'key'}", "--yes"]
    command = [sys.executable, "-m", "datahub.cli", "order", "ask", QUESTION, *sites, *told]
    ended = subprocess.run(
        [*command, f"--out={tmp_path / 'out'}", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (
        "the count of every cell will be known to about ±" in ended.stderr
        and "loss" not in ended.stderr
    )
    said = json.loads(ended.stdout)
    answer = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert said["state"] == "settled" and said["answer"] == answer and answer["hospitals"] == 4
    truth: dict[str, list[float]] = {"no": [], "yes": []}
    for site in m.data.sites:
        for row in csv.DictReader(site.table.open()):
            value = min(30.0, max(5.0, float(row["mean radius"])))
            truth["yes" if float(row["malignant"]) > 0.5 else "no"].append(value)
    for row, ages in zip(answer["rows"], truth.values(), strict=True):
        # five standard deviations: one run in a million is outside
        assert abs(row["count"]["value"] - len(ages)) < 5 * answer["noise_sd"]
        wide = (row["mean"]["high"] - row["mean"]["low"]) / 2 * 5 / 1.96
        assert abs(row["mean"]["value"] - sum(ages) / len(ages)) < wide
    job = m.buyer.job(said["job_id"])
    assert job.question == QUESTION and job.answer() == answer
    with pytest.raises(OrderRefused, match="asked something else than 'count by malignant'"):
        job.answer("count by malignant")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for line in report["hospitals"]:
        assert 0.95 < line["epsilon_job"] <= 1.0 and line["scores"] == []
    page = m.buyer.hub.get(f"/api/v1/jobs/{said['job_id']}")
    assert page["state"] == "settled" and page["evaluation"] is None
    shown = m.buyer.hub.call("GET", f"/jobs/{said['job_id']}").text
    assert "This job trains nothing" in shown and "Clipped loss" not in shown
