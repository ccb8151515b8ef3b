"""Does a model fit its loss and its inputs: endings, through what only moves numbers about."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_client.errors import GraphRefused
from fl_client.model.export import export_model
from fl_client.model.fit import check_fit, check_inputs, ending_problem
from fl_client.model.graph import load_model
from fl_client.model.losses import LOSSES


class Then(nn.Module):
    """A linear layer and what is done to its output."""

    def __init__(self, outputs: int, ending: object):
        super().__init__()
        self.layer, self.ending = nn.Linear(4, outputs), ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self.layer(x))


ENDINGS = {
    "sigmoid": (1, torch.sigmoid, "binary_cross_entropy", "sigmoid"),
    "sigmoid, squeezed": (
        1,
        lambda x: torch.sigmoid(x).squeeze(1),
        "binary_cross_entropy",
        "sigmoid",
    ),
    "sigmoid, a view and dropout": (
        1,
        lambda x: functional.dropout(torch.sigmoid(x).view(1, 1), 0.1),
        "binary_cross_entropy",
        "sigmoid",
    ),
    "sigmoid, one of two": (2, lambda x: torch.sigmoid(x)[:, 1], "binary_cross_entropy", "sigmoid"),
    "hardsigmoid, written out": (
        1,
        lambda x: torch.clamp(x / 6 + 0.5, 0.0, 1.0),
        "binary_cross_entropy",
        "clamp",
    ),
    "relu": (1, torch.relu, "binary_cross_entropy", "relu"),
    "softmax": (3, lambda x: x.softmax(1), "cross_entropy", "softmax"),
    "softmax, flattened": (3, lambda x: x.softmax(1).flatten(1), "cross_entropy", "softmax"),
    "sigmoid of classes": (3, torch.sigmoid, "cross_entropy", "sigmoid"),
    "softmax of two, one taken": (
        2,
        lambda x: x.softmax(1)[:, 1],
        "binary_cross_entropy",
        "softmax",
    ),
}
HONEST = {
    "nothing": (1, lambda x: x, "binary_cross_entropy"),
    "a logit cut at 10": (1, lambda x: torch.clamp(x, -10.0, 10.0), "binary_cross_entropy"),
    "a sigmoid inside": (1, lambda x: torch.sigmoid(x) * 4 - 2, "binary_cross_entropy"),
    "log_softmax": (3, lambda x: x.log_softmax(1), "cross_entropy"),
    "a probability by squares": (1, torch.sigmoid, "squared_error"),
}


def exported(outputs: int, ending: object) -> tuple[bytes, bytes]:
    return export_model(Then(outputs, ending), torch.zeros(1, 4))


@pytest.mark.parametrize("name", ENDINGS)
def test_ending_problem__the_loss_applies_it_itself__says_what_to_take_away(name: str) -> None:
    outputs, ending, loss, what = ENDINGS[name]
    graph, weights = exported(outputs, ending)
    problem = ending_problem(graph, loss)
    assert problem is not None and f"take the {what} away" in problem
    model = load_model(graph, weights)
    assert ending_problem(model, loss) == problem
    with pytest.raises(GraphRefused, match=f"take the {what} away"):
        check_fit(model, loss, (4,), {loss: outputs})


@pytest.mark.parametrize("name", HONEST)
def test_ending_problem__honest_model__none(name: str) -> None:
    outputs, ending, loss = HONEST[name]
    graph, weights = exported(outputs, ending)
    assert ending_problem(graph, loss) is None
    check_fit(load_model(graph, weights), loss, (4,), {loss: outputs})


def test_log_softmax_before_cross_entropy__is_the_same_loss() -> None:
    output, target = torch.randn(5), torch.tensor(2.0)
    loss = LOSSES["cross_entropy"]
    assert loss(output, target) == pytest.approx(
        float(loss(output.log_softmax(0), target)), abs=1e-6
    )


def test_hardsigmoid__at_export__says_to_take_it_away() -> None:
    with pytest.raises(GraphRefused, match="as the last step, none at all: the loss applies it"):
        exported(1, functional.hardsigmoid)


def test_check_inputs__another_width__names_both_numbers() -> None:
    model = load_model(*exported(1, lambda x: x))
    check_inputs(model, (4,))
    with pytest.raises(GraphRefused, match="the model takes 4 inputs, the dataset has 30"):
        check_inputs(model, (30,))
