"""Traced and compiled engines: the same sums, rows that stay apart, machines that cannot
compile.
"""

from __future__ import annotations

import math
import shutil
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fl_client.model.export import export_model
from fl_client.model.graph import GraphModel, load_model
from fl_client.model.losses import LOSSES
from fl_client.privacy import compiling
from fl_client.privacy.compiling import (
    BookKeeping,
    book_keeping,
    frozen_of,
    made_up,
    rows_depend_on_others,
)
from fl_client.privacy.training import ENGINES
from tests.clocks import clock
from tests.fl_client.test_clipping import CASES, ROWS, built, ours

LONG = 10**12  # steps of a job that compiling pays for, where there is a compiler


def theta_of(graph: GraphModel) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in graph.parameters() if p.requires_grad])


def small(name: str) -> tuple[GraphModel, Tensor, Tensor, Tensor]:
    """A case's graph in float32, x, y and weights of ROWS rows."""
    _, graph, x, y = built(name)
    return graph.float(), x.float(), y.float(), torch.ones(ROWS)


def summed(run: object, graph: GraphModel, x: Tensor, y: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    clip = torch.tensor(0.7)
    return run.sum(theta_of(graph), frozen_of(graph), x, y, w, mask, clip)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CASES)
def test_book_keeping__traced__is_the_same_function(name: str) -> None:
    graph, x, y, w = small(name)
    mask, loss = torch.arange(ROWS) < ROWS - 2, LOSSES[CASES[name][2]]
    run = book_keeping(graph, loss, ROWS, 1, 1)
    assert book_keeping(graph, loss, ROWS, 1, 1) is run, "traced once"
    expected = torch.cat([s.flatten() for s in ours(graph, loss, x, y, mask, 0.7)])
    torch.testing.assert_close(
        summed(run, graph, x, y, w, mask), expected, rtol=1e-4, atol=1e-5, check_dtype=False
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "patches", "dilated"])
def test_book_keeping__compiled__is_the_same_function_and_keeps_rows_apart(name: str) -> None:
    graph, x, y, w = small(name)
    loss, mask = LOSSES[CASES[name][2]], torch.arange(ROWS) != 4
    plain, fast = (BookKeeping(graph, loss, ROWS, 1, steps) for steps in (1, LONG))
    x[2] = torch.nan
    torch.testing.assert_close(
        summed(fast, graph, x, y, w, mask),
        summed(plain, graph, x, y, w, mask),
        rtol=1e-4,
        atol=1e-5,
    )
    if not fast.compiled:
        pytest.skip("no C++ compiler here: traced was compared with traced")


def test_book_keeping__compiled_for_patients_with_records__is_the_same_function() -> None:
    graph, x, y, _ = small("mlp")
    people = ROWS // 2
    x, y = x[: 2 * people], y[: 2 * people]
    weight = torch.tensor([0.5, 0.5] * (people - 1) + [1.0, 0.0])
    mask, loss = torch.ones(people, dtype=torch.bool), LOSSES["squared_error"]
    sums = [
        summed(BookKeeping(graph, loss, people, 2, steps), graph, x, y, weight, mask)
        for steps in (1, LONG)
    ]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)


