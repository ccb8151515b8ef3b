"""What a buyer checks before money moves: the datasets, the model, and that a quote is the order.

Every fact comes from the buyer's own chain connection, or is a manifest whose hash is there; the
hub's word decides nothing. Knows nothing of keys and sends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datahub.errors import OrderRefused
from datahub.order import Listed, Order, Venue, differences, epsilon_of, terms_of
from datatokens.bindings.registry import Registry, State
from datatokens.bindings.storefront import job_units
from datatokens.errors import (
    BankError,
    ChainUnreachable,
    NodeRefused,
    TermsError,
    TransactionRefused,
)
from datatokens.terms import DisputeTerms, JobTerms
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema
from fl_client.errors import GraphRefused, NodeError
from fl_client.protocol import JobSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

CLOCK_S = 120  # how far the hub's clock may be from the chain's
EPSILON_SLACK = 1.0001


def dataset_ids(field: str, given: Any) -> tuple[int, ...]:
    """The numbers of datasets in `given`, each once. Raises OrderRefused naming `field`."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise OrderRefused(f"{field}={str(given)[:60]} must be a list of numbers, as [1, 2]")
    for one in given:
        if type(one) is not int:
            raise OrderRefused(f"{field}: {str(one)[:60]!r} must be the number of a dataset")
        if given.count(one) > 1:
            raise OrderRefused(f"{field}: {one} is named twice; name each dataset once")
    return tuple(given)


def tiers_of(given: Any) -> dict[int, int]:
    """Dataset -> tier. Raises OrderRefused for what is none."""
    whole = isinstance(given, Mapping) and all(type(n) is int for one in given.items() for n in one)
    if not whole:
        raise OrderRefused(f"tiers={str(given)[:60]} must name a tier for datasets, as {{1: 2}}")
    return dict(given)


def order_of(
    asked: Mapping[str, Any],
    files: tuple[bytes, bytes],
    persons: Sequence[int],
    buyer: str,
    public_key: str,
) -> Order:
    """What is sent to the hub for what was `asked` (Market.quote) with these model files, of
    datasets with so many persons. Raises OrderRefused for what is no number.
    """
    given = {key: value for key, value in asked.items() if key != "max_fee_units"}
    for name in ("learning_rate", "clip_norm", "server_momentum"):
        given[name] = None if asked[name] is None else _number(name, asked[name])
    for name in ("datasets", "vouchers", "purpose_codes"):
        given[name] = tuple(asked[name])
    given["tiers"] = {int(d): tier for d, tier in asked.get("tiers", {}).items()}
    delta, dispute = asked["delta"], asked["dispute"]
    usual = min(1e-5, *(1 / (10 * n) for n in persons))
    given |= {
        "graph": files[0],
        "weights": files[1],
        "epsilon": _number("epsilon", asked["epsilon"]),
        "delta": usual if delta is None else _number("delta", delta),
        "dispute": DisputeTerms(**dispute) if dispute else None,
    }
    return Order(buyer=buyer, buyer_public_key=public_key, **given)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OrderRefused(f"{name}={str(value)[:60]} must be a finite number")
    return float(value)


def listed(
    registry: Registry,
    rows: Mapping[int, Any],
    dataset_id: int,
    buyer: str,
    market: str,
    tier: int = 0,
    voucher: bool = False,
) -> Listed:
    """A dataset that `buyer` can buy now on `market` by one of its tiers: facts from the chain, and
    the manifest in the hub's `rows` if its hash is the one on the chain. Raises OrderRefused.
    """
    row = rows.get(dataset_id)
    if row is None or not isinstance(row.get("manifest"), Mapping):
        raise OrderRefused(f"dataset_id={dataset_id} is not in the catalogue")
    found = registry.dataset(dataset_id)
    state = registry.standing(dataset_id).state
    if state is not State.ACTIVE:
        raise OrderRefused(f"dataset {dataset_id} is {state.name.lower()}; it takes no new jobs")
    try:
        registry.check_acceptance(dataset_id, found.node, buyer, market)
        manifest = Manifest.from_dict(row["manifest"])
    except TransactionRefused as error:
        raise OrderRefused(f"dataset {dataset_id} is not for this buyer now: {error}") from error
    except NodeError as error:
        raise OrderRefused(f"dataset {dataset_id}: its manifest is damaged: {error}") from error
    if manifest.hash != found.manifest_hash:
        raise OrderRefused(
            f"dataset {dataset_id}: the manifest that the hub shows is not the one on the chain"
        )
    price = found.price_units
    if tier:
        try:
            price = job_units(registry, dataset_id, tier, buyer, voucher)
        except (ChainUnreachable, NodeRefused):
            raise  # says nothing of the tier
        except BankError as error:
            raise OrderRefused(f"tiers: {error}") from error
    return Listed(dataset_id, found.node, price, manifest)


