"""The audit convicts planted faults and acquits the engine; its bound is the paper's."""

import json
import math
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from typer.testing import CliRunner

from fl_client.errors import PlanError
from fl_client.office.cli import node
from fl_client.privacy import adversary
from fl_client.privacy.accounting import calibrate
from fl_client.privacy.adversary import survey
from fl_client.privacy.audit import audit, disproved
from fl_client.privacy.training import ENGINES
from tests.benchmarks.audit import FAULTS, planted

DELTA = 1e-5
NOISE, _ = calibrate(1.0, DELTA, 1.0, 10, 1, 1e-3)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """The command flushes denormals, as a node's process does; other tests' numbers have some."""
    yield
    torch.set_flush_denormal(False)


def _audit(records: int = 1, confidence: float = 0.95, engine: str = "book-keeping"):
    return audit(
        NOISE, 1.0, 10, DELTA, canaries=1000, records=records, confidence=confidence, engine=engine
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("records", [1, 3])
def test_audit__the_engine_as_it_is__is_not_convicted(records: int, engine: str) -> None:
    # at this confidence an honest engine is convicted once in a million runs, at most
    found = _audit(records, 1 - 1e-6, engine)
    assert not found.convicted and found.epsilon_claimed == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("fault", ["noise_tenth", "no_clipping"])
@pytest.mark.parametrize("records", [1, 3])
def test_audit__planted_fault__is_convicted(fault: str, records: int) -> None:
    with planted(**FAULTS[fault]):
        found = _audit(records)
    assert found.convicted and found.right > 0.95 * found.guesses


def test_disproved__delta_zero__is_where_the_binomial_tail_crosses() -> None:
    eps = disproved(1000, 200, 150, 0.0, 0.95)
    chance = math.exp(eps) / (1 + math.exp(eps))
    assert binom.sf(149, 200, chance) == pytest.approx(0.05, abs=1e-3)


@given(st.integers(0, 200), st.sampled_from([0.0, 1e-7, 1e-5, 1e-3]))
@settings(max_examples=60, deadline=None)
def test_disproved__fewer_right_or_more_delta__disproves_less(right: int, delta: float) -> None:
    found = disproved(1000, 200, right, delta, 0.95)
    assert 0 <= disproved(1000, 200, max(0, right - 1), delta, 0.95) <= found + 1e-3
    assert disproved(1000, 200, right, delta * 2, 0.95) <= found + 1e-3
    if right <= 100:
        assert found == 0.0


def test_disproved__randomised_response_at_its_own_epsilon__is_seldom_convicted() -> None:
    # every coin told truly with probability e/(1+e): exactly 1-DP, so a conviction at 95 % is wrong
    # in 5 of 100 runs
    random = np.random.default_rng(0)
    right = random.binomial(500, math.e / (1 + math.e), 400)
    wrong = np.mean([disproved(500, 500, int(r), 0.0, 0.95) > 1.0 for r in right])
    assert wrong < 0.09


def test_audit__engine_that_is_not_there__refuses() -> None:
    with pytest.raises(PlanError, match="engine='opacus' must be book-keeping or hooks"):
        audit(1.0, 1.0, 1, DELTA, engine="opacus")


@pytest.mark.parametrize("canaries", [9, 20_001])
def test_audit__too_few_or_too_many_canaries__refuses(canaries: int) -> None:
    with pytest.raises(PlanError, match=f"canaries={canaries}"):
        audit(1.0, 1.0, 1, DELTA, canaries=canaries)


@pytest.mark.parametrize(("engine", "shift", "status"), [("hooks", None, 0), ("hooks", 1.5, 1)])
def test_audit_command__largest_shift_of_every_family__decides_the_exit_status(
    engine: str, shift: float | None, status: int
) -> None:
    """The real search; the second time with a figure above 1 among its own."""
    found = survey(engine, 0.0, graphs=1) if shift is None else {"linear.hooks": shift}
    with patch.object(adversary, "survey", lambda *_: found):
        said = CliRunner().invoke(
            node, ["audit", "--engine", engine, "--canaries", "200", "--steps", "2", "--json"]
        )
    assert said.exit_code == status, said.output
    read = json.loads(said.stdout)
    assert read["shifts"] == found and len(read["runs"]) == 2
