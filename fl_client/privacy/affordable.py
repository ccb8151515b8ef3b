"""What a dataset's jobs may still cost: everybody's history against every budget that binds them.

A job fits if every patient in the dataset's cohort stays within all budgets that bind them, and if
somebody who was in every version of the dataset would stay within its own: what a dataset answers
over its life does not tell who stayed in it. Several of a patient's units count by group privacy
(cohorts.group_charge). Reads only, but for the accountant's curves that it keeps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_client.errors import BudgetExceeded, LedgerError
from fl_client.privacy import accounting, cohorts
from fl_client.privacy.accounting import lifetime_epsilon, lifetime_epsilons
from fl_client.privacy.cohorts import Held, group_charge
from fl_client.privacy.plan import Charge

MOST_JOBS = 10**6  # that are said to fit


@dataclass(frozen=True)
class Budget:
    """A dataset's lifetime budget; `order` is the RDP order that its filter favours."""

    epsilon: float
    delta: float
    order: float


def budget_of(db: sqlite3.Connection, dataset: str) -> Budget:
    row = db.execute(
        "SELECT epsilon, delta, rdp_order FROM dataset WHERE name=?", (dataset,)
    ).fetchone()
    if row is None:
        raise LedgerError(f"dataset {dataset[:32]} has no budget")
    return Budget(*(float(number) for number in row))


def epsilon_of(db: sqlite3.Connection, dataset: str, tables: Sequence[str]) -> float:
    budget, own = budget_of(db, dataset), cohorts.of_dataset(db, dataset)
    concerned = cohorts.classes(db, own)
    always = {c: max([1, *(h.get(c, 1) for h in concerned)]) for c in own}
    rdps, steps = _totals(db, [always, *concerned], tables)
    return float(lifetime_epsilons(rdps, steps, budget.delta, budget.order).max())


class Room:
    """What is spent or reserved by everybody whom `new` charges to a cohort would concern, and how
    often they fit.
    """

    def __init__(self, db: sqlite3.Connection, cohort: int, new: Sequence[Charge]):
        (dataset,) = db.execute("SELECT dataset FROM cohort WHERE id=?", (cohort,)).fetchone()
        own, now = cohorts.of_dataset(db, dataset), cohort
        concerned = cohorts.classes(db, [now])
        # somebody who was in every version: what is published of a dataset must not tell who was
        always = {c: max([1, *(h.get(c, 1) for h in concerned)]) for c in own}
        self.dataset: str = dataset
        self.histories: list[Held] = [always, *concerned]
        tables = ("spent", "reserved")
        self.rdps, self.steps = _totals(db, self.histories, tables)
        units = [held[now] for held in self.histories]
        each = {k: [group_charge(c, k) for c in new] for k in set(units)}
        of_each = {k: accounting.rdp(grouped) for k, grouped in each.items()}
        self.each = each
        self.new_rdps = np.array([of_each[k] for k in units])
        self.new_steps = np.array([sum(c.steps for c in each[k]) for k in units])
        of_cohort = dict(db.execute("SELECT id, dataset FROM cohort"))
        # beside the first history, which only its own dataset's budget binds
        names = [{dataset}, *({str(of_cohort[c]) for c in held} for held in concerned)]
        self.budgets = {name: budget_of(db, name) for name in set().union(*names)}
        self.bound = {name: np.array([name in of_one for of_one in names]) for name in self.budgets}

    def over(self, count: float) -> str | None:
        """The dataset whose budget `count` times the new charges would break for somebody."""
        name: str
        for name in sorted(self.budgets, key=lambda n: n != self.dataset):
            budget, who = self.budgets[name], self.bound[name]
            spent = lifetime_epsilons(
                self.rdps[who] + count * self.new_rdps[who],
                self.steps[who] + count * self.new_steps[who],
                budget.delta,
                budget.order,
            )
            if not spent.max() <= budget.epsilon:
                return name
        return None

    def how_many(self) -> int:
        """How often the new charges fit, one after the other."""
        low, high = 0, 1
        while high <= MOST_JOBS and self.over(high) is None:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.over(middle) is None else (low, middle)
        return low

    def how_much(self) -> float:
        """The most times, any number from 0, that the new charges fit: for a Gaussian mechanism
        over everybody a multiple of its RDP is a smaller noise. Rounded up by a thousandth.
        """
        low, high = 0.0, 1.0
        while high < MOST_JOBS and self.over(high) is None:
            low, high = high, 2 * high
        while high - low > 1e-3 * high and high > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if self.over(middle) is None else (low, middle)
        return high if low > 0 else 0.0

    def worst(self, name: str, count: int) -> float:
        """The largest epsilon, by the budget of `name`, of anybody whom it binds."""
        budget, who = self.budgets[name], self.bound[name]
        rdps = self.rdps[who] + count * self.new_rdps[who]
        steps = self.steps[who] + count * self.new_steps[who]
        return float(lifetime_epsilons(rdps, steps, budget.delta, budget.order).max())


