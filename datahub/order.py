"""From what a buyer wants to job terms with a price: the arithmetic that hub and buyer share.

The hub quotes by it; the buyer works the same terms out again from the chain and from manifests
whose hashes are on the chain, and pays for nothing that differs. Knows nothing of databases,
connections or the wire: facts in, terms out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datahub.errors import BadRequest
from datatokens.errors import TermsError
from datatokens.terms import DatasetTerm, DisputeTerms, JobTerms, address, whole
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import OUTPUT
from fl_client.errors import NodeError
from fl_client.privacy import accounting, defaults
from fl_client.privacy.plan import PrivacyPlan
from fl_client.protocol import MAX_ROUNDS, JobSpec, sha256_hex

METRIC_SHARE = (
    0.05  # the part of the Gaussian budget for the loss curve and the last look at the model
)
LEAST_SHARE = 1e-3  # the same where neither says anything: of a question's sums
MAX_MODEL_BYTES = 64 * 1024 * 1024
MAX_LOCAL_STEPS = 1000
LEAST_AFTER_S = 300  # between the last moment for a hospital's answer and the deadline
SHORTEST_S, LONGEST_S = 660, 30 * 24 * 3600  # from now to a job's deadline
# the hub's machine may round a last digit of what it worked out otherwise than the buyer's
WORKED_OUT = ("noise_multiplier", "metric_noise_multiplier", "metric_clip")
SAME = 1e-9


@dataclass(frozen=True)
class Order:
    """What a buyer asks for; every field has been given or has the default shown in web/api.py.

    `model` is the built-in name of the graph, if it has one: None for rounds and what follows it is
    then what fl_client/privacy/defaults.py says for that model.
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
    purpose_codes: tuple[str, ...] = ()
    answer_s: int | None = None
    tiers: Mapping[int, int] = field(default_factory=dict)  # dataset -> tier; 0 where left out

    def body(self) -> dict[str, Any]:
        """The order as the hub's API takes it."""
        return {
            **asdict(self),
            "datasets": list(self.datasets),
            "vouchers": list(self.vouchers),
            "purpose_codes": list(self.purpose_codes),
            "graph": base64.b64encode(self.graph).decode(),
            "weights": base64.b64encode(self.weights).decode(),
        }


@dataclass(frozen=True)
class Listed:
    """A dataset as the chain has it, with the manifest whose hash is there; `price_units` is what a
    job of the order's buyer by the order's tier pays.
    """

    dataset_id: int
    node: str
    price_units: int
    manifest: Manifest


@dataclass(frozen=True)
class Venue:
    """Where a job is paid, and the most that the hub takes of prices and reward (basis points)."""

    chain_id: int
    market: str
    fee_bps: int


def terms_of(
    order: Order, listed: Sequence[Listed], venue: Venue, *, salt: str, deadline: int
) -> JobTerms:
    """The terms of `order` over the datasets that it names, `listed` in its order; `deadline` in
    unix seconds, `salt` 64 hexadecimal digits.

    Raises BadRequest for whatever cannot be a job.
    """
    if not listed:
        raise BadRequest("datasets: name at least one dataset id")
    for name, named in (("vouchers", order.vouchers), ("tiers", order.tiers)):
        if strangers := sorted(set(named) - set(order.datasets)):
            raise BadRequest(f"{name}: dataset {strangers[0]} is not among the datasets ordered")
    if len({one.manifest.schema.hash for one in listed}) > 1:
        raise BadRequest(
            "datasets: they do not share one feature schema, so one model cannot be trained "
            "over them"
        )
    if max(len(order.graph), len(order.weights)) > MAX_MODEL_BYTES:
        raise BadRequest(f"model: graph and weights may have {MAX_MODEL_BYTES} bytes each")
    persons = {one.dataset_id: one.manifest.persons for one in listed}
    try:
        whole("deadline_s", order.deadline_s, SHORTEST_S, LONGEST_S)
        whole("compute_minutes", order.compute_minutes, 1, 10_000)
        lines = tuple(_line(order, one) for one in listed)
        prices = sum(line.price_units for line in lines)
        return JobTerms(
            chain_id=venue.chain_id,
            market=venue.market,
            buyer=address("buyer", order.buyer),
            datasets=lines,
            reward_units=order.reward_units,
            fee_units=(prices + order.reward_units) * venue.fee_bps // 10_000,
            dispute=order.dispute,
            deadline=deadline,
            quorum=len(lines) if order.quorum is None else order.quorum,
            spec=_spec(
                order, listed[0].manifest, persons, salt, _answer_by(order, deadline)
            ).as_dict(),
        )
    except (TermsError, NodeError, ValueError, OverflowError) as error:
        raise BadRequest(str(error)) from error


