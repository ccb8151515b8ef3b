"""The built-in models that a buyer can name: plain torch modules, exported as graphs like any other.

Knows nothing of training. Weights are the same on every machine (zeros, or a fixed seed). All of them take flat rows
[n, features], as a node's tables give them. None holds BatchNorm, whose statistics would mix patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fl_client.errors import GraphRefused


def logistic_regression(features: int) -> nn.Module:
    """One logit from [n, features]; starts at zero."""
    with torch.random.fork_rng(devices=[]):  # Linear draws before it is zeroed
        layer = nn.Linear(features, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(features: int, hidden: tuple[int, ...] = (32,)) -> nn.Module:
    """One logit from [n, features] through hidden layers of these widths, tanh between them; seeded.

    Tanh, not ReLU: bounded activations lose less under clipping (Papernot et al. 2021, 2007.14191).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width_in, width_out in zip((features, *hidden), hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], 1))


def cnn(channels: int, size: int, classes: int) -> nn.Module:
    """A small convolutional net for square images given as rows [n, channels * size * size]; seeded.

    `classes` logits; classes=1 is one logit for a yes or no. Two blocks of convolution, GroupNorm, ReLU and pooling.
    Raises GraphRefused for images under 4 pixels a side.
    """
    if size < 4:
        raise GraphRefused(f"size={size} must be at least 4 pixels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (channels, size, size)),
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, classes),
        )


FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    "logistic_regression": logistic_regression,
    "mlp": mlp,
    "cnn": cnn,
}


def build(name: str, *sizes: int, **more: Any) -> nn.Module:
    """The family `name` with its own arguments, as in `build("mlp", 13, hidden=(64, 64))`.

    Raises GraphRefused for an unknown name or arguments that the family does not take.
    """
    if name not in FAMILIES:
        raise GraphRefused(f"model={name!r} must be one of {', '.join(FAMILIES)}, or a torch module of your own")
    given = (*sizes, *more.values())
    widths = [width for value in given for width in (value if isinstance(value, tuple) else (value,))]
    if any(type(width) is not int or width < 1 for width in widths):
        raise GraphRefused(f"model={name!r}: sizes {widths} must be whole numbers above 0")
    try:
        return FAMILIES[name](*sizes, **more)
    except TypeError as error:
        raise GraphRefused(f"model={name!r}: {error}") from error
