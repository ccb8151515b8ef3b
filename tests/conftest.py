"""Shared by all tests: one job's terms and spec that are right in every field, to be broken one at
a time.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from eth_account import Account

from datatokens.terms import DatasetTerm, JobTerms
from fl_client.privacy.plan import PrivacyPlan
from fl_client.protocol import JobSpec

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# the terminal that the tests were started from: tests that look at tables say how wide theirs is
os.environ.pop("COLUMNS", None)

pytest_plugins = ["tests.clinic", "tests.datahub.fixtures"]

E2E = "tests/e2e/"
NODE_KEYS = [bytes([i + 1]) * 32 for i in range(4)]
MARKET = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"
BUYER = "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"


def plan(rounds: int = 3) -> PrivacyPlan:
    return PrivacyPlan(4.0, 1.0, 1.0, rounds, 1e-5, 16.0, 1.0, rounds)


def spec(**changes: Any) -> JobSpec:
    """A valid spec over datasets 1..4."""
    fields: dict[str, Any] = {
        "purpose": "research",
        "buyer_public_key": "11" * 32,
        "schema_hash": "22" * 32,
        "graph_hash": "33" * 32,
        "weights_hash": "44" * 32,
        "loss": "binary_cross_entropy",
        "outputs": 1,
        "rounds": 3,
        "local_steps": 1,
        "learning_rate": 1.0,
        "average_last": 1,
        "server_momentum": 0.0,
        "server_rates": {},
        "plan": plan(),
        "persons": {1: 40, 2: 30, 3: 20, 4: 10},
        "salt": "55" * 32,
    }
    return JobSpec(**(fields | changes))


def terms(job_spec: JobSpec | None = None, **changes: Any) -> JobTerms:
    """Valid terms over four datasets whose nodes have NODE_KEYS."""
    lines = tuple(
        DatasetTerm(i + 1, str(Account.from_key(key).address), 1_000_000 * (i + 1))
        for i, key in enumerate(NODE_KEYS)
    )
    fields: dict[str, Any] = {
        "chain_id": 31337,
        "market": MARKET,
        "buyer": BUYER,
        "datasets": lines,
        "reward_units": 1000,
        "fee_units": 10,
        "deadline": 2_000_000_000,
        "quorum": 3,
        "spec": (job_spec or spec()).as_dict(),
    }
    return JobTerms(**(fields | changes))


@pytest.fixture
def job_terms() -> JobTerms:
    return terms()


@pytest.fixture
def job_spec() -> JobSpec:
    return spec()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests come first, as the longest piece that cannot be divided."""
    items.sort(key=lambda item: not item.nodeid.startswith(E2E))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file, and all that share the running demo, stay on one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return E2E if nodeid.startswith(E2E) else nodeid.partition("::")[0]

    return ByFile(config, log)
