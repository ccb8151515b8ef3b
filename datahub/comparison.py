"""Two or more jobs side by side, from what a hub says of each. Knows nothing of connections.

A figure that a job does not have, or does not have yet, is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from datatokens.money import amount
from fl_client.data.schemas import OUTPUT

Facts = dict[str, Any]
MUCH = 0.9  # an interval this wide says nothing
FIGURES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "rmse": "root mean squared error, in parts of the range,",
    "r2": "R²",
}


def facts(status: Mapping[str, Any]) -> Facts:
    """What is compared of a job. Epsilon is the most that a hospital has charged its patients;
    the loss is the last round's, with the half of its noise's 95 % interval.
    """
    rounds, evaluation = status["rounds"], status["evaluation"] or {}
    last = rounds[-1] if rounds and status["loss"] != OUTPUT else None
    paid = (status["settlement"] or {}).get("change_units")
    return {
        "job_id": status["job_id"],
        "state": status["state"],
        "purpose": status["purpose"],
        "datasets": sorted(line["dataset_id"] for line in status["datasets"]),
        "epsilon": _epsilon(status),
        "delta": status["delta"],
        "rounds": len(rounds),
        "rounds_planned": status["rounds_planned"],
        "loss_name": status["loss"],
        "loss": last and last["loss"],
        "loss_interval95": last and last["loss_interval95"],
        "evaluation": {name: evaluation[name] for name in FIGURES if name in evaluation},
        "escrowed_units": status["amount_units"],
        "cost_units": _cost(status["state"], status["amount_units"], paid),
        "seconds": _seconds(status["funded_at"], status["ended_at"]),
    }


def _epsilon(status: Mapping[str, Any]) -> float | None:
    """As attested, else as far as the rounds have come."""
    attested = [line["attested"]["epsilon_job"] for line in status["datasets"] if line["attested"]]
    if attested:
        return float(max(attested))
    spent = [max(one["epsilon"].values()) for one in status["rounds"] if one["epsilon"]]
    return float(max(spent)) if spent else None


def _cost(state: str, escrowed: int, change: int | None) -> int | None:
    """What the buyer has paid in the end, the hub's fee included."""
    if state == "refunded":
        return 0
    return None if change is None else escrowed - change


def _seconds(funded: str | None, ended: str | None) -> float | None:
    if not funded or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(funded)).total_seconds()


def _or_none(value: Any, text: str) -> str:
    return "none" if value is None else text.format(value)


ROWS = (
    ("state", lambda one: one["state"]),
    ("purpose", lambda one: one["purpose"]),
    ("datasets", lambda one: ", ".join(map(str, one["datasets"]))),
    ("epsilon", lambda one: _or_none(one["epsilon"], "{:.3f}")),
    ("delta", lambda one: f"{one['delta']:g}"),
    ("rounds", lambda one: f"{one['rounds']} of {one['rounds_planned']}"),
    ("trained by", lambda one: one["loss_name"]),
    (
        "last loss (noised)",
        lambda one: (
            "none" if one["loss"] is None else f"{one['loss']:.3f} ± {one['loss_interval95']:.3f}"
        ),
    ),
    ("cost", lambda one: "none yet" if one["cost_units"] is None else amount(one["cost_units"])),
    ("seconds to the end", lambda one: _or_none(one["seconds"], "{:.1f}")),
)


def rows(jobs: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """(what, in words for each job); of the evaluation's figures those that one of them has."""
    found = [(name, [said(one) for one in jobs]) for name, said in ROWS]
    for key, name in FIGURES.items():
        if any(key in one["evaluation"] for one in jobs):
            words = [_figure(one, key) for one in jobs]
            found.append((f"{name.rstrip(',')} (95 %)", words))
    return found


def _figure(one: Facts, key: str) -> str:
    found = one["evaluation"]
    return shown_figure(found[key]) if key in found else "none"


def shown_figure(figure: Mapping[str, float] | None) -> str:
    """A figure with its 95 % interval."""
    if figure is None or figure["high"] - figure["low"] > MUCH:
        return "more noise than signal"
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**figure)
