"""What a job costs a hospital's machine, by public numbers, before anything heavy is done: the
operations of the self-check and of all rounds, the memory of the largest chunk. Pure arithmetic on
a model that was dry-run. Knows nothing of records, messages or clocks.

Operations are multiplications and additions; a step of a graph costs STEP_OPERATIONS whatever its
size, so that thousands of tiny ones are not free. They are turned into seconds at a fixed speed
(slots.REFERENCE, or a hundred times that on a GPU), so that the answer to a job does not depend on
how busy a machine is; what takes longer all the same is stopped by the clock (worker/workers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_client.errors import PolicyRefusal
from fl_client.model.graph import GraphModel
from fl_client.model.losses import Loss
from fl_client.privacy.gradients import RowGradients
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.slots import CHECK_SECONDS, needed
from fl_client.privacy.training import chunks, row_operations, speed

CHECK_PASSES = 20  # of selfcheck.check over one chunk, forward and backward (test_hospital_costs)
STEP_OPERATIONS = 5_000_000  # of one step of a graph in one pass: half a millisecond
STEP_BYTES = 250_000  # of one step of a graph while it is traced
PARAMETER_BYTES = 64  # of one parameter: message, model, flat vector, sums in float64, reply


@dataclass(frozen=True)
class Costs:
    """check    operations of the self-check
    job      operations of all rounds and of the last look at the model
    memory   bytes at the most
    """

    check: int
    job: int
    memory: int


def costs(
    model: GraphModel,
    loss: Loss,
    plan: PrivacyPlan,
    rounds: int,
    persons: int,
    records: int,
    engine: str = "book-keeping",
) -> Costs:
    """Of a job over `persons` released patients of `records` records each; plan.steps are all local
    steps of all rounds.
    """
    slots = needed(persons, plan.sampling_rate)
    chunk = chunks(model, slots, records, loss, engine)
    steps = STEP_OPERATIONS * len(model.nodes)
    of_rows = RowGradients(model, loss, records)
    one = row_operations(model, of_rows) * chunk.slots * records + steps
    looks = (rounds + 1) * (model.work * needed(persons, 1.0) * records + steps)
    rows = chunk.slots * records * (3 * model.elements + 5 * of_rows.held)
    numbers = sum(p.numel() for p in model.parameters())
    return Costs(
        check=CHECK_PASSES * one,
        job=plan.steps * chunk.times * one + looks,
        memory=4 * rows + PARAMETER_BYTES * numbers + STEP_BYTES * len(model.nodes),
    )


def refuse(found: Costs, minutes: float, memory_gb: float, left_s: float) -> float:
    """The seconds that the job takes. Raises PolicyRefusal where it costs more than a node gives:
    CHECK_SECONDS for the check, `minutes` for all rounds and no more than the `left_s` seconds
    until the deadline, `memory_gb`.
    """
    rate = speed()
    check_s, job_s = found.check / rate, found.job / rate
    at = f"at {rate:.0e} a second"
    if found.memory > memory_gb * 1e9:
        raise PolicyRefusal(
            f"memory: training takes {found.memory / 1e9:.1f} GB for the fewest patients at once; "
            f"this hospital gives a job {memory_gb:g} GB"
        )
    if check_s > CHECK_SECONDS:
        raise PolicyRefusal(
            f"operations: checking this model takes {found.check:.1e} operations, {check_s:.0f} s "
            f"{at}; this hospital gives a check {CHECK_SECONDS} s"
        )
    if job_s > minutes * 60:
        raise PolicyRefusal(
            f"operations: this job takes {found.job:.1e} operations, {job_s / 60:.0f} minutes "
            f"{at}; this hospital gives a job {minutes:g} minutes"
        )
    if job_s > left_s:
        raise PolicyRefusal(
            f"deadline: this job takes {found.job:.1e} operations, {job_s / 60:.1f} minutes {at}; "
            f"{left_s / 60:.1f} minutes are left"
        )
    return job_s
