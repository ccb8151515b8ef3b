"""The report: canonical, deterministic, and its money adds up."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datatokens.terms import JobTerms, canonical_json
from fl_client.protocol import JobSpec
from fl_server.report import Part, Round, build, loss_interval95
from tests.conftest import plan, spec, terms

PARTS = {i: Part(i, 3, 1.5, 2.5, 1e-5, 61.0, "cpu") for i in (1, 2, 3, 4)}
ROUNDS = [Round(1, 0.7, 0.1)]


def test_build__same_figures__same_bytes(job_terms: JobTerms, job_spec: JobSpec) -> None:
    first = build(job_terms, job_spec, b"\1" * 32, ROUNDS, PARTS)
    assert first == build(job_terms, job_spec, b"\1" * 32, ROUNDS, dict(reversed(PARTS.items())))
    assert canonical_json(json.loads(first[0])) == first[0]


def test_build__everybody_worked__pool_is_split_by_persons(
    job_terms: JobTerms, job_spec: JobSpec
) -> None:
    raw, worked = build(job_terms, job_spec, b"\1" * 32, ROUNDS, PARTS)
    assert worked == 0b1111
    by_id = {line["dataset_id"]: line["reward_units"] for line in json.loads(raw)["hospitals"]}
    assert by_id == {1: 400, 2: 300, 3: 200, 4: 100}


def test_build__a_hospital_that_dropped_out__is_paid_nothing(
    job_terms: JobTerms, job_spec: JobSpec
) -> None:
    parts = PARTS | {2: Part(2, 2, 1.0, 2.0, 1e-5, 30.0, "cpu")}
    raw, worked = build(job_terms, job_spec, b"\1" * 32, ROUNDS, parts)
    dropped = next(line for line in json.loads(raw)["hospitals"] if line["dataset_id"] == 2)
    assert (dropped["worked"], dropped["price_units"], dropped["reward_units"]) == (False, 0, 0)
    assert (
        dropped["epsilon_lifetime"] == 2.0
    )  # it is not paid, and its patients were charged all the same
    assert worked.bit_count() == 3 and sum(paid(raw)) == job_terms.reward_units


def paid(raw: bytes) -> list[int]:
    return [line["reward_units"] for line in json.loads(raw)["hospitals"]]


def test_build__metered_compute__is_started_minutes_up_to_the_cap_and_only_for_work(
    job_terms: JobTerms,
) -> None:
    lines = tuple(
        replace(d, compute_rate_units=7, compute_cap_units=14 * i)
        for i, d in enumerate(job_terms.datasets)
    )
    job = terms(datasets=lines)
    parts = PARTS | {
        job.datasets[3].dataset_id: Part(job.datasets[3].dataset_id, 2, 1.0, 2.0, 1e-5, 61.0, "cpu")
    }
    raw, _ = build(job, JobSpec.from_dict(job.spec), b"\1" * 32, ROUNDS, parts)
    assert [line["compute_units"] for line in json.loads(raw)["hospitals"]] == [0, 14, 14, 0]


@settings(deadline=None)  # the first case imports and a busy machine takes its time
@given(
    st.integers(0, 2**87),
    st.lists(st.integers(1, 10**6), min_size=4, max_size=4),
    st.integers(0, 15),
)
def test_build__any_pool_persons_and_absences__sums_exactly(
    pool: int, persons: list[int], present: int
) -> None:
    one = spec(persons=dict(enumerate(persons, 1)))
    job = terms(one, reward_units=pool, quorum=1)
    parts = {d: p for d, p in PARTS.items() if present >> (d - 1) & 1}
    raw, worked = build(job, one, b"\1" * 32, ROUNDS, parts)
    shares = paid(raw)
    assert sum(shares) == (pool if worked else 0)
    assert all(share == 0 or worked >> i & 1 for i, share in enumerate(shares))


def test_loss_interval95__one_hospital__is_the_noise_of_its_mean() -> None:
    one = spec(plan=plan(), persons={1: 50})
    assert loss_interval95(one, [1]) == pytest.approx(1.96 * 16.0 * 1.0 / 50)
