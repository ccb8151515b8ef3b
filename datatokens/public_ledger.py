"""What every dataset's privacy has cost so far, as its own node attested on the chain, beside what
was promised, and whether the two can both be true.

Anyone can run this against any chain connection. Each attestation carries a dataset's epsilon and
delta over its whole life (not the job's own: sums of those would be far too high, since nodes
compose them tightly), so the newest figure is the ledger and no figure may be above the budget that
the owner has stated. A lifetime only grows: a job that was accepted after another had been attested
must say more than that one did, no two jobs may say the same, and delta may not rise. A node that
was put back from a backup does not fit. Knows nothing of how nodes count.
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
    job yet). `accepted` counts jobs that the dataset's node has accepted; `misfit` says what cannot
    be true of its figures, "" if all can.
    """

    dataset_id: int
    jobs: int
    epsilon_micro: int
    delta_atto: int
    budget_epsilon_micro: int
    budget_delta_atto: int
    job_id: bytes | None
    accepted: int = 0
    misfit: str = ""

    @property
    def overspent(self) -> bool:
        """Whether more was attested than was ever allowed; never where no budget is stated."""
        stated = self.budget_epsilon_micro or self.budget_delta_atto
        over = (
            self.epsilon_micro > self.budget_epsilon_micro
            or self.delta_atto > self.budget_delta_atto
        )
        return bool(stated and over)


@dataclass(frozen=True)
class Attested:
    """One job's figures for one dataset. `at` is when the job was attested and `accepted_at` when
    the dataset's node first accepted it: (block, index of the event). `signed` is whether that node
    was among those who signed the report.
    """

    job_id: bytes
    epsilon_micro: int
    delta_atto: int
    accepted_at: tuple[int, int]
    at: tuple[int, int]
    report_hash: bytes = b""
    signed: bool = False


@dataclass(frozen=True)
class History:
    """What the chain has seen of one dataset, oldest first: accepted jobs and attested figures."""

    accepted: tuple[bytes, ...]
    attested: tuple[Attested, ...]

    @property
    def epsilon_micro(self) -> int:
        """The highest lifetime epsilon that was attested, in 1e-6."""
        return max((one.epsilon_micro for one in self.attested), default=0)


class Watch:
    """The histories of all datasets of one market, from the chain's events alone; each look takes
    in what is new. Who starts `from_block` sees only the jobs whose terms were said since then.
    """

    def __init__(self, chain: Chain, market: str, from_block: int = 0):
        self.chain = chain
        self.first = self.next = from_block
        self._events = chain.contract("Market", market).events
        self._datasets: dict[bytes, list[int]] = {}
        self._accepted: dict[int, dict[bytes, tuple[int, int]]] = {}
        self._attested: dict[int, list[Attested]] = {}

    def look(self) -> dict[int, History]:
        """The history of every dataset that ever had a job accepted, by id. Raises BankError if the
        chain has lost some.
        """
        last = self.chain.block_number()
        for event in self.chain.logs(self._events.JobTerms(), self.next, last):
            said = event["args"]
            self._datasets[said["jobId"]] = list(dataset_ids(said["terms"]["lines"]))
        for event in self.chain.logs(self._events.JobAccepted(), self.next, last):
            job_id, bits = event["args"]["jobId"], event["args"]["accepted"]
            at = event["blockNumber"], event["logIndex"]
            for index, dataset_id in enumerate(self._of(job_id)):
                if bits >> index & 1:
                    self._accepted.setdefault(dataset_id, {}).setdefault(job_id, at)
        for event in self.chain.logs(self._events.JobAttested(), self.next, last):
            job_id, words = event["args"]["jobId"], event["args"]["outcomes"]
            at = event["blockNumber"], event["logIndex"]
            report, signers = event["args"]["reportHash"], event["args"]["signers"]
            for index, (dataset_id, word) in enumerate(zip(self._of(job_id), words, strict=False)):
                outcome = Outcome.from_word(word)
                if outcome.epsilon_micro:
                    since = self._accepted.get(dataset_id, {}).get(job_id, at)
                    figures = outcome.epsilon_micro, outcome.delta_pico * 10**6
                    signed = bool(signers >> index & 1)
                    found = Attested(job_id, *figures, since, at, report, signed)
                    self._attested.setdefault(dataset_id, []).append(found)
        self.next = max(self.next, last + 1)
        return {
            dataset_id: History(
                tuple(self._accepted.get(dataset_id, {})),
                tuple(self._attested.get(dataset_id, [])),
            )
            for dataset_id in sorted({*self._accepted, *self._attested})
        }

    def _of(self, job_id: bytes) -> list[int]:
        """The job's datasets in their order; none for one from before the first block."""
        if job_id not in self._datasets and not self.first:
            raise BankError(
                f"the chain at {self.chain.url} has lost the terms of job 0x{job_id.hex()}"
            )
        return self._datasets.get(job_id, [])


def misfit(history: History) -> str:
    """What cannot be true of the attested figures of one dataset, as a sentence; "" if all can."""
    said: dict[int, bytes] = {}
    for one in history.attested:
        before = [other for other in history.attested if other.at < one.accepted_at]
        for other in before:
            if one.epsilon_micro <= other.epsilon_micro:
                return (
                    f"job {one.job_id.hex()[:12]} was accepted after {other.job_id.hex()[:12]} had "
                    f"been attested with a lifetime epsilon of {other.epsilon_micro / 10**6:.6f}, "
                    f"and says {one.epsilon_micro / 10**6:.6f}: that does not pay for it"
                )
            if one.delta_atto > other.delta_atto:
                return (
                    f"job {one.job_id.hex()[:12]} counts at a delta of "
                    f"{one.delta_atto / 10**18:.3g}, job {other.job_id.hex()[:12]} before it at "
                    f"{other.delta_atto / 10**18:.3g}: delta may only fall"
                )
        if one.epsilon_micro in said:
            return (
                f"jobs {said[one.epsilon_micro].hex()[:12]} and {one.job_id.hex()[:12]} both say a "
                f"lifetime epsilon of {one.epsilon_micro / 10**6:.6f}: one of them is not counted"
            )
        said[one.epsilon_micro] = one.job_id
    return ""


def read(chain: Chain, registry: str, market: str) -> list[LedgerLine]:
    """Every listed dataset, by id, from the chain's events alone. Raises BankError if the chain has
    lost some.
    """
    datasets, seen = Registry(chain, registry), Watch(chain, market).look()
    found = []
    for dataset_id in sorted({*range(1, datasets.count() + 1), *seen}):
        history = seen.get(dataset_id, History((), ()))
        charges = [(one.epsilon_micro, one.delta_atto, one.job_id) for one in history.attested]
        standing = datasets.standing(dataset_id)
        epsilon_micro, _, job_id = max(charges, default=(0, 0, None))
        found.append(
            LedgerLine(
                dataset_id,
                len(charges),
                epsilon_micro,
                max((delta for _, delta, _ in charges), default=0),
                standing.epsilon_micro,
                standing.delta_atto,
                job_id,
                len(history.accepted),
                misfit(history),
            )
        )
    return found
