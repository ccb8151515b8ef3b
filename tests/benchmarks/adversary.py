"""Can a hostile graph move a sum by more than the clip? The node's own search on every family and
engine, and again with today's fixes taken out one by one.

    python -m tests.benchmarks.adversary [--quick] [--json FILE]

Keys: FAMILY.ENGINE is the largest shift found over the allowed one (at most 1; of losses, scores
and control flow, too), without_FIX.FAMILY the same without that fix: the search must find the fault
again (above 1), or it is no test. With --quick, what is compiled is one graph with all families.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from fl_client.model import graph
from fl_client.model.graph import with_parameters
from fl_client.privacy import adversary, clipping, compiling, training
from fl_client.privacy.adversary import (
    MODES,
    Attack,
    Measure,
    control_flow,
    families_of,
    gradient_shift,
    loss_shift,
    score_shift,
    search,
)
from fl_client.privacy.compiling import frozen_of
from fl_client.privacy.noise import MARGIN
from fl_client.privacy.training import Patients, by_patient, clipped_total

# -- the fixes, taken out --------------------------------------------------------------------------


def _float32_squares(patients: int, facts: Any, left: Tensor, right: Tensor) -> clipping.Clipped:
    """The norm of one position by products of squares in float32: they underflow."""
    _, total = clipping._factors(patients, facts, left, right)
    long, wide = left.square().sum(2), right.square().sum(2)
    squared = (long.view(patients, -1).sum(1) * wide.view(patients, -1).sum(1)).double()
    return squared, total


def _float32_gram(patients: int, facts: Any, left: Tensor, right: Tensor) -> clipping.Clipped:
    """The norm by a Gram product in float32, with nothing for what cancels; the sum in float32."""
    left = left.reshape(patients, -1, left.shape[-1])
    right = right.reshape(patients, -1, right.shape[-1])
    gram = ((left @ left.mT) * (right @ right.mT)).sum((1, 2)).clamp(min=0.0)

    def total(c: Tensor) -> Tensor:
        scaled = torch.where(c.view(-1, 1, 1) > 0, left * c.float().view(-1, 1, 1), 0.0)
        there = torch.where(c.view(-1, 1, 1) > 0, right, 0.0)
        summed = scaled.flatten(0, 1).t() @ there.flatten(0, 1)
        return summed.double().reshape(-1)

    return gram.double(), total


def _in_table_order(attack: Attack, mode: str) -> float:
    """The shift where a batch has as many rows as there are patients, in the table's order."""
    ours = attack.patients == attack.patients.max()
    if ours[0]:
        attack = attack._replace(patients=np.where(ours, -1, attack.patients))
    there = attack.patients != attack.patients[ours][0]
    totals = []
    for rows in (there | True, there):
        given = (each[rows] for each in (attack.features, attack.targets, attack.patients))
        on = training.device()
        table = by_patient(*given, attack.records).to(on)
        engine = adversary._engine(attack._replace(slots=table.persons), mode)
        model = with_parameters(engine.model, attack.arrays).to(on)
        trained = [p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]
        places = torch.arange(table.persons, device=on)
        clip = torch.tensor(attack.clip, device=on)
        with torch.no_grad():
            totals.append(
                clipped_total(engine.run, torch.cat(trained), frozen_of(model), table, places, clip)
            )
    return float((totals[0] - totals[1]).norm()) / (attack.clip * (1 + MARGIN))


def _clamped_as_float(table: Tensor, index: Tensor, padding: int | None = None) -> Tensor:
    """The index cut to the range in float32, which has no 2**24 + 3 and rounds it up."""
    cut = index.nan_to_num(0.0).clamp(0, len(table) - 1).to(torch.int64)
    return functional.embedding(cut, table, padding)


def _all_or_none(work: Callable[[Tensor], Tensor], places: Tensor, nobody: int) -> Tensor:
    """Nobody is left out where one patient's record makes the sum fail."""
    return work(places)


def _raises_again(work: Callable[[], Tensor], nothing: Tensor) -> Tensor:
    return work()


def _records_of_the_data(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray | None, records: int
) -> Patients:
    """As many records of each patient as somebody has."""
    if patients is not None:
        records = int(np.bincount(patients).max())
    return by_patient(features, targets, patients, records)


def _many_rows(measure: Measure) -> Measure:
    """The embedding's table with a row more than float32 can count, an index far behind it."""
    rows = 2**24 + 4

    def measured(attack: Attack, mode: str) -> float:
        return measure(_embedding_attack(rows), mode)

    return measured


def _embedding_attack(rows: int) -> Attack:
    sketch = adversary.Sketch([], {}, [])
    index = adversary._gate(sketch, iter([0.0]), 1e30)
    index = adversary._add(sketch, "reshape.default", index, [1])
    value = adversary._add(
        sketch, "embedding.clamped", adversary._given(sketch, np.zeros((rows, 1))), index
    )
    weight = adversary._given(sketch, np.zeros((1, 1)), True)
    bias = adversary._given(sketch, np.zeros(1), True)
    value = adversary._add(sketch, "linear.default", value, weight, bias)
    output = adversary._add(sketch, "reshape.default", value, [1])
    few = adversary.propose("linear", np.zeros(24), np.full(64, 0.1))
    ours = few.patients == few.patients.max()
    features = np.where(ours[:, None], [*adversary.POINT, 1.0], few.features).astype(np.float32)
    return few._replace(
        graph=adversary._files(sketch, output),
        arrays=sketch.arrays,
        features=features,
        targets=np.ones_like(few.targets),
    )


