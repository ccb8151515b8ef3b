"""From what a buyer wants to job terms with a price: the quote. Knows nothing of runs; sends
nothing.

A quote is only a proposal: the buyer checks it (buyer/sdk.py) and pays for the terms as they stand.
What a buyer leaves open of the training plan follows from public counts
(fl_client/privacy/defaults.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datahub.errors import BadRequest, Conflict
from datahub.market import catalogue
from datahub.market.desk import Desk
from datahub.market.tables import NodeRow
from datatokens.errors import TermsError
from datatokens.terms import DatasetTerm, DisputeTerms, JobTerms, address, whole
from fl_client.errors import NodeError
from fl_client.privacy import accounting, defaults
from fl_client.privacy.plan import PrivacyPlan
from fl_client.protocol import JobSpec, sha256_hex

METRIC_SHARE = (
    0.05  # the part of the Gaussian budget for the loss curve and the last look at the model
)
MAX_MODEL_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Order:
    """What a buyer asks for; every field has been given or has the default shown in web/api.py.

    `model` is the built-in name of the graph, if it has one: None for rounds and what follows it is
    then what defaults.py says for that model.
    """

    buyer: str
    buyer_public_key: str
    datasets: tuple[int, ...]
    vouchers: tuple[int, ...]
    compute_minutes: int
    dispute: DisputeTerms | None
    graph: bytes
    weights: bytes
    loss: str
    epsilon: float
    delta: float
    model: str | None
    rounds: int | None
    local_steps: int | None
    learning_rate: float | None
    clip_norm: float | None
    server_momentum: float | None
    server_rates: Mapping[str, float] | None
    reward_units: int
    purpose: str
    deadline_s: int
    quorum: int | None


def quote(desk: Desk, order: Order) -> tuple[JobTerms, float]:
    """Terms for the order at today's prices, and the epsilon that they really cost each hospital.

    Keeps the model's files, so that the job can start as soon as it is paid. Raises BadRequest,
    NotFound or Conflict.
    """
    if not order.datasets:
        raise BadRequest("datasets: name at least one dataset id")
    lines, persons, schemas, inputs = [], {}, set(), 1
    catalogue.sync(desk)
    with desk.session() as session:
        for dataset_id in order.datasets:
            row = catalogue.dataset_row(desk, dataset_id)
            manifest = catalogue.manifest_of(row)
            if session.get(NodeRow, row.node) is None:
                raise Conflict(
                    f"dataset {dataset_id}: its node has not registered with this hub yet"
                )
            voucher = dataset_id in order.vouchers
            price, rate = 0 if voucher else int(row.price_units), manifest.compute_rate_units
            lines.append(
                (dataset_id, row.node, price, voucher, 0, rate, rate * order.compute_minutes)
            )
            persons[dataset_id] = manifest.persons
            schemas.add(manifest.schema.hash)
            inputs = manifest.schema.width
    if len(schemas) > 1:
        raise BadRequest(
            "datasets: they do not share one feature schema, so one model cannot be trained "
            "over them"
        )
    if max(len(order.graph), len(order.weights)) > MAX_MODEL_BYTES:
        raise BadRequest(f"model: graph and weights may have {MAX_MODEL_BYTES} bytes each")
    try:
        chosen = defaults.plan(
            order.model,
            tuple(persons.values()),
            inputs,
            order.epsilon,
            order.delta,
            rounds=order.rounds,
            local_steps=order.local_steps,
            learning_rate=order.learning_rate,
            clip_norm=order.clip_norm,
            server_momentum=order.server_momentum,
            server_rates=order.server_rates,
        )
        whole("rounds", chosen.rounds, 1, 1000)
        whole("local_steps", chosen.local_steps, 1, 1000)
        steps = chosen.rounds * chosen.local_steps
        noise, metric_noise = accounting.calibrate(
            order.epsilon, order.delta, chosen.sampling_rate, steps, chosen.rounds, METRIC_SHARE
        )
        plan = PrivacyPlan(
            noise_multiplier=noise,
            clip_norm=chosen.clip_norm,
            sampling_rate=chosen.sampling_rate,
            steps=steps,
            delta=order.delta,
            metric_noise_multiplier=metric_noise,
            metric_clip=defaults.metric_clip(metric_noise, tuple(persons.values())),
            metric_steps=chosen.rounds,
        )
        spec = JobSpec(
            purpose=order.purpose,
            buyer_public_key=order.buyer_public_key,
            schema_hash=schemas.pop(),
            graph_hash=sha256_hex(order.graph),
            weights_hash=sha256_hex(order.weights),
            loss=order.loss,
            rounds=chosen.rounds,
            local_steps=chosen.local_steps,
            learning_rate=chosen.learning_rate,
            average_last=chosen.average_last,
            server_momentum=chosen.server_momentum,
            server_rates=chosen.server_rates,
            plan=plan,
            persons=persons,
            salt=secrets.token_hex(32),
        )
        terms = JobTerms(
            chain_id=desk.config.chain_id,
            market=desk.config.market,
            buyer=address("buyer", order.buyer),
            datasets=tuple(DatasetTerm(*line) for line in lines),
            reward_units=order.reward_units,
            fee_units=(sum(line[2] for line in lines) + order.reward_units)
            * desk.config.fee_bps
            // 10_000,
            dispute=order.dispute,
            deadline=desk.chain.now() + whole("deadline_s", order.deadline_s, 660, 30 * 24 * 3600),
            quorum=len(lines) if order.quorum is None else order.quorum,
            spec=spec.as_dict(),
        )
    except (TermsError, NodeError, ValueError) as error:
        raise BadRequest(str(error)) from error
    for content in (order.graph, order.weights):
        desk.config.models_folder.mkdir(exist_ok=True)
        (desk.config.models_folder / sha256_hex(content)).write_bytes(content)
    return terms, accounting.epsilon(plan.charges(), plan.delta)


def as_json(terms: JobTerms, epsilon: float) -> dict[str, Any]:
    """A quote as the API answers it: the exact terms document (text), and what it adds up to."""
    return {
        "terms": terms.to_json().decode(),
        "job_id": terms.job_id.hex(),
        "amount_units": terms.amount_units,
        "price_units": {str(d.dataset_id): d.price_units for d in terms.datasets},
        "compute_cap_units": {str(d.dataset_id): d.compute_cap_units for d in terms.datasets},
        "reward_units": terms.reward_units,
        "fee_units": terms.fee_units,
        "epsilon": epsilon,
        "deadline": terms.deadline,
    }
