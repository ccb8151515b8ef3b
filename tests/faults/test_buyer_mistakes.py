"""A model builder's mistakes: each is one sentence before anything is paid, or a quote that means
what was asked for. Every case of the attack scripts sdk_mistakes and sdk_pay_mistakes is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from datahub.buyer import networks
from datahub.buyer.sdk import Market, Quote
from datatokens.chain.rpc_server import accounts
from fl_client.model.graph import load_model, predict
from tests.datahub.hub_world import FEE_BPS, HubWorld

WIDTH = 2
OK = ""
NO_SUCH = "TypeError: .*unexpected keyword argument "
CLOSED = "GraphRefused: operation '{}' is not allowed: see fl_client.model.graph.OPERATIONS"


class Own(nn.Module):
    """As a model builder writes one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 32),
            nn.LayerNorm(32),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Squeezed(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


class Of(nn.Module):
    """A linear layer after `before` (of the input and the layer)."""

    def __init__(self, before: Callable[[Tensor], Tensor], device: str = "cpu"):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1, device=device)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))


class Buffered(Of):
    def __init__(self) -> None:
        super().__init__(lambda x: x * self.factor)
        self.register_buffer("factor", torch.arange(WIDTH))


class Deciding(Of):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def linear(outputs: int = 1, *, width: int = WIDTH) -> nn.Linear:
    return nn.Linear(width, outputs)


def filled(value: float) -> nn.Module:
    made = linear()
    made.weight.data.fill_(value)
    return made


MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "logistic_regression": ("logistic_regression", {}, OK),
    "mlp": ("mlp", {}, OK),
    "an own module": (Own(), {}, OK),
    "an own module in eval mode": (Own().eval(), {}, OK),
    "BatchNorm": (
        nn.Sequential(linear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
        {},
        "GraphRefused: BatchNorm1d is not allowed: use GroupNorm or LayerNorm",
    ),
    "width 13": (
        linear(width=13),
        {},
        r"OrderRefused: .*called with inputs of shape \(1, 2\), and the dataset has 2 inputs",
    ),
    "width 13 with an example": (
        linear(width=13),
        {"example": torch.zeros(1, 13)},
        r"OrderRefused: the model takes inputs of shape \(13,\); the dataset has 2 inputs",
    ),
    "an example without a batch": (
        linear(),
        {"example": torch.zeros(WIDTH)},
        r"OrderRefused: .*called with inputs of shape \(2,\)",
    ),
    "an example that is a list": (linear(), {"example": [[0, 0]]}, "OrderRefused: .*shape"),
    "softmax of 2, binary loss": (
        nn.Sequential(linear(2), nn.Softmax(-1)),
        {},
        r"GraphRefused: .*output of shape \(2,\) must be one number for binary_cross_entropy",
    ),
    "2 logits, binary loss": (linear(2), {}, "GraphRefused: .*must be one number"),
    "2 logits, cross-entropy": (linear(2), {"loss": "cross_entropy"}, OK),
    "softmax of 2, cross-entropy": (
        nn.Sequential(linear(2), nn.Softmax(-1)),
        {"loss": "cross_entropy"},
        "GraphRefused: the model ends in softmax.*take the softmax away",
    ),
    "sigmoid, binary loss": (
        nn.Sequential(linear(), nn.Sigmoid()),
        {},
        "GraphRefused: the model ends in sigmoid.*take the sigmoid away",
    ),
    "a loss object": (
        linear(),
        {"loss": nn.BCEWithLogitsLoss()},
        r"OrderRefused: loss=BCEWithLogitsLoss\(\) must be the name of a loss, as text",
    ),
    "loss bce": (linear(), {"loss": "bce"}, "GraphRefused: loss='bce' must be one of binary_cross"),
    "a squeezed output": (Squeezed(), {}, OK),
    "float64": (linear().double(), {}, OK),
    "float16": (linear().half(), {}, OK),
    "bfloat16": (linear().bfloat16(), {}, OK),
    "a cast to whole numbers": (Of(lambda x: x.long().float()), {}, CLOSED.format("to.dtype")),
    "a buffer": (Buffered(), {}, r"GraphRefused: buffers are not allowed \(factor\): make it a"),
    "an example of whole numbers": (
        linear(),
        {"example": torch.zeros(1, WIDTH, dtype=torch.long)},
        OK,
    ),
    "cuda in forward": (
        Of(lambda x: x + torch.zeros(WIDTH, device="cuda")),
        {},
        "OrderRefused: the model cannot be exported as a graph: ",
    ),
    "the meta device": (
        Of(lambda x: x, "meta"),
        {},
        "OrderRefused: the model cannot be exported .*same device.*cpu and meta",
    ),
    "an if on the data": (Deciding(lambda x: x), {}, "OrderRefused: .*data-dependent"),
    "randn in forward": (
        Of(lambda x: x + torch.randn_like(x)),
        {},
        CLOSED.format("randn_like.default"),
    ),
    "the batch's mean": (
        Of(lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6)),
        {},
        CLOSED.format("std.dim"),
    ),
    "everything frozen": (linear().requires_grad_(False), {}, "GraphRefused: .*leave at least one"),
    "weights of NaN": (filled(float("nan")), {}, "GraphRefused: weights: 'weight' holds a number"),
    "weights of 1e30": (filled(1e30), {}, OK),
    "torch.compile": (torch.compile(linear()), {}, OK),
    "a lambda": (lambda x: x, {}, "OrderRefused: model=.*must be a built-in name or a torch mod"),
    "scikit-learn": (LogisticRegression(), {}, "OrderRefused: model=.*must be a built-in name"),
    "an LSTM": (nn.LSTM(WIDTH, 4), {}, "GraphRefused: an LSTM returns a pair; put it into a mod"),
    "a class": (Own, {}, r"OrderRefused: model=<class .*\(an instance\)"),
    "cnn by name": ("cnn", {}, r"OrderRefused: .*fl_client.model.families.build\('cnn', ...\)"),
    "scattering by name": ("scattering", {}, r"OrderRefused: .*build\('scattering', ...\)"),
    "a misspelt name": ("logistic", {}, "GraphRefused: model='logistic' must be one of logistic_r"),
}
if torch.cuda.is_available():  # elsewhere torch itself refuses to make one
    cannot = "OrderRefused: the model cannot be exported as a graph: "
    MODELS["a module on a GPU"] = (linear().to("cuda"), {}, cannot)
