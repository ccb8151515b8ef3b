"""What every dataset's privacy has cost so far, as its own node attested on the chain, beside what
was promised.

Anyone can run this against any chain connection. Each attestation carries a dataset's epsilon and
delta over its whole life (not the job's own: sums of those would be far too high, since nodes
compose them tightly), so the newest figure is the ledger and no figure may be above the budget that
the owner has stated. Knows nothing of how nodes count.
"""

from __future__ import annotations

from dataclasses import dataclass

from datatokens.bindings.registry import Registry
from datatokens.chain.connection import Chain
from datatokens.errors import BankError
from datatokens.layouts import dataset_ids
from datatokens.terms import Outcome


@dataclass(frozen=True)
class LedgerLine:
    """One dataset. Epsilons in 1e-6, deltas in 1e-18, `budget_` both 0 where the owner has stated
    none; `jobs` attested.

    `epsilon_micro` and `delta_atto` are the highest that were ever attested, by `job_id` (None: no
    job yet).
    """

    dataset_id: int
    jobs: int
    epsilon_micro: int
    delta_atto: int
    budget_epsilon_micro: int
    budget_delta_atto: int
    job_id: bytes | None

    @property
    def overspent(self) -> bool:
        """Whether more was attested than was ever allowed; never where no budget is stated."""
        stated = self.budget_epsilon_micro or self.budget_delta_atto
        over = (
            self.epsilon_micro > self.budget_epsilon_micro
            or self.delta_atto > self.budget_delta_atto
        )
        return bool(stated and over)


def read(chain: Chain, registry: str, market: str) -> list[LedgerLine]:
    """Every listed dataset, by id, from the chain's events alone. Raises BankError if the chain has
    lost some.
    """
    contract, datasets = chain.contract("Market", market), Registry(chain, registry)
    lines: dict[bytes, list[int]] = {}
    for event in chain.logs(contract.events.JobTerms()):
        lines[event["args"]["jobId"]] = dataset_ids(event["args"]["terms"]["lines"])
    spent: dict[int, list[tuple[int, int, bytes]]] = {i: [] for i in range(1, datasets.count() + 1)}
    for event in chain.logs(contract.events.JobAttested()):
        job_id, words = event["args"]["jobId"], event["args"]["outcomes"]
        if job_id not in lines:
            raise BankError(f"the chain at {chain.url} has lost the terms of job 0x{job_id.hex()}")
        for index, word in enumerate(words):
            outcome = Outcome.from_word(word)
            if outcome.epsilon_micro:
                dataset_id = lines[job_id][index]
                spent.setdefault(dataset_id, []).append(
                    (outcome.epsilon_micro, outcome.delta_pico * 10**6, job_id)
                )
    found = []
    for dataset_id, charges in sorted(spent.items()):
        standing = datasets.standing(dataset_id)
        epsilon_micro, _, job_id = max(charges, default=(0, 0, None))
        delta_atto = max((delta for _, delta, _ in charges), default=0)
        budget = standing.epsilon_micro, standing.delta_atto
        found.append(
            LedgerLine(dataset_id, len(charges), epsilon_micro, delta_atto, *budget, job_id)
        )
    return found
