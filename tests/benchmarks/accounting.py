"""How many jobs a patient's lifetime budget holds, by each way of counting, and how fast a long
ledger answers.

    python -m tests.benchmarks.accounting [--quick] [--json FILE]

A budget of epsilon 8 at delta 1e-5 and equal jobs of epsilon 1 (q = 0.02, 500 steps): `jobs.adding`
adds their epsilons, `jobs.filter` is what the node admits (RDP filter, valid when buyers choose
after having seen results), `jobs.pld` what would fit if all had been fixed in advance. Then a
ledger of 1,000 jobs with mixed terms, each question asked cold, by a new process, and warm:
`SECONDS.left.*` what is left, `SECONDS.more.*` how many more such jobs fit.

Then a hospital of a million patients: five datasets with ten versions each, between which patients
come and go and which overlap, 20 jobs on each version: `patients.seconds.*` of entering a version,
of opening the ledger and asking what is left, how many more fit, and of reserving a job (a new
process each), with `patients.classes` of equal history.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fl_client.data.identity import Members
from fl_client.privacy import cohorts
from fl_client.privacy.accounting import (
    best_order,
    calibrate,
    epsilon,
    fits,
    how_many_fit,
    pld_epsilon,
)
from fl_client.privacy.affordable import keep_curves
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge

LIMIT, DELTA, RATE, STEPS = 8.0, 1e-5, 0.02, 500
ORDER = best_order(LIMIT, DELTA)
ASK = """
import sys, time
from pathlib import Path
from fl_client.privacy.ledger import Ledger
ledger, found = Ledger(Path(sys.argv[1])), []
for question in (ledger.epsilon_spent, ledger.jobs_left) * 2:
    started = time.perf_counter()
    question("ward")
    found.append(time.perf_counter() - started)
print(*found)
"""
QUESTIONS = {
    "left": "ledger.epsilon_spent('ward 0')",
    "more": "ledger.jobs_left('ward 0')",
    "reserve": "ledger.reserve('ward 0', 'new', [Charge(21.5, 0.02, 7, 'training')])",
}
ASK_ONCE = """
import sys, time
from pathlib import Path
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge
started = time.perf_counter()
ledger = Ledger(Path(sys.argv[1]))
exec(sys.argv[2])
print(time.perf_counter() - started)
"""


def capacity() -> dict[str, float]:
    """Jobs of epsilon 1 in a budget of 8, counted in three ways; each job really costs at most 1 by
    its own accountant.
    """
    noise, _ = calibrate(1.0, DELTA, RATE, STEPS, 1, 1e-3)
    one = [Charge(noise, RATE, STEPS, "training")]
    alone = epsilon(one, DELTA)
    assert alone <= 1.0
    history: list[Charge] = []
    admitted = 0
    while fits(history, one, LIMIT, DELTA, ORDER):
        history += one
        admitted += 1
    assert admitted == how_many_fit([], one, LIMIT, DELTA, ORDER)
    declared = admitted
    while pld_epsilon(one * (declared + 1), DELTA) <= LIMIT:
        declared += 1
    return {
        "jobs.epsilon_each": alone,
        "jobs.adding": int(LIMIT / alone),
        "jobs.filter": admitted,
        "jobs.pld": declared,
    }


def speed(jobs: int) -> dict[str, float]:
    """Seconds for the two questions with `jobs` jobs of mixed terms in the ledger."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = Ledger(path)
        ledger.open_dataset("ward", 1000.0, DELTA)
        ledger.set_members("ward", Members([b"a patient's key."], np.ones(1, dtype=bool)))
        started = time.perf_counter()
        for i in range(jobs):
            rate = (1.0, 0.5, 0.1, 0.02)[i % 4]
            terms = (
                Charge(8.0 + i % 25, rate, 1 + i % 40, "training"),
                Charge(60.0 + i % 7, 1.0, 1 + i % 40, "metrics"),
            )
            ledger.reserve("ward", f"job {i}", terms)
            if ledger.begin_round(f"job {i}", 1, b"model", terms) is None:
                ledger.finish_round(f"job {i}", 1, b"reply")
            ledger.close_job(f"job {i}")
        filled = time.perf_counter() - started
        said = subprocess.run(
            [sys.executable, "-c", ASK, path], check=True, capture_output=True, text=True
        )
    cold_left, cold_more, warm_left, warm_more = (float(word) for word in said.stdout.split())
    return {
        "seconds.admit_and_run_each": filled / jobs,
        "seconds.left.cold": cold_left,
        "seconds.more.cold": cold_more,
        "seconds.left.warm": warm_left,
        "seconds.more.warm": warm_more,
        "ledger.jobs": jobs,
    }