def model_files(
    model: str | nn.Module,
    example: Tensor | None,
    schema: Schema,
    loss: str,
    server_rates: Mapping[str, float] | None = None,
) -> tuple[bytes, bytes]:
    """(graph, weights) of a built-in name or a torch module, if every hospital with this `schema`
    would take them for `loss`, and `server_rates` name its parameters. Raises OrderRefused or
    GraphRefused.
    """
    from torch import nn, zeros

    from fl_client.model.export import export_model
    from fl_client.model.families import FAMILIES, build

    if not isinstance(loss, str):
        raise OrderRefused(f"loss={str(loss)[:60]} must be the name of a loss, as text")
    shape, outputs = schema.inputs(loss), schema.losses.get(loss, 1)
    many = {"outputs": outputs} if outputs > 1 else {}
    try:
        module = build(model, math.prod(shape), **many) if isinstance(model, str) else model
    except GraphRefused as error:
        if model not in FAMILIES:
            raise
        raise OrderRefused(
            f"{error}: its name is not enough for this dataset; build it with "
            f"fl_client.model.families.build({model!r}, ...) and give that as model"
        ) from error
    if not isinstance(module, nn.Module):
        raise OrderRefused(
            f"model={str(model)[:60]} must be a built-in name or a torch module (an instance)"
        )
    inputs = zeros(1, *shape) if example is None else example
    try:
        graph, weights = export_model(module, inputs)
    except GraphRefused as error:
        if "cannot be exported" not in str(error):
            raise
        raise OrderRefused(
            f"{error}; it was called with inputs of shape {tuple(getattr(inputs, 'shape', ()))}, "
            f"and the dataset has {_inputs(shape)}"
        ) from error
    check_files(graph, weights, schema, loss, server_rates)
    return graph, weights


def check_files(
    graph: bytes,
    weights: bytes,
    schema: Schema,
    loss: str,
    server_rates: Mapping[str, float] | None = None,
) -> None:
    """Raises OrderRefused or GraphRefused where a hospital with this `schema` would not take these
    files for `loss`, or `server_rates` do not name their parameters.
    """
    from fl_client.model.fit import check_loss, check_outputs
    from fl_client.model.graph import load_model, parameters

    shape = schema.inputs(loss)
    loaded = load_model(graph, weights)
    check_loss(loaded, loss)
    check_outputs(loaded, loss, schema.losses)
    if tuple(loaded.input_shape) != shape:
        raise OrderRefused(
            f"the model takes inputs of shape {tuple(loaded.input_shape)}; the dataset has "
            f"{_inputs(shape)}"
        )
    names = parameters(loaded)
    if isinstance(server_rates, Mapping) and (strange := set(server_rates) - set(names)):
        raise OrderRefused(
            f"server_rates: the model has no parameter {str(min(strange, key=str))[:60]!r}; it has "
            f"{', '.join(sorted(names))[:300]}"
        )


def _inputs(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} inputs" if len(shape) == 1 else f"pictures of shape {shape}"


def checked(
    answer: Mapping[str, Any], order: Order, facts: Sequence[Listed], venue: Venue, now: int
) -> tuple[JobTerms, float]:
    """The terms in a hub's answer, and their epsilon, if they are what `order` over `facts` comes
    to: everything but the salt is worked out again and compared. `now` is the chain's unix seconds.
    Raises OrderRefused naming every field that differs.
    """
    try:
        proposed = JobTerms.from_json(str(answer["terms"]).encode())
        salt = JobSpec.from_dict(proposed.spec).salt
    except (TermsError, NodeError, KeyError, TypeError, UnicodeEncodeError) as error:
        raise OrderRefused(
            f"the hub's quote is not understood: {str(error)[:300]}; nothing was paid"
        ) from error
    expected = terms_of(order, facts, venue, salt=salt, deadline=proposed.deadline)
    wrong = differences(proposed, expected)
    if abs(proposed.deadline - now - order.deadline_s) > CLOCK_S:
        wrong.append(f"deadline is {proposed.deadline - now} s from now, not {order.deadline_s}")
    epsilon = epsilon_of(proposed)
    if epsilon > order.epsilon * EPSILON_SLACK:
        wrong.append(f"epsilon is {epsilon}, not {order.epsilon}")
    if wrong:
        raise OrderRefused(
            f"the hub's quote differs from the order: {'; '.join(wrong[:8])}; nothing was paid"
        )
    return proposed, epsilon
