"""The built-in models that a buyer can name: plain torch modules, exported as graphs like any
other.

Knows nothing of rounds. Weights are the same on every machine (zeros, or a fixed seed). All of them
take flat rows [n, features], as a node's tables give them. None holds BatchNorm, whose statistics
would mix patients.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_client.errors import GraphRefused
from fl_client.model.export import export_model


def logistic_regression(features: int, *, outputs: int = 1) -> nn.Module:
    """So many logits from [n, features]; starts at zero."""
    with torch.random.fork_rng(devices=[]):  # Linear draws before it is zeroed
        layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(features: int, hidden: tuple[int, ...] = (32,), *, outputs: int = 1) -> nn.Module:
    """So many logits from [n, features] through hidden layers of these widths, tanh between them;
    seeded.

    Tanh, not ReLU: bounded activations lose less under clipping (Papernot et al. 2021, 2007.14191).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width_in, width_out in zip((features, *hidden), hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], outputs))


def cnn(channels: int, size: int, classes: int) -> nn.Module:
    """A small convolutional net for square images given as rows [n, channels * size * size];
    seeded.

    `classes` logits; classes=1 is one logit for a yes or no. Each picture is standardised by
    itself; then two blocks of
    convolution, GroupNorm, ReLU and pooling, and a linear layer that knows where in the picture
    something is. Raises
    GraphRefused for images under 4 pixels a side.
    """
    if size < 4:
        raise GraphRefused(f"size={size} must be at least 4 pixels")
    cells = (size // 4) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (channels, size, size)),
            nn.GroupNorm(1, channels, affine=False),
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * cells, classes),
        )


class Scattering(nn.Module):
    """Fixed wavelet features of square pictures [n, channels, size, size]: [n, 81 * channels, size
    // 4, size // 4].

    Two layers of Morlet wavelets in 8 directions at 2 scales, each followed by the modulus, then a
    low-pass over 4 x 4
    pixels (Bruna & Mallat 2013, 1203.1513). Nothing of it is trained, so it costs no privacy: with
    one linear layer
    behind it, it is the best private recipe that is known for small pictures (Tramer & Boneh 2021,
    2011.11660).
    """

    def __init__(self) -> None:
        super().__init__()
        fine, coarse = _wavelets(0), _wavelets(1)
        self.fine, self.coarse = nn.Parameter(fine, False), nn.Parameter(coarse, False)
        self.smooth = nn.Parameter(_gaussian(1.6, 11)[None, None].to(torch.float32), False)

    def forward(self, x: Tensor) -> Tensor:
        channels, size = x.shape[1], x.shape[2]
        x = x.reshape(-1, 1, size, size)
        first, second = _modulus(x, self.fine), _modulus(x, self.coarse)
        deeper = _modulus(first.reshape(-1, 1, size, size), self.coarse).reshape(
            x.shape[0], 64, size, size
        )
        every = torch.cat([x, first, second, deeper], 1).reshape(-1, 1, size, size)
        low = functional.conv2d(every, self.smooth, None, 4, 4)
        return low.reshape(-1, 81 * channels, low.shape[2], low.shape[3])


def _grid(size: int) -> tuple[Tensor, Tensor]:
    at = torch.arange(size, dtype=torch.float64) - size // 2
    return at[:, None].expand(size, size), at[None, :].expand(size, size)


def _gaussian(sd: float, size: int) -> Tensor:
    down, right = _grid(size)
    bell = torch.exp(-(down.square() + right.square()) / (2 * sd**2))
    return bell / bell.sum()


def _wavelets(scale: int) -> Tensor:
    """[16, 1, k, k]: real parts of 8 Morlet wavelets, then their imaginary parts; each sums to
    0.
    """
    size, sd, frequency = 7 + 4 * scale, 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    down, right = _grid(size)
    found = []
    for turn in range(8):
        angle = turn * math.pi / 8
        along = right * math.cos(angle) + down * math.sin(angle)
        across = down * math.cos(angle) - right * math.sin(angle)
        # wider across than along its wave, by half the number of directions over 4
        bell = torch.exp(-(along.square() + (across / 2).square()) / (2 * sd**2))
        wave = bell * torch.exp(1j * frequency * along)
        wave = wave - bell * (wave.sum() / bell.sum())
        found.append(wave / (4 * math.pi * sd**2))
    both = torch.stack(found)
    return torch.cat([both.real, both.imag])[:, None].to(torch.float32)


def _modulus(x: Tensor, filters: Tensor) -> Tensor:
    """[n, 1, h, w] -> [n, 8, h, w]."""
    both = functional.conv2d(x, filters, None, 1, filters.shape[-1] // 2)
    real, imaginary = both[:, :8], both[:, 8:]
    return torch.sqrt(real * real + imaginary * imaginary + 1e-12)


def scattering(channels: int, size: int, classes: int) -> nn.Module:
    """One linear layer on fixed wavelet features of square images given as rows [n, channels * size
    * size].

    Starts at zero. Only the last layer is trained. `classes` logits; classes=1 is one logit for a
    yes or no. Raises
    GraphRefused for images under 8 pixels a side.
    """
    if size < 8:
        raise GraphRefused(f"size={size} must be at least 8 pixels")
    cells = ((size + 1) // 4) ** 2  # of the low-pass, whose window of 11 starts 4 pixels outside
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(81 * channels * cells, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    groups = nn.GroupNorm(27 * channels, 81 * channels, affine=False)
    return nn.Sequential(
        nn.Unflatten(1, (channels, size, size)), Scattering(), groups, nn.Flatten(), head
    )


FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    "logistic_regression": logistic_regression,
    "mlp": mlp,
    "cnn": cnn,
    "scattering": scattering,
}


_EXPORTING = threading.Lock()  # torch.export keeps its state beside the thread that calls it


@lru_cache(maxsize=16)
def files(name: str, inputs: int, outputs: int) -> tuple[bytes, bytes]:
    """(graph, weights) of a family that its name and these sizes say all of, as a buyer's exporter
    writes them. Raises GraphRefused for another family.
    """
    more = {"outputs": outputs} if outputs > 1 else {}
    with _EXPORTING:
        return export_model(build(name, inputs, **more), torch.zeros(1, inputs))


def graph_hash(name: str, inputs: int, outputs: int) -> str:
    """SHA-256 of such a graph."""
    return hashlib.sha256(files(name, inputs, outputs)[0]).hexdigest()


def build(name: str, *sizes: int, **more: Any) -> nn.Module:
    """The family `name` with its own arguments, as in `build("mlp", 13, hidden=(64, 64))`.

    Raises GraphRefused for an unknown name or arguments that the family does not take.
    """
    if name not in FAMILIES:
        raise GraphRefused(
            f"model={name!r} must be one of {', '.join(FAMILIES)}, or a torch module of your own"
        )
    given = (*sizes, *more.values())
    widths = [
        width for value in given for width in (value if isinstance(value, tuple) else (value,))
    ]
    if any(type(width) is not int or width < 1 for width in widths):
        raise GraphRefused(f"model={name!r}: sizes {widths} must be whole numbers above 0")
    try:
        return FAMILIES[name](*sizes, **more)
    except TypeError as error:
        raise GraphRefused(f"model={name!r}: {error}") from error