def _line(order: Order, one: Listed) -> DatasetTerm:
    voucher = one.dataset_id in order.vouchers
    rate = one.manifest.compute_rate_units
    return DatasetTerm(
        one.dataset_id,
        one.node,
        0 if voucher else one.price_units,
        voucher,
        order.tiers.get(one.dataset_id, 0),
        rate,
        rate * order.compute_minutes,
    )


def _answer_by(order: Order, deadline: int) -> int:
    """When every hospital must have answered: so many seconds from now, or so that a quarter of the
    time is left for the rounds.
    """
    most = order.deadline_s - LEAST_AFTER_S
    usual = order.deadline_s - max(LEAST_AFTER_S, order.deadline_s // 4)
    given = usual if order.answer_s is None else whole("answer_s", order.answer_s, 10, most)
    return deadline - order.deadline_s + given


def _spec(
    order: Order, manifest: Manifest, persons: Mapping[int, int], salt: str, answer_by: int
) -> JobSpec:
    counts = tuple(persons.values())
    chosen = defaults.plan(
        order.model,
        counts,
        manifest.schema.width,
        order.epsilon,
        order.delta,
        rounds=order.rounds,
        local_steps=order.local_steps,
        learning_rate=order.learning_rate,
        clip_norm=order.clip_norm,
        server_momentum=order.server_momentum,
        server_rates=order.server_rates,
    )
    whole("rounds", chosen.rounds, 1, MAX_ROUNDS)
    whole("local_steps", chosen.local_steps, 1, MAX_LOCAL_STEPS)
    steps = chosen.rounds * chosen.local_steps
    noise, metric_noise = accounting.calibrate(
        order.epsilon,
        order.delta,
        chosen.sampling_rate,
        steps,
        chosen.rounds,
        METRIC_SHARE if order.loss != OUTPUT else LEAST_SHARE,
    )
    plan = PrivacyPlan(
        noise_multiplier=noise,
        clip_norm=chosen.clip_norm,
        sampling_rate=chosen.sampling_rate,
        steps=steps,
        delta=order.delta,
        metric_noise_multiplier=metric_noise,
        metric_clip=defaults.metric_clip(metric_noise, counts),
        metric_steps=chosen.rounds,
    )
    return JobSpec(
        purpose=order.purpose,
        buyer_public_key=order.buyer_public_key,
        schema_hash=manifest.schema.hash,
        graph_hash=sha256_hex(order.graph),
        weights_hash=sha256_hex(order.weights),
        loss=order.loss,
        outputs=_outputs(order.loss, manifest),
        rounds=chosen.rounds,
        local_steps=chosen.local_steps,
        learning_rate=chosen.learning_rate,
        average_last=chosen.average_last,
        server_momentum=chosen.server_momentum,
        server_rates=chosen.server_rates,
        plan=plan,
        persons=persons,
        salt=salt,
        answer_by=answer_by,
        purpose_codes=order.purpose_codes,
    )


def _outputs(loss: str, manifest: Manifest) -> int:
    losses = manifest.schema.losses
    if loss not in losses:
        raise BadRequest(
            f"loss={loss[:80]!r} does not fit the target {manifest.schema.target.name!r} of these "
            f"datasets, which is {manifest.schema.target.kind}: {' or '.join(losses)} does"
        )
    return losses[loss]


def epsilon_of(terms: JobTerms) -> float:
    """What the job costs each hospital's patients, by the accountant, at the plan's delta."""
    plan = JobSpec.from_dict(terms.spec).plan
    return float(accounting.epsilon(plan.charges(), plan.delta))


def differences(proposed: JobTerms, expected: JobTerms) -> list[str]:
    """Every field in which `proposed` is not `expected`, with both values; [] where they are the
    same. A fee below the expected one is no difference, and neither is the last digit of the three
    numbers that are searched for (WORKED_OUT).
    """
    if proposed.fee_units < expected.fee_units:
        expected = replace(expected, fee_units=proposed.fee_units)
    return list(_differing("", _document(proposed), _document(expected)))


def _document(terms: JobTerms) -> dict[str, Any]:
    lines = {str(line.dataset_id): asdict(line) for line in terms.datasets}
    return {
        **vars(terms),
        "datasets": lines,
        "dispute": asdict(terms.dispute) if terms.dispute else None,
    }


def _differing(where: str, given: Any, wanted: Any) -> list[str]:
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        found = []
        for name in sorted(set(given) | set(wanted), key=str):
            inner = f"{where}.{name}" if where else str(name)
            found += _differing(inner, given.get(name), wanted.get(name))
        return found
    if where.rsplit(".", 1)[-1] in WORKED_OUT and isinstance(given, float):
        same = isinstance(wanted, float) and math.isclose(given, wanted, rel_tol=SAME)
    else:
        same = type(given) is type(wanted) and given == wanted
    return [] if same else [f"{where} is {str(given)[:80]}, not {str(wanted)[:80]}"]