def check_fits(db: sqlite3.Connection, cohort: int, charges: Sequence[Charge], who: str) -> None:
    """Returns if everybody in the cohort can afford `charges`. Raises BudgetExceeded."""
    room = Room(db, cohort, charges)
    refuse_over(room, charges, who)
    for grouped in room.each.values():
        keep_curves(db, grouped)


def refuse_over(room: Room, charges: Sequence[Charge], who: str) -> None:
    """Returns if one more such job fits. Raises BudgetExceeded."""
    if (name := room.over(1)) is None:
        return
    budget = room.budgets[name]
    before, after = room.worst(name, 0), room.worst(name, 1)
    alone = lifetime_epsilon(charges, budget.delta, budget.order)
    whose = (
        "the lifetime budget"
        if name == room.dataset
        else "the lifetime budget of another dataset with some of the same patients,"
    )
    raise BudgetExceeded(
        f"{who} needs epsilon={alone:.3f}, as a lifetime counts it, on top of {before:.3f} spent "
        f"or reserved, together {after:.3f}; {whose} of {budget.epsilon:g} at "
        f"delta={budget.delta:g} leaves {max(0.0, budget.epsilon - before):.3f}"
    )


def _totals(
    db: sqlite3.Connection, histories: Sequence[Held], tables: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(RDP [n, orders], steps [n]) of everything in `tables` for each of these histories."""
    pairs = sorted({pair for held in histories for pair in held.items()})
    place = {pair: i for i, pair in enumerate(pairs)}
    by_cohort: dict[int, list[Charge]] = {}
    for table in tables:
        for cohort, *charge in db.execute(
            f"SELECT cohort, noise_multiplier, sampling_rate, sum(steps), what FROM {table}"  # noqa: S608 fixed
            " GROUP BY cohort, noise_multiplier, sampling_rate, what"
        ):
            by_cohort.setdefault(cohort, []).append(Charge(*charge))
    grouped = [
        [group_charge(c, units) for c in by_cohort.get(cohort, [])] for cohort, units in pairs
    ]
    rdps = np.array([accounting.rdp(charges) for charges in grouped]).reshape(
        len(pairs), len(accounting.ORDERS)
    )
    steps = np.array([sum(c.steps for c in charges) for charges in grouped])
    rows = [[place[pair] for pair in held.items()] for held in histories]
    return (
        np.array([rdps[row].sum(0) if row else np.zeros(rdps.shape[1]) for row in rows]),
        np.array([int(steps[row].sum()) if row else 0 for row in rows]),
    )


def keep_curves(db: sqlite3.Connection, charges: Sequence[Charge]) -> None:
    """Keep the accountant's curves of these mechanisms in the file, for processes to come."""
    for noise_multiplier, sampling_rate in {(c.noise_multiplier, c.sampling_rate) for c in charges}:
        if sampling_rate < 1:  # without sampling it is one division
            rdp = accounting.curve(noise_multiplier, sampling_rate)
            row = (noise_multiplier, sampling_rate, accounting.CURVES, rdp)
            db.execute("INSERT OR IGNORE INTO curve VALUES (?, ?, ?, ?)", row)
