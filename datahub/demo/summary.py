"""What the demo leaves behind: a job in figures, the model's yardstick, the files and charts of
demo-output."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sklearn.metrics import roc_auc_score

from datahub.buyer.jobs import Job
from datahub.buyer.results import Result
from datahub.demo import charts
from datahub.demo import data as demo_data
from datahub.demo.hospitals import Hospital
from datahub.demo.stack import BUYER, TUSD, Stack
from datatokens.bindings.registry import Token
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.node import config
from fl_client.privacy.ledger import Ledger


def summary_of(
    stack: Stack,
    job: Job,
    status: Mapping[str, Any],
    hospitals: Sequence[Hospital],
    before: int,
    paid_at: float,
) -> dict[str, Any]:
    """A job in the form of summary.json; `before` is the buyer's balance before paying."""
    buyer = stack.accounts[BUYER][0]
    after = Token(job.market.chain, stack.deployment.payment_token).balance_units(buyer)
    names = {h.dataset_id: h.name for h in hospitals}
    settled = status["state"] == "settled"
    report = (
        httpx.get(f"{stack.hub_url}/api/v1/jobs/{job.id}/report", timeout=10).json()
        if settled
        else None
    )
    lines = report["hospitals"] if report else []
    at = {line["event"]: line["at"] for line in status["events"]}
    rounds = status["rounds"]
    seconds: dict[str, float] = {"funded_to_end": time.time() - paid_at}
    if settled:
        seconds |= {
            "funded_to_settled": seconds.pop("funded_to_end"),
            # the hub sees a payment by itself, perhaps before the buyer's own look at it
            "run_start": max(0.0, at["started"] - paid_at),
            "admission": at["admission"] - at["started"],
            "rounds": sum(r["seconds"] for r in rounds),
            "round_median": statistics.median(r["seconds"] for r in rounds),
            "attestation": at["attestation"] - at["attesting"],
        }
    return {
        "job_id": job.id,
        "state": status["state"],
        "reason": status["reason"],
        "price_units": job.terms.amount_units,
        "paid": {
            names[line["dataset_id"]]: line["price_units"]
            + line["reward_units"]
            + line["compute_units"]
            for line in lines
        },
        "fee_units": job.terms.fee_units if settled else 0,
        "refund_units": after - (before - job.terms.amount_units),
        "epsilon": {names[line["dataset_id"]]: line["epsilon_job"] for line in lines},
        "epsilon_lifetime": {names[line["dataset_id"]]: line["epsilon_lifetime"] for line in lines},
        "delta": status["delta"],
        "rounds": len(rounds),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def test_auc(result: Result, data: demo_data.DemoData) -> float:
    """Pooled AUC of a result on the buyer's test table."""
    test = load(plain(data.test), data.schema)
    return float(roc_auc_score(test.targets, np.ravel(result.outputs(test.features[:]))))


def write(
    out: Path,
    data: demo_data.DemoData,
    jobs: list[dict[str, Any]],
    claims: list[dict[str, Any]],
    hospitals: list[Hospital],
    status: Mapping[str, Any],
    result: Result,
    seconds: dict[str, float],
) -> None:
    """Everything that the demo leaves in `out`, the charts included."""
    result.save(out)
    charts.learning_curve(status["rounds"], out / "learning_curve.png")
    meter = {}
    for h in hospitals:
        ledger = Ledger(h.folder / "ledger.sqlite")
        (entry,) = config.read(h.folder).datasets
        meter[h.name] = (
            ledger.epsilon_spent(entry.name),
            ledger.budget(entry.name).epsilon,
        )
    charts.epsilon_meter(meter, data.delta, out / "epsilon_meter.png")
    parts = jobs[0]["parts"]
    in_tokens = {
        n: (p["hospital_units"] / TUSD, p["contributor_units"] / TUSD) for n, p in parts.items()
    }
    charts.payouts(in_tokens, out / "payouts.png")
    summary = {
        "data": data.title,
        "origin": data.origin,
        "jobs": jobs,
        "claims": claims,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
