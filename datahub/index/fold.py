"""What a dataset, a job or a hospital is by everything that was said about it, oldest first.

Pure: the same events give the same rows, whoever reads them, and however often. What the contracts
count without saying so (credits, a hospital's record) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datatokens.layouts import LINE, LINE_BYTES, unpack
from datatokens.terms import Outcome

ZERO = "0x" + "0" * 40
Said = tuple[str, dict[str, Any]]  # an event's name and arguments


def about(contract: str, name: str, args: dict[str, Any]) -> str:
    """The one thing whose row an event changes: dataset:ID, job:ID, claimed:DATASET:EPOCH:ACCOUNT,
    pool:ID (of a dataset), hospital:ID; "" for none.
    """
    if contract == "registry":
        number = args.get("datasetId", args.get("tokenId"))
        return "" if number is None else f"dataset:{number}"
    if contract == "nodes":
        number = next((args[n] for n in ("hospitalId", "agentId", "tokenId") if n in args), None)
        return "" if number is None else f"hospital:{number}"
    if "jobId" in args:
        return f"job:{args['jobId']}"
    if name == "Claimed":
        return f"claimed:{args['datasetId']}:{args['epoch']}:{args['account']}"
    return f"pool:{args['datasetId']}" if "datasetId" in args else ""


def dataset(events: Sequence[Said]) -> dict[str, Any] | None:
    """What the registry says of a dataset; None where it was never listed."""
    found: dict[str, Any] = {}
    for name, said in events:
        if name == "DatasetListed":
            found.setdefault("owner", said["owner"])
            found |= {
                "datatoken": said["datatoken"],
                "node": said["node"],
                "price_units": str(said["priceUnits"]),
                "contributor_bps": said["contributorBps"],
                "manifest_hash": said["manifestHash"],
                "state": 0,
            }
        elif name == "Transfer":
            found["owner"] = said["to"]
        elif name in _OF_DATASET:
            argument, column, kind = _OF_DATASET[name]
            found[column] = kind(said[argument])
    return found if "datatoken" in found else None


_OF_DATASET: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "PriceChanged": ("priceUnits", "price_units", str),
    "ManifestChanged": ("manifestHash", "manifest_hash", str),
    "NodeKeyChanged": ("node", "node", str),
    "StateChanged": ("state", "state", int),
}


@dataclass
class Job:
    """The columns of EscrowRow, and those of each AttestedRow."""

    columns: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)


def job(events: Sequence[tuple[int, int, str, dict[str, Any]]]) -> Job | None:
    """A job by (block, place, name, arguments) of its events; None where nobody has paid for it."""
    found, accepted = Job(), 0
    columns = found.columns
    for block, place, name, said in events:
        if name == "JobCreated":
            columns |= {
                "buyer": said["buyer"],
                "status": "funded",
                "amount_units": str(said["amountUnits"]),
                "deadline": min(said["deadline"], 2**63 - 1),
                "block": block,
            }
        elif name == "JobTerms":
            found.lines = _lines(bytes.fromhex(said["terms"]["lines"]))
        elif name in ("JobAccepted", "AcceptanceRevoked"):
            accepted = (
                accepted | said["accepted"]
                if name == "JobAccepted"
                else accepted & ~said["revoked"]
            )
        elif name == "JobAttested":
            columns |= {
                "status": "proposed",
                "model_hash": said["modelHash"],
                "report_hash": said["reportHash"],
                "worked": str(said["worked"]),
            }
            for line, word in zip(found.lines, said["outcomes"], strict=False):
                outcome = Outcome.from_word(word)
                line["compute_units"] = str(outcome.compute_units)
                line["reward_units"] = str(outcome.reward_units)
                line["epsilon_micro"] = outcome.epsilon_micro
        elif name == "JobDisputed":
            columns["status"] = "disputed"
        elif name == "JobSettled":
            columns |= {
                "status": "settled",
                "ended": place,
                "paid_bps": said["paidBps"],
                "paid_units": str(said["paidUnits"]),
                "change_units": str(said["changeUnits"]),
            }
        elif name == "JobRefunded":
            columns |= {"status": "refunded", "ended": place}
    columns["accepted"] = str(accepted)
    return found if "buyer" in columns else None


def _lines(packed: bytes) -> list[dict[str, Any]]:
    lines = [unpack(LINE, packed[i : i + LINE_BYTES]) for i in range(0, len(packed), LINE_BYTES)]
    return [
        {"dataset_id": line["dataset_id"], "price_units": str(line["price_units"])}
        for line in lines
    ]


@dataclass
class Hospital:
    """The columns of HospitalRow, and those of each KeyRow by key."""

    columns: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)


def hospital(events: Sequence[Said]) -> Hospital | None:
    """A hospital and its keys; None for one that was never registered. A change of hands ends all
    keys of before.
    """
    found = Hospital()
    for name, said in events:
        if name == "Transfer":
            found.columns["owner"] = said["to"]
            if said["from"] != ZERO:
                for key in found.keys.values():
                    key["revoked"] = True
        elif name == "NodeKeyAdded":
            found.keys[said["key"]] = {
                "valid_from": said["validFrom"],
                "valid_until": said["validUntil"],
                "revoked": False,
            }
        elif name == "NodeKeyEnds":
            found.keys[said["key"]]["valid_until"] = said["validUntil"]
        elif name == "NodeKeyRevoked":
            found.keys[said["key"]]["revoked"] = True
        elif name == "OfferChanged":
            found.columns["minute_units"] = str(said["minuteUnits"])
            found.columns["hardware"] = said["hardware"]
    return found if "owner" in found.columns else None
