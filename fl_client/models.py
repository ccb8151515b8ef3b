"""The built-in models that a buyer can name: plain torch modules, exported as graphs like any other.

Knows nothing of training. Weights are the same on every machine (zeros, or a fixed seed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fl_client.errors import GraphRefused


def logistic_regression(features: int) -> nn.Module:
    """One logit from [n, features]; starts at zero."""
    layer = nn.Linear(features, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(features: int) -> nn.Module:
    """One logit from [n, features] through one hidden layer of 32; seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, 1))


FAMILIES: Mapping[str, Callable[[int], nn.Module]] = {"logistic_regression": logistic_regression, "mlp": mlp}


def build(name: str, features: int) -> nn.Module:
    """The family `name` for `features` inputs. Raises GraphRefused for an unknown name."""
    if name not in FAMILIES:
        raise GraphRefused(f"model={name!r} must be one of {', '.join(FAMILIES)}, or a torch module of your own")
    return FAMILIES[name](features)