# what a buyer could pay for before anybody said that it cannot be trained
PAID_FOR_ONCE = (
    "softmax of 2, binary loss",
    "loss bce",
    "width 13 with an example",
    "sigmoid, binary loss",
    "softmax of 2, cross-entropy",
)
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: ({name: value}, NO_SUCH + f"'{name}'")
        for name, value in {
            "epochs": 3,
            "lr": 0.1,
            "rounds2": 1,
            "class_weight": [1, 2],
            "pos_weight": 3.0,
            "early_stopping": True,
            "scheduler": "cosine",
            "batch_size": 32,
            "sampling_rate": 0.1,
            "optimizer": "adam",
            "max_price_units": 1,
        }.items()
    },
    "learning_rate 0.3": ({"learning_rate": 0.3}, OK),
    "learning_rate nan": ({"learning_rate": float("nan")}, "OrderRefused: learning_rate=nan must"),
    "learning_rate -1": ({"learning_rate": -1.0}, "HubError: learning_rate=-1.0 must be a number"),
    "clip_norm 0.5": ({"clip_norm": 0.5}, OK),
    "clip_norm 0": ({"clip_norm": 0}, "HubError: clip_norm=0.0 must be a number"),
    "local_steps 3": ({"local_steps": 3}, OK),
    "local_steps 0": ({"local_steps": 0}, "HubError: local_steps=0 must be a whole number from 1"),
    "server_momentum 2": ({"server_momentum": 2}, "HubError: server_momentum=2.0 must be"),
    "server_rates of no parameter": (
        {"server_rates": {"nope": 1.0}},
        "OrderRefused: server_rates: the model has no parameter 'nope'; it has bias, weight",
    ),
    "server_rates a list": ({"server_rates": [1]}, "HubError: server_rates: Input should be"),
    "quorum 1": ({"quorum": 1}, OK),
    "quorum 5": ({"quorum": 5}, "HubError: quorum=5 must be a whole number from 1 to 1"),
    "quorum 0": ({"quorum": 0}, "HubError: quorum=0 must be a whole number from 1 to 1"),
    "deadline 60": ({"deadline_s": 60}, "HubError: deadline_s=60 must be a whole number from 660"),
    "deadline 1": ({"deadline_s": 1}, "HubError: deadline_s=1 must be a whole number from 660"),
    "deadline 10 years": ({"deadline_s": 315360000}, "HubError: deadline_s=315360000 must be"),
    "rounds 1": ({"rounds": 1}, OK),
    "rounds 0": ({"rounds": 0}, "HubError: rounds=0 must be a whole number from 1 to 1000"),
    "rounds 100000": ({"rounds": 100000}, "HubError: rounds=100000 must be a whole number from 1"),
    "rounds 1.5": ({"rounds": 1.5}, "HubError: rounds='1.5': Input should be a valid integer"),
    "reward -1": ({"reward_units": -1}, "HubError: reward_units=-1 must be a whole number from 0"),
    "epsilon of each": (
        {"epsilon": {1: 0.5, 2: 1}},
        "OrderRefused: epsilon={1: 0.5, 2: 1} must be a finite number",
    ),
    "epsilon nan": ({"epsilon": float("nan")}, "OrderRefused: epsilon=nan must be a finite number"),
    "epsilon 0": ({"epsilon": 0}, "HubError: epsilon='0.0': Input should be greater than 0"),
    "epsilon 1e-9": ({"epsilon": 1e-9}, "HubError: epsilon=1e-09 at delta=1e-05 is too small"),
    "epsilon 50": ({"epsilon": 50}, OK),
    "delta 2": ({"delta": 2}, "HubError: delta='2.0': Input should be less than or equal to 0.01"),
    "a dataset twice": (
        {"datasets": [1, 1]},
        "OrderRefused: datasets: 1 is named twice; name each",
    ),
    "no dataset": ({"datasets": []}, "OrderRefused: datasets: name at least one dataset id"),
    "a dataset's name": (
        {"datasets": ["East site"]},
        "OrderRefused: datasets: 'East site' must be the number of a dataset",
    ),
    "a number, no list": ({"datasets": 1}, "OrderRefused: datasets=1 must be a list of numbers"),
    "a text, no list": ({"datasets": "12"}, "OrderRefused: datasets=12 must be a list of numbers"),
    "a dataset that is not there": ({"datasets": [99]}, "OrderRefused: dataset_id=99 is not in"),
    "no purpose": ({"purpose": ""}, "HubError: purpose='' must have 1 to 200 characters"),
    "a voucher that is not held": ({"vouchers": [1]}, OK),  # paying says so: test_buyer_purse.py
    "a voucher for another": ({"vouchers": [2]}, "HubError: vouchers: dataset 2 is not among"),
    "vouchers a number": ({"vouchers": 1}, "OrderRefused: vouchers=1 must be a list of numbers"),
    "max_fee_units nan": (
        {"max_fee_units": float("nan")},
        "OrderRefused: max_fee_units=nan must be a whole number",
    ),
    "max_fee_units text": ({"max_fee_units": "1"}, "OrderRefused: max_fee_units='1' must be"),
}


