"""The public privacy ledger, read from the events of both chains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bank_world import World
from typer.testing import CliRunner

from datatokens import public_ledger
from datatokens.cli import app
from datatokens.public_ledger import Attested, History, misfit
from datatokens.terms import JobTerms, Outcome, privacy_charged

STATED, DELTA = 3.0, 1e-5


def lines(world: World) -> dict[int, public_ledger.LedgerLine]:
    made = world.deployment
    return {
        line.dataset_id: line
        for line in public_ledger.read(world.buyer, made.registry, made.market)
    }


def attested(world: World, epsilon: float, delta: float = DELTA) -> JobTerms:
    """A job after which every dataset stands at this epsilon."""
    terms = world.funded()
    spent = privacy_charged(epsilon, delta)
    plain = world.attestation(terms)
    outcomes = tuple(Outcome(o.compute_units, o.reward_units, *spent) for o in plain.outcomes)
    attestation = replace(plain, outcomes=outcomes)
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))
    return terms


def test_read__datasets_with_and_without_a_budget__says_who_overspent(world: World) -> None:
    stated = world.registry(world.hospitals[0])
    owner = world.hospitals[0]
    dataset = stated.list_dataset(world.node(0), 5, 0, b"\x07" * 32, "https://x", "X")
    assert (lines(world)[dataset].jobs, lines(world)[dataset].job_id) == (0, None)
    micro, pico = privacy_charged(STATED, DELTA)
    world.registry(owner).set_privacy_budget(dataset, micro, pico * 10**6)
    before = world.dataset_ids[0]
    world.dataset_ids[0] = dataset
    try:
        attested(world, 1.25)
        first = lines(world)[dataset]
        assert (first.jobs, first.epsilon_micro, first.overspent) == (1, 1_250_000, False)
        last = attested(world, STATED)  # to the end of the budget, and not over it
        assert not lines(world)[dataset].overspent
        assert lines(world)[dataset].job_id == last.job_id
        assert lines(world)[dataset].misfit == "" and lines(world)[dataset].accepted == 2
        fallen = attested(world, 2.0)  # a figure that falls hides nothing
        assert lines(world)[dataset].epsilon_micro == micro
        assert lines(world)[dataset].misfit == (
            f"job {fallen.job_id.hex()[:12]} was accepted after {last.job_id.hex()[:12]} had been "
            "attested with a lifetime epsilon of 3.000000, and says 2.000000: that does not pay "
            "for it"
        )
        over = attested(world, STATED + 1e-6)
        assert lines(world)[dataset].overspent
        assert lines(world)[dataset].job_id == over.job_id
        assert not lines(world)[world.dataset_ids[1]].overspent  # stated nothing, promised nothing
        assert lines(world)[world.dataset_ids[1]].epsilon_micro >= over_micro()
    finally:
        world.dataset_ids[0] = before


def over_micro() -> int:
    return privacy_charged(STATED + 1e-6, DELTA)[0]


def test_read__delta_above_the_stated_one__is_overspent_too(world: World) -> None:
    stated = world.registry(world.hospitals[0])
    dataset = stated.list_dataset(world.node(0), 5, 0, b"\x07" * 32, "https://x", "X")
    micro, pico = privacy_charged(STATED, DELTA)
    stated.set_privacy_budget(dataset, micro, pico * 10**6)
    before = world.dataset_ids[0]
    world.dataset_ids[0] = dataset
    try:
        attested(world, 0.5, 2 * DELTA)
    finally:
        world.dataset_ids[0] = before
    assert lines(world)[dataset].overspent


def figure(job: int, epsilon: int, accepted_at: int, at: int, delta: int = 5) -> Attested:
    return Attested(bytes([job]) * 32, epsilon, delta, (accepted_at, 0), (at, 0))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([], ""),
        ([figure(1, 100, 1, 2), figure(2, 101, 3, 4), figure(3, 500, 5, 6)], ""),
        # under way at the same time, attested in the other order
        ([figure(2, 101, 2, 3), figure(1, 100, 1, 4)], ""),
        ([figure(1, 100, 1, 2), figure(2, 100, 3, 4)], "says 0.000100: that does not pay for it"),
        ([figure(1, 100, 1, 2), figure(2, 60, 3, 4)], "says 0.000060: that does not pay for it"),
        ([figure(1, 100, 1, 4), figure(2, 100, 1, 5)], "one of them is not counted"),
        ([figure(1, 100, 1, 2), figure(2, 200, 3, 4, delta=6)], "delta may only fall"),
    ],
)
def test_misfit__figures_of_one_dataset__must_grow_with_every_job(
    figures: list[Attested], said: str
) -> None:
    found = misfit(History((), tuple(figures)))
    assert said in found and bool(found) == bool(said)


def test_command__figures_that_cannot_be_true__exit_status_1(world: World, tmp_path: Path) -> None:
    dataset = world.registry(world.hospitals[0]).list_dataset(
        world.node(0), 5, 0, b"\x07" * 32, "https://x", "X"
    )
    before = world.dataset_ids[0]
    world.dataset_ids[0] = dataset
    try:
        for _ in range(2):
            attested(world, 1.25)
    finally:
        world.dataset_ids[0] = before
    world.deployment.save(tmp_path / "deployment.json")
    asked = ["privacy", str(tmp_path / "deployment.json"), "--chain", world.buyer.url]
    said = CliRunner().invoke(app, [*asked, "--json"])
    assert said.exit_code == 1
    row = next(row for row in json.loads(said.stdout) if row["dataset_id"] == dataset)
    assert "that does not pay for it" in row["misfit"] and row["accepted"] == 2
    assert f"dataset {dataset}: job" in CliRunner().invoke(app, asked).stdout
