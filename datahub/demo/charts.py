"""The demo's pictures: learning curve, epsilon meter, payouts. Figures in, PNG files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACCENT, SECOND, MUTED = "#0b5d56", "#e08e45", "#c9d3d1"


def _finish(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def learning_curve(rounds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Noised mean loss per round with its 95 % interval."""
    figure, axes = plt.subplots(figsize=(7, 4))
    x = [r["number"] for r in rounds]
    y = [r["loss"] for r in rounds]
    width = [r["loss_interval95"] for r in rounds]
    axes.fill_between(
        x,
        [a - b for a, b in zip(y, width, strict=True)],
        [a + b for a, b in zip(y, width, strict=True)],
        color=MUTED,
        label="95 % interval of the noise",
    )
    axes.plot(x, y, marker="o", color=ACCENT, label="mean loss over all hospitals, as released")
    axes.set(xlabel="round", ylabel="loss (clipped, noised)", title="Learning curve")
    axes.legend(frameon=False)
    _finish(figure, path)


def epsilon_meter(spent: Mapping[str, tuple[float, float]], delta: float, path: Path) -> None:
    """Per hospital: epsilon spent over the whole history, of its lifetime budget."""
    figure, axes = plt.subplots(figsize=(7, 0.7 * len(spent) + 1.6))
    names = list(spent)
    axes.barh(names, [spent[n][1] for n in names], color=MUTED, label="lifetime budget")
    axes.barh(
        names, [spent[n][0] for n in names], color=ACCENT, label="spent so far, whole history"
    )
    for i, name in enumerate(names):
        axes.text(spent[name][0], i, f" {spent[name][0]:.2f} of {spent[name][1]:g}", va="center")
    axes.set(xlabel=f"epsilon at delta={delta:g}, per patient", title="Privacy spent")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    _finish(figure, path)


def payouts(parts: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Per hospital: its own part and its contributors' part, in whole tokens."""
    figure, axes = plt.subplots(figsize=(7, 0.7 * len(parts) + 1.8))
    names = list(parts)
    own = [parts[n][0] for n in names]
    contributors = [parts[n][1] for n in names]
    axes.barh(names, own, color=ACCENT, label="hospital")
    axes.barh(names, contributors, left=own, color=SECOND, label="contributors")
    axes.set(xlabel="tUSD", title="Who was paid")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    _finish(figure, path)
