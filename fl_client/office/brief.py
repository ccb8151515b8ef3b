"""What a person is told of a job before they say yes or no: who, what for, which model, what it
costs in privacy, what it pays, and exactly what leaves the house. From the terms and from what
admission has kept; nothing is read out of a table. Knows nothing of how it is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from fl_client.errors import JobDamaged
from fl_client.node.config import NodeConfig
from fl_client.node.inbox import Waits
from fl_client.node.job_folder import REQUEST, TERMS
from fl_client.node.policy import TWO_PERSONS
from fl_client.node.purposes import INTENTS
from fl_client.privacy.looks import cells
from fl_client.protocol import JobSpec
from fl_client.worker.tasks import MOST_SHOWN

# operation of a graph -> its name for people; others by their own
IN_WORDS = {
    "linear.default": "linear layer",
    "conv1d.default": "convolution",
    "conv2d.default": "convolution",
    "conv3d.default": "convolution",
    "relu.default": "ReLU",
    "tanh.default": "tanh",
    "sigmoid.default": "sigmoid",
    "gelu.default": "GELU",
    "softmax.int": "softmax",
    "group_norm.default": "group normalisation",
    "layer_norm.default": "layer normalisation",
    "max_pool2d.default": "pooling (largest)",
    "avg_pool2d.default": "pooling (mean)",
    "adaptive_avg_pool2d.default": "pooling (mean)",
    "embedding.default": "look-up of a table",
    "scaled_dot_product_attention.default": "attention",
    "dropout.default": "dropout",
    "cat.default": "joining",
    "add.Tensor": "sum",
    "mul.Tensor": "product",
    "flatten.using_ints": "reshape",
    "view.default": "reshape",
    "unflatten.int": "reshape",
}


def brief(config: NodeConfig, waits: Waits) -> dict[str, Any]:
    """Everything about one job that waits, as plain values: numbers, texts and lists of them.
    Raises JobDamaged where what was kept about it is not.
    """
    with waits.folder.reading(REQUEST, TERMS):
        return _brief(config, waits)


def briefs(config: NodeConfig, waiting: Iterable[Waits]) -> tuple[list[dict[str, Any]], list[str]]:
    """The briefs of jobs, and why there is none of some."""
    found, damaged = [], []
    for one in waiting:
        try:
            found.append(brief(config, one))
        except JobDamaged as error:
            damaged.append(str(error))
    return found, damaged


def _brief(config: NodeConfig, waits: Waits) -> dict[str, Any]:
    terms, facts = waits.terms, waits.facts
    spec = JobSpec.from_dict(terms.spec)
    entry = config.dataset(int(facts["dataset_id"]))
    policy = config.policy_of(int(facts["dataset_id"]))
    line = terms.datasets[terms.index_of_dataset(int(facts["dataset_id"]))]
    shapes: Mapping[str, list[int]] = facts["parameters"]
    numbers = sum(math.prod(shape) for shape in shapes.values())
    lifetime = entry.manifest.lifetime_epsilon if entry else 0.0
    table = cells(spec.loss, spec.outputs)
    return {
        "job_id": waits.job_id,
        "dataset_id": facts["dataset_id"],
        "dataset": entry.manifest.name if entry else "(no longer listed)",
        "came_at": int(facts["at"]),
        "until": waits.until,
        "left_s": max(0, int(waits.until - time.time())),
        "deadline": terms.deadline,
        "buyer": terms.buyer,
        "buyer_so_far": _so_far(facts["so_far"]),
        "purpose": spec.purpose,
        "purpose_codes": [[code, INTENTS.get(code, "a disease")] for code in spec.purpose_codes],
        "permits": list(policy.permits),
        "look_at": list(facts["look_at"]),
        "model": {
            "graph_hash": spec.graph_hash,
            "numbers": numbers,
            "frozen": list(facts["frozen"]),
            "steps": [
                [IN_WORDS.get(name, name), shape, taken]
                for name, shape, taken in facts["operations"]
            ],
            "all_steps": len(facts["operations"]) < MOST_SHOWN,
            "loss": spec.loss,
        },
        "cohort": {
            "persons": entry.manifest.persons if entry else 0,
            "unit": entry.manifest.unit if entry else "",
            "schema_hash": spec.schema_hash,
            "version": entry.manifest.hash.hex() if entry else "",  # of what is published of it
        },
        "privacy": {
            "epsilon_job": float(facts["epsilon"]),
            "delta": spec.plan.delta,
            "lifetime_before": float(facts["epsilon_before"]),
            "lifetime_after": float(facts["epsilon_after"]),
            "lifetime": lifetime,
        },
        "money": {
            "price_units": line.price_units,
            "voucher": line.voucher,
            "compute_cap_units": line.compute_cap_units,
            "reward_units": terms.reward_units,
            "hospitals": len(terms.datasets),
            "whole_units": terms.amount_units,
        },
        "partners": [one.dataset_id for one in terms.datasets if one != line],
        "quorum": terms.quorum,
        "leaves": [
            {
                "what": f"the trained numbers of the model, after each of {spec.rounds} rounds",
                "numbers": numbers,
                "tensors": [[name, list(shape)] for name, shape in sorted(shapes.items())],
                "noise": f"Gaussian, {spec.plan.noise_multiplier:.3g} times the largest that one "
                f"{entry.manifest.unit if entry else 'patient'} can add ({spec.plan.clip_norm:g}), "
                "in every step",
            },
            {
                "what": f"the mean loss, after each of {spec.rounds} rounds",
                "numbers": 1,
                "tensors": [],
                "noise": f"Gaussian, {spec.plan.metric_noise_multiplier:.3g} times the largest of "
                "one",
            },
            {
                "what": "a table of the final model's scores, once",
                "numbers": table,
                "tensors": [],
                "noise": f"Gaussian, {spec.plan.score_noise_multiplier:.3g} times the largest of "
                "one",
            },
            {
                "what": "two signatures, the job's and the lifetime's epsilon, the released count",
                "numbers": 0,
                "tensors": [],
                "noise": "none: they follow from the terms",
            },
        ],
        "checks": [
            ["paid", f"the escrow holds the money for exactly these terms ({terms.market})"],
            ["allowed", "every rule of this hospital's policy"],
            ["affordable", "the lifetime budget of every patient has room for the whole job"],
            ["safe", "the model was read, measured and tried on made-up records, behind walls"],
        ],
        "needs": 2 if policy.approval == TWO_PERSONS else 1,
        "said": [
            {"by": one.by, "yes": one.yes, "reason": one.reason, "at": int(one.at)}
            for one in waits.decisions
        ],
    }


def _so_far(known: Mapping[str, Any] | None) -> str:
    """What is known of a buyer, in words; "" where nothing was looked up."""
    if known is None:
        return ""
    ends = ", ".join(f"{count} {status}" for status, count in sorted(known["on_chain"].items()))
    here = ", ".join(f"{count} {answer}" for answer, count in sorted(known["here"].items()))
    newest = sum(known["on_chain"].values())
    of = f" (the newest {newest}: {ends})" if newest < known["jobs"] else f" ({ends})"
    jobs = "1 job" if known["jobs"] == 1 else f"{known['jobs']} jobs"
    return f"{jobs} on this market{of if ends else ''}; at this hospital before: {here or 'none'}"


def utc(at: float) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
