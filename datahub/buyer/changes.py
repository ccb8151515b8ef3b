"""What is new in a job from one status of its hub to the next, as lines for people and as JSON.
Knows nothing of terminals and connections.

    change   with
    state    state, reason
    waits    dataset_id, until (unix seconds): a person at that hospital decides
    refuses  dataset_id, reason
    round    number, rounds, loss and loss_interval95 (of its noise), epsilon by dataset, seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fl_client.data.schemas import OUTPUT

Status = Mapping[str, Any]
Names = Mapping[int, str]


def new(before: Status, now: Status) -> list[dict[str, Any]]:
    """What `now` says that `before`, an earlier status or {}, did not."""
    found = [*_rounds(before, now), *_hospitals(before, now)]
    state = {"change": "state", "state": now["state"], "reason": now.get("reason") or ""}
    said = (before.get("state"), before.get("reason") or "")
    if said != (state["state"], state["reason"]):
        # what led to an end comes before it
        found.insert(len(found) if now["state"] in ("settled", "refunded") else 0, state)
    return found


def _rounds(before: Status, now: Status) -> list[dict[str, Any]]:
    known = {one["number"]: one for one in before.get("rounds", ())}
    figures = ("number", "rounds", "epsilon", "seconds")
    losses = () if now.get("loss") == OUTPUT else ("loss", "loss_interval95")
    return [
        {"change": "round", **{name: one[name] for name in (*figures, *losses)}}
        for one in now["rounds"]
        if one["number"] not in known
    ]


def _hospitals(before: Status, now: Status) -> list[dict[str, Any]]:
    known = {one["dataset_id"]: one for one in before.get("datasets", ())}
    found = []
    for one in now["datasets"]:
        dataset_id, was = one["dataset_id"], known.get(one["dataset_id"], {})
        until = one.get("waiting_until")
        if until and until != was.get("waiting_until"):
            found.append({"change": "waits", "dataset_id": dataset_id, "until": until})
        if one["accepted"] is False and was.get("accepted") is not False:
            reason = one["reason"]
            found.append({"change": "refuses", "dataset_id": dataset_id, "reason": reason})
    return found


def line(change: Mapping[str, Any], names: Names) -> str:
    """A change as a line for people, with hospitals by `names`."""
    if change["change"] == "round":
        return _round_line(change, names)
    if change["change"] == "state":
        return f"{change['state']}{': ' * bool(change['reason'])}{change['reason']}"
    who = named(change["dataset_id"], names)
    if change["change"] == "refuses":
        return f"  {who} refuses: {change['reason']}"
    until = datetime.fromtimestamp(change["until"], UTC)
    return f"  {who}: waiting for the hospital, a person decides until {until:%Y-%m-%d %H:%M} UTC"


def _round_line(change: Mapping[str, Any], names: Names) -> str:
    spent = _epsilons({named(int(d), names): value for d, value in change["epsilon"].items()})
    loss = ""
    if "loss" in change:
        loss = f"loss {change['loss']:6.3f} ± {change['loss_interval95']:.3f} (noised), "
    return (
        f"  round {change['number']:>2}/{change['rounds']}: {loss}epsilon {spent}; "
        f"{change['seconds']:.2f} s"
    )


def named(dataset_id: int, names: Names) -> str:
    """The hospital's name, or the dataset's number."""
    return names.get(dataset_id, f"dataset {dataset_id}")


def _epsilons(spent: Mapping[str, float]) -> str:
    """'1.11 at each of 4 hospitals', or name by name where they differ."""
    shown = {f"{value:.2f}" for value in spent.values()}
    if len(shown) == 1:
        return f"{shown.pop()} at each of {len(spent)} hospitals"
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(spent.items()))