def jobs_run(ledger: Ledger, jobs: int, ward: int) -> None:
    """Mixed jobs on the newest version, written as rounds write them; whether they fit is not
    asked, which is what is measured afterwards.
    """
    with ledger.file.change() as db:
        cohort = cohorts.newest(db, f"ward {ward}")
        for i in range(jobs):
            mechanism = (20.0 + i + ward / 8, (1.0, 0.5, 0.1, 0.02)[i % 4], 1 + i)
            keep_curves(db, [Charge(*mechanism, "training")])
            db.execute(
                "INSERT INTO spent (cohort, job_id, round, noise_multiplier, sampling_rate, steps, "
                "what, at) VALUES (?, ?, 1, ?, ?, ?, 'training', 0)",
                (cohort, f"{cohort} {i}", *mechanism),
            )


def patients(people: int, versions: int, jobs: int) -> dict[str, float]:
    """Seconds with `people` patients in `versions` versions of five datasets, and `jobs` jobs."""
    keys = [i.to_bytes(16, "little") for i in range(people)]
    random = np.random.default_rng(1)
    # five wards of 60 % of everybody each, which overlap; in each version 2 % leave for good, and
    # 2 % of the others join
    gone = [np.zeros(people, dtype=bool) for _ in range(5)]
    there = [np.roll(np.arange(people) < people * 0.6, i * people // 5) for i in range(5)]
    entered = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = Ledger(path)
        for i in range(5):
            ledger.open_dataset(f"ward {i}", 1000.0, DELTA)
        for version in range(versions):
            ward = version % 5
            leave, join = random.random(people) < 0.02, random.random(people) < 0.02
            there[ward], gone[ward] = (
                there[ward] & ~leave | join & ~gone[ward],
                gone[ward] | leave & there[ward],
            )
            started = time.perf_counter()
            ledger.set_members(f"ward {ward}", Members(keys, there[ward].copy()))
            entered.append(time.perf_counter() - started)
            jobs_run(ledger, jobs // versions, version % 5)
        with contextlib.closing(sqlite3.connect(path)) as db:
            (classes,) = db.execute("SELECT count(DISTINCT class) FROM patient").fetchone()
        asked = {}
        for name, question in QUESTIONS.items():
            ledger.reserve("ward 0", f"like the last {name}", [Charge(25.0, 1.0, 3, "training")])
            said = subprocess.run(
                [sys.executable, "-c", ASK_ONCE, path, question],
                check=True,
                capture_output=True,
                text=True,
            )
            asked[f"patients.seconds.{name}"] = float(said.stdout)
    return asked | {
        "patients.seconds.enter_a_version": max(entered),
        "patients.people": people,
        "patients.versions": versions,
        "patients.jobs": versions * (jobs // versions),
        "patients.classes": classes,
    }


def main() -> None:
    """Print the figures and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100 jobs, 20,000 patients")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    figures = capacity() | speed(100 if given.quick else 1000)
    figures |= patients(20_000, 20, 100) if given.quick else patients(10**6, 50, 1000)
    figures["jobs.filter_over_adding"] = figures["jobs.filter"] / figures["jobs.adding"]
    table = Table("measure", "value", box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    if given.json:
        given.json.write_text(
            json.dumps({k: round(v, 5) for k, v in figures.items()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