@pytest.fixture
def buyer(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    return Market(hub_url, chain=hub.bank.url, key=accounts()[1][1])


def asked(buyer: Market, **changes: Any) -> Quote:
    wanted = {"datasets": [1], "epsilon": 0.5, "purpose": "research"} | changes
    return buyer.quote(wanted.pop("datasets"), **wanted)


def surprises(buyer: Market, cases: dict[str, tuple[dict[str, Any], str]]) -> dict[str, str]:
    """Cases that ended otherwise than they should, with what was said."""
    found = {}
    for name, (changes, right) in cases.items():
        try:
            quote = asked(buyer, **changes)
            said = OK
            for field in {"rounds", "learning_rate", "local_steps"} & set(changes):
                assert getattr(quote.spec, field) == changes[field]
            assert quote.epsilon <= changes.get("epsilon", 0.5)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if not re.match(right, said) or (right == OK) != (said == OK) or "\n" in said:
            found[name] = said
    return found


# the exporter's own log, where a module does not fit its input
@pytest.mark.filterwarnings("ignore")
def test_every_mistake_with_a_model__is_one_sentence_or_no_mistake(buyer: Market) -> None:
    cases = {name: ({"model": m, **more}, right) for name, (m, more, right) in MODELS.items()}
    assert surprises(buyer, cases) == {}


def test_every_mistake_with_a_setting__is_one_sentence_or_no_mistake(buyer: Market) -> None:
    assert surprises(buyer, SETTINGS) == {}


def test_after_every_mistake__nothing_is_paid_approved_or_kept(
    buyer: Market, tmp_path: Path
) -> None:
    token, market = buyer.escrow._payment_token(), buyer.network.deployment.market
    before, paid = token.balance_units(buyer.address), buyer.escrow.created_by(buyer.address)
    cases = [SETTINGS[name][0] for name in ("quorum 5", "epsilon nan", "a dataset twice")]
    for name in PAID_FOR_ONCE:
        cases.append({"model": MODELS[name][0], **MODELS[name][1]})
    for changes in cases:
        wanted = {"datasets": [1], "epsilon": 0.5, "purpose": "research"} | changes
        with pytest.raises(Exception, match=r"must|twice|ends in|inputs"):
            buyer.quote(wanted.pop("datasets"), **wanted).order()
    assert token.balance_units(buyer.address) == before
    assert token.allowance_units(buyer.address, market) == 0
    assert buyer.escrow.created_by(buyer.address) == paid
    assert not list((tmp_path / "home" / "jobs").glob("*"))


def test_a_model_that_comes_back__predicts_on_plain_numbers_of_the_public_schema(
    buyer: Market,
) -> None:
    """What the attack script `use` does with a result: the graph and the weights alone, a batch at
    once, and the same numbers as the builder's own module.
    """
    own = Own().eval()
    quote = asked(buyer, model=own)
    features = torch.randn(5, WIDTH)
    back = predict(load_model(quote.graph, quote.weights), features.numpy())
    assert back.shape[0] == 5
    assert torch.allclose(torch.from_numpy(back).reshape(5), own(features).reshape(5), atol=1e-5)
    again = Own()
    again.load_state_dict({name: torch.from_numpy(a) for name, a in load(quote.weights).items()})
    assert torch.equal(again.eval()(features), own(features))