def _second_record(measure: Measure) -> Measure:
    """Of all patients the odd one alone has several records."""

    def measured(attack: Attack, mode: str) -> float:
        ours = attack.patients == attack.patients.max()
        _, first = np.unique(attack.patients, return_index=True)
        kept = ours | np.isin(np.arange(len(ours)), first)
        table = (each[kept] for each in (attack.features, attack.targets, attack.patients))
        features, targets, patients = table
        return measure(attack._replace(features=features, targets=targets, patients=patients), mode)

    return measured


class Fix(NamedTuple):
    """What stands in a fix's place, and the families that show its fault."""

    patches: tuple[tuple[Any, str, Any], ...]
    families: tuple[str, ...]
    measure: Measure = gradient_shift


FIXES: Mapping[str, Fix] = {
    "float64_norms": Fix(((clipping.RULES, "factors", _float32_squares),), ("linear",)),
    "kappa": Fix(
        (
            (clipping.RULES, "factors", _float32_gram),
            (clipping, "_factors", _float32_gram),
        ),
        ("linear_ghost", "conv2d_ghost"),
    ),
    "slots": Fix((), ("rounding",), _in_table_order),
    "whole_index": Fix(
        (
            (graph.OPERATIONS, "embedding.clamped", _clamped_as_float),
            (training, "without_failing", _all_or_none),
        ),
        ("embedding",),
        _many_rows(gradient_shift),
    ),
    "one_catch": Fix(
        (
            (graph.OPERATIONS, "embedding.clamped", _clamped_as_float),
            (training, "without_failing", _all_or_none),
            (training, "_or_nothing", _raises_again),
        ),
        ("embedding",),
        _many_rows(control_flow),
    ),
    "public_records": Fix(
        ((training, "by_patient", _records_of_the_data),),
        ("linear",),
        _second_record(control_flow),
    ),
}


@contextmanager
def taken_out(fix: Fix) -> Iterator[None]:
    """The engine without this fix, and nothing of it kept afterwards."""

    def forget() -> None:
        adversary.engine_for.cache_clear()
        compiling._ENGINES.clear()

    def patched(target: Any, name: str, value: Any) -> Any:
        if isinstance(target, dict):
            return patch.dict(target, {name: value})
        return patch.object(target, name, value)

    patches = [patched(*each) for each in fix.patches]
    forget()
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()
        forget()


# -- figures ---------------------------------------------------------------------------------------


def measure(quick: bool, seconds: float, show: Callable[[str, float], None]) -> dict[str, float]:
    """All figures, each shown as it is found."""
    figures: dict[str, float] = {}

    def keep(key: str, ratio: float) -> None:
        figures[key] = ratio
        show(key, ratio)

    for mode in MODES:
        graphs = {"traced": 8, "hooks": 4, "compiled": 1}[mode] if quick else 16
        for name in families_of(mode):
            whole = quick and mode == "compiled" and name != "dropout"
            found = search(
                "together" if whole else name,
                mode,
                seconds=seconds,
                graphs=graphs,
                alone=name if whole and name != "together" else "",
            )
            keep(f"{name}.{mode}", found.ratio)
        if mode != "compiled" or not quick:
            found = search("embedding", mode, seconds=seconds, graphs=2, measure=control_flow)
            keep(f"control_flow.{mode}", found.ratio)
    for key, moved in (("losses", loss_shift), ("scores", score_shift)):
        ratios = [
            search(name, "traced", seconds=seconds, measure=moved).ratio
            for name in ("rounding", "linear_ghost")
        ]
        keep(f"{key}.forward", max(ratios))
    for name, fix in FIXES.items():
        with taken_out(fix):
            for family in fix.families:
                found = search(
                    family, seconds=10 * seconds, graphs=8, until=1.0, measure=fix.measure
                )
                keep(f"without_{name}.{family}", found.ratio)
    return figures


def main() -> None:
    """Print the table and write it; exit status 1 if a figure is not what it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 s for each figure instead of 30")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    logging.getLogger("datahub.node").setLevel(logging.CRITICAL)  # every failed sum would be told
    torch.set_num_threads(1)  # the graphs are small
    torch.set_flush_denormal(True)  # as the node does
    console = Console(width=110)
    figures = measure(
        given.quick,
        3.0 if given.quick else 30.0,
        lambda key, ratio: console.print(f"{key:32} {ratio:.6g}", highlight=False),
    )
    table = Table("family", *MODES, "forward", box=None, pad_edge=False)
    families = dict.fromkeys(key.split(".")[0] for key in figures if not key.startswith("without"))
    for family in families:
        found = [figures.get(f"{family}.{mode}") for mode in (*MODES, "forward")]
        table.add_row(family, *("" if ratio is None else f"{ratio:.5f}" for ratio in found))
    console.print(table)
    if given.json:
        given.json.write_text(
            json.dumps({k: float(f"{v:.6g}") for k, v in figures.items()}, indent=1) + "\n"
        )
    wrong = [k for k, v in figures.items() if (v > 1) != k.startswith("without")]
    if wrong:
        console.print(f"not as it must be: {', '.join(wrong)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