def test_book_keeping__compiled_with_dropout__drops_others_each_time_and_every_sample_its_own() -> (
    None
):
    """Dropout on features of one: a sample's sum of outputs counts what it kept."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
    graph = load_model(*export_model(module, torch.zeros(1, 64))).train()
    run = BookKeeping(graph, LOSSES["squared_error"], 8, 1, LONG)
    theta, x, ones = torch.zeros(64), torch.ones(8, 64), torch.ones(8)
    kept = torch.stack(
        [  # the gradient by weight i is -2 * 2 where feature i was kept, 0 where it was dropped
            run.sum(theta, [], x, ones, ones, torch.arange(8) == row, torch.tensor(1e9)) / -4.0
            for row in range(8)
            for _ in range(25)
        ]
    )
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert len(kept.unique(dim=0)) == 200
    # an honest run fails once in 10^7
    assert abs(kept.mean() - 0.5) < 5.4 * 0.5 / math.sqrt(kept.numel())


def test_book_keeping__tensors_that_do_not_fit__refuses_them() -> None:
    """Compiled code would read beyond them."""
    graph, x, y, w = small("mlp")
    run = book_keeping(graph, LOSSES["squared_error"], ROWS, 1, 1)
    mask, clip = torch.ones(ROWS, dtype=torch.bool), torch.tensor(0.7)
    fitting = [theta_of(graph), [], x, y, w, mask, clip]
    run.sum(*fitting)
    turned = x.t().contiguous().t()
    for place, tensor in (
        (0, fitting[0][:-1]),
        (2, x[:-1]),
        (2, turned),
        (3, y.double()),
        (4, w[:-1]),
        (5, torch.ones(ROWS)),
        (6, torch.ones(1)),
    ):
        with pytest.raises(ValueError, match="not fit"):
            run.sum(*fitting[:place], tensor, *fitting[place + 1 :])


def test_book_keeping__weight_of_one_dimension__has_a_number_of_the_sum_for_each_of_its_own() -> (
    None
):
    """It was once accepted, charged, and then failed in every round."""

    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.linear.default(x, self.weight)

    graph = load_model(*export_model(Dot(), torch.zeros(1, 5)))
    run = BookKeeping(graph, LOSSES["squared_error"], 3, 1, 1)
    x, y, w, mask = made_up(graph, LOSSES["squared_error"], 3, 1)
    clip = torch.tensor(1e9)
    found = run.sum(theta_of(graph), [], x, y, w, mask, clip)
    expected = (2 * (x @ theta_of(graph) - y)[:, None] * x).sum(0)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


def test_book_keeping__another_job_of_the_same_graph__uses_its_own_frozen_numbers() -> None:
    class Adapter(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.base = nn.Linear(5, 5)
            self.base.requires_grad_(False)
            nn.init.constant_(self.base.weight, scale)
            self.head = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.base(x))

    torch.manual_seed(0)
    one, other = (
        load_model(*export_model(Adapter(scale), torch.zeros(1, 5))) for scale in (0.1, 7.0)
    )
    loss = LOSSES["squared_error"]
    run = book_keeping(one, loss, 3, 1, 1)
    assert book_keeping(other, loss, 3, 1, 1) is run
    x, y, w, mask = made_up(one, loss, 3, 1)
    for graph in (other, one, other):
        found = run.sum(theta_of(graph), frozen_of(graph), x, y, w, mask, torch.tensor(1e9))
        expected = torch.cat([s.flatten() for s in ours(graph, loss, x, y, mask, 1e9)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_rows_depend_on_others__real_engines__no(name: str, records: int, engine: str) -> None:
    graph = small(name)[0]
    run = ENGINES[engine](graph, LOSSES[CASES[name][2]], 7, records, 1)
    x, y, w, _ = made_up(graph, LOSSES[CASES[name][2]], 7, records)
    rows = lambda theta, x, y, w, *frozen: run.rows(theta, frozen, x, y, w)  # noqa: E731
    assert rows_depend_on_others(rows, 7, theta_of(graph), frozen_of(graph), x, y, w) is None


def test_rows_depend_on_others__a_last_bit__is_noticed() -> None:
    x, y, w, _ = made_up(small("mlp")[0], LOSSES["squared_error"], 6, 1)

    def rows(theta: Tensor, x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        sway = torch.where(x[0].isnan().any(), 2.0**-23, 0.0)
        return [x, x * torch.where(torch.arange(6) == 3, 1 + sway, 1.0)[:, None]]

    assert rows_depend_on_others(rows, 6, torch.zeros(1), [], x, y, w) == 3


def test_book_keeping__compiler_breaks_down__runs_traced_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("omp.h: no such file\nand much more")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    monkeypatch.setattr(compiling, "pays_from", lambda *_: 5)
    monkeypatch.setattr(compiling, "_ENGINES", OrderedDict())
    graph, x, y, w = small("mlp")
    loss, mask = LOSSES["squared_error"], torch.ones(ROWS, dtype=torch.bool)
    short = book_keeping(graph, loss, ROWS, 1, 4)
    assert not short.compiled
    long = book_keeping(graph, loss, ROWS, 1, 5)
    assert not long.compiled
    assert torch.equal(summed(long, graph, x, y, w, mask), summed(short, graph, x, y, w, mask))
    assert book_keeping(graph, loss, ROWS, 1, 10**9) is long, "tried once"
    assert [m for m in caplog.messages if m] == ["not compiled, so slower: omp.h: no such file"]


def test_book_keeping__longer_job_of_the_same_model__is_compiled_then_and_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "pays_from", lambda *_: 5)
    monkeypatch.setattr(compiling, "compiled", lambda stages: [graph for graph, _ in stages])
    monkeypatch.setattr(compiling, "_ENGINES", OrderedDict())
    graph = small("mlp")[0]
    kinds = [
        book_keeping(graph, LOSSES["squared_error"], ROWS, 1, steps).compiled for steps in (4, 5, 4)
    ]
    assert kinds == [False, True, True]


def test_book_keeping__compiled_rows_that_mix__are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mixing(stages: list) -> list:
        (first, _), (second, _) = stages
        return [lambda *given: [t + t.nan_to_num().sum() * 1e-9 for t in first(*given)], second]

    monkeypatch.setattr(compiling, "pays_from", lambda *_: 5)
    monkeypatch.setattr(compiling, "compiled", mixing)
    run = BookKeeping(small("mlp")[0], LOSSES["squared_error"], ROWS, 1, 5)
    assert not run.compiled and "not compiled, so slower: rows mix" in caplog.messages


def test_pays_from__step_of_a_millisecond_or_of_a_second__is_thousands_of_steps_or_dozens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here: nothing ever pays")
    graph = small("mlp")[0]
    found = []
    for seconds in (1e-3, 1.0):
        times = iter([0.0, 9.0, 20.0, 20.0 + seconds])  # the first call is slow and does not count
        clock(monkeypatch, compiling, perf_counter=lambda times=times: next(times))
        found.append(BookKeeping(graph, LOSSES["squared_error"], ROWS, 1, 1).pays_from)
    assert found[0] > 3000 and 20 < found[1] < 100


def test_pays_from__no_compiler__never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    run = BookKeeping(small("mlp")[0], LOSSES["squared_error"], ROWS, 1, LONG)
    assert run.pays_from == math.inf and not run.compiled


def test_compiled__gives_other_numbers__is_not_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler's mistake must not become a gradient that is not clipped."""
    for wrong in (1.01, math.nan):
        monkeypatch.setattr(
            torch._inductor,
            "standalone_compile",
            lambda graph, *_, wrong=wrong, **__: lambda *given: wrong * graph(*given),
        )
        example = (torch.ones(3), torch.ones(3))
        stage = (compiling.traced(lambda a, b: a + b, example), example)
        assert compiling.compiled([stage]) is None
    said = [r.message for r in caplog.records if r.name.startswith("fl_client")]
    assert said == ["not compiled, so slower: compiled, it gives other numbers"] * 2
