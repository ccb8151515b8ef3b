"""A job from the buyer's side: pay, hand over, wait, open the result, or take the money back.

It is on the buyer's disk before its money moves (job_store.py), so that a buyer who dies at any
moment goes on with `resume`; after settlement, the model must be the one that the hospitals
attested. Knows nothing of quotes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datahub.buyer import job_store
from datahub.buyer.results import Result
from datahub.errors import HubError, NotFound, NotSettled, OrderRefused, Refunded
from datatokens.bindings.escrow import Status
from datatokens.errors import TermsError, TransactionRefused
from datatokens.terms import JobTerms
from datatokens.wire import parse
from fl_client.data.schemas import OUTPUT
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.results import unseal

if TYPE_CHECKING:
    from datahub.buyer.sdk import Market

POLL_S = 0.25
SEEN_S = 180.0
BEHIND_S = 30.0  # how long a hub may be behind the chain once a job is settled
LEAST_TIME_S = 300  # a job that would be paid with less time left to its deadline is not


@dataclass(frozen=True)
class Job:
    """A job of a wallet, by its id (64 hexadecimal digits): quoted, paid or ended."""

    market: Market
    id: str

    @property
    def terms(self) -> JobTerms:
        """The terms: from the own disk, else from the hub, whose word is checked against the id.
        Raises OrderRefused for others, HubError where they are nowhere.
        """
        if kept := job_store.kept(self.id):
            return kept.terms
        try:
            raw = self.market.hub.call("GET", f"/api/v1/jobs/{self.id}/terms").content
        except HubError as error:
            raise HubError(
                f"the terms of job {self.id[:12]} are not on this disk, and not to be had from the "
                f"hub ({error}); if it stays so, the money comes back after the deadline"
            ) from error
        try:
            terms = JobTerms.from_json(raw)
        except TermsError as error:
            raise OrderRefused(f"the hub's terms of job {self.id[:12]} are damaged") from error
        if terms.job_id.hex() != self.id:
            raise OrderRefused(f"the hub's terms of job {self.id[:12]} are another job's")
        return terms

    def _schema(self) -> bytes:
        """The schema's canonical JSON, as the terms have its hash: from the own disk, else from
        the hub. Nothing where neither has it; raises OrderRefused for another one.
        """
        wanted = JobSpec.from_dict(self.terms.spec).schema_hash
        if (kept := job_store.kept(self.id)) and sha256_hex(kept.schema) == wanted:
            return kept.schema
        try:
            found = self.market.hub.call("GET", f"/api/v1/schemas/{wanted}").content
        except NotFound:
            return (
                b""  # since its datasets have another one by now: the model is there all the same
            )
        if sha256_hex(found) != wanted:
            raise OrderRefused(
                f"the hub's schema of job {self.id[:12]} is not the one in its terms"
            )
        return found

    @property
    def question(self) -> str:
        """What it asks, as kept on the own disk; nothing for a job that trains."""
        kept = job_store.kept(self.id)
        return kept.question if kept else ""

    @property
    def deadline(self) -> int:
        """Unix seconds: as the chain has it, or that of terms which were never paid."""
        paid = self.market.escrow.created_by(self.market.address).get(bytes.fromhex(self.id))
        return self.terms.deadline if paid is None else paid

    @property
    def on_chain(self) -> Status:
        """What the escrow says of it."""
        return self.market.escrow.job(bytes.fromhex(self.id)).status

    def standing(self, deadline: int) -> dict[str, Any]:
        """One line of a list of jobs."""
        status = self.on_chain
        over = self.market.chain.now() > deadline
        following = {
            Status.NONE: "not paid: nothing was taken",
            Status.FUNDED: f"datahub job {'refund' if over else 'resume'} {self.id[:12]}",
            Status.SETTLED: f"datahub job result {self.id[:12]}",
            Status.REFUNDED: "every unit came back",
        }
        return {
            "job_id": self.id,
            "state": str(status),
            "deadline": deadline,
            "next": following.get(status, f"datahub job resume {self.id[:12]}"),
        }

    def pay(self) -> None:
        """Escrow the price, if it is not there yet, after any other payment from this wallet.
        Raises OrderRefused with too little time left, and what `Escrow.create_job` raises.
        """
        if self.on_chain is not Status.NONE:
            return
        with job_store.sole_payer(self.market.address):
            if self.on_chain is not Status.NONE:
                return  # by another process, while this one waited
            terms = self.terms
            if (left := terms.deadline - self.market.chain.now()) < LEAST_TIME_S:
                raise OrderRefused(
                    f"job {self.id[:12]} was not paid, and its deadline is in {left} s: order it "
                    "again"
                )
            try:
                self.market.escrow.create_job(terms)
            except TransactionRefused as error:
                if error.name == "ERC20InsufficientAllowance":
                    raise OrderRefused(
                        f"job {self.id[:12]} was not paid and nothing was taken: another machine "
                        f"is paying from {self.market.address} too and has changed its approval; "
                        f"when that is done: datahub job resume {self.id[:12]}"
                    ) from error
                # sent before, by a process that was killed while the block was waited for
                if error.name != "JobExists" or self._changed(Status.NONE) is Status.NONE:
                    raise

    def _changed(self, before: Status) -> Status:
        """What the escrow says once it is no longer `before`, or after SEEN_S: what a killed
        process has sent may not be deep enough in the chain yet.
        """
        end = time.monotonic() + SEEN_S
        while (status := self.on_chain) is before and time.monotonic() < end:
            time.sleep(POLL_S)
        return status

    def hand_over(self) -> None:
        """Tell the hub of the paid job; with the model's files where it no longer has them. Any
        number of times. Raises HubError.
        """
        body = {"terms": self.terms.to_json().decode()}
        try:
            self.market.hub.call("POST", "/api/v1/jobs", body)
        except HubError:
            if (kept := job_store.kept(self.id)) is None:
                raise
            from base64 import b64encode

            files = dict(zip(("graph", "weights"), kept.model_files, strict=True))
            more = {name: b64encode(content).decode() for name, content in files.items()}
            self.market.hub.call("POST", "/api/v1/jobs", body | more)

    def status(self) -> dict[str, Any]:
        """The hub's view: state, reason, rounds so far."""
        answer: dict[str, Any] = self.market.hub.get(f"/api/v1/jobs/{self.id}")
        return answer

    def watch(self, timeout_s: float = 3600) -> Iterator[dict[str, Any]]:
        """The status again and again until it is final. Raises NotSettled after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = self.status()
            yield status
            if status["state"] in ("settled", "refunded"):
                return
            time.sleep(POLL_S)
        raise NotSettled(
            f"job {self.id[:12]} is not finished after {timeout_s:.0f} s; ask again later: "
            f"datahub job resume {self.id[:12]}"
        )

    def wait(
        self, on_status: Callable[[dict[str, Any]], None] | None = None, timeout_s: float = 3600
    ) -> Result:
        """Wait for settlement and open the result. Raises Refunded where the money came back
        instead, HubError where only the hub says so, NotSettled after `timeout_s`.
        """
        status: dict[str, Any] = {}
        for status in self.watch(timeout_s):
            if on_status:
                on_status(status)
        if status["state"] == "refunded":
            raise self.money_back(status["reason"])
        return self.result()

    def money_back(self, reason: str) -> HubError:
        """What to raise where the hub says that the job was refunded: Refunded if the chain says so
        too, for which a connection that is behind is waited for; else HubError.
        """
        status = self.on_chain
        if status is not Status.REFUNDED:
            status = self._changed(status)
        because = f"{': ' * bool(reason)}{reason}"
        if status is Status.REFUNDED:
            return Refunded(
                f"job {self.id[:12]} was refunded{because}; every unit is back in "
                f"{self.market.address}"
            )
        return HubError(
            f"the hub says that job {self.id[:12]} was refunded{because}; the chain says that it "
            f"is {status}"
        )

    def refund(self) -> None:
        """After the deadline: every unit back, on the terms kept here or, without them, on those of
        the payment itself. Raises OrderRefused before the deadline or with nothing to take back.
        """
        status, raw = self.on_chain, bytes.fromhex(self.id)
        if status is not Status.FUNDED:
            raise OrderRefused(f"job {self.id[:12]} is {status}: there is nothing to take back")
        if (left := self.deadline - self.market.chain.now()) >= 0:
            raise OrderRefused(
                f"job {self.id[:12]} has {left} s left until its deadline; only after it the money "
                f"comes back without the hospitals (datahub job resume {self.id[:12]} waits for "
                "them)"
            )
        try:
            if kept := job_store.kept(self.id):
                self.market.escrow.refund(kept.terms)
            else:
                self.market.escrow.refund_recorded(raw)
        except TransactionRefused as error:
            # by the hub at the same moment, or sent before by a process that was killed
            if error.name != "WrongStatus" or self._changed(status) is not Status.REFUNDED:
                raise

    def answer(self, question: str = "") -> dict[str, Any]:
        """What a settled job says to its question (questions.answer): the one that was kept, or
        the one given here. Raises OrderRefused where the job has not asked it.
        """
        from datahub.buyer import questions
        from datahub.buyer.quoting import model_files

        text = question or self.question
        if not text:
            raise OrderRefused(
                f"job {self.id[:12]}: its question is not kept here; give it as it was asked"
            )
        result, spec = self.result(), JobSpec.from_dict(self.terms.spec)
        asked = questions.parse(text, result.schema)
        # the question that was kept with the job is believed: another version of torch may write
        # the same graph in other words
        if text != self.question:
            graph, _ = model_files(questions.model(asked), None, result.schema, OUTPUT)
            if sha256_hex(graph) != spec.graph_hash:
                raise OrderRefused(f"job {self.id[:12]} asked something else than {text[:200]!r}")
        worked = [line for line in parse(result.report)["hospitals"] if line["worked"]]
        # by the terms: no hospital signs for what else the hub writes in a report
        persons = sum(spec.persons[line["dataset_id"]] for line in worked)
        # one step of 1.0 from zero: minus the sum over the released count, averaged by these counts
        sums = -float(persons) * result.arrays["weight"].astype("float64").ravel()
        sd = spec.plan.noise_multiplier * spec.plan.clip_norm * math.sqrt(len(worked))
        return questions.answer(asked, sums, sd) | {"hospitals": len(worked)}

    def dispute(self) -> None:
        """Ask the arbiter in the terms to look at the attested result, for the bond. Raises
        OrderRefused before there is a result, TransactionRefused after the window.
        """
        attested = self.market.escrow.attested(bytes.fromhex(self.id))
        if attested is None:
            raise OrderRefused(
                f"job {self.id[:12]} has no attested result yet, so there is nothing to dispute"
            )
        with job_store.sole_payer(self.market.address):
            self.market.escrow.dispute(self.terms, attested)

    def result(self) -> Result:
        """The model with its report, terms and schema, checked against what the hospitals attested
        on-chain. Raises NotSettled before that, Refunded where the money came back instead.
        """
        settlement = self.market.escrow.settlement(bytes.fromhex(self.id))
        if settlement is None:
            raise self._without_result()
        got = unseal(
            self._sealed(), self.market.result_key, self.id, settlement.attestation.model_hash
        )
        if sha256_hex(got.report) != settlement.attestation.report_hash.hex():
            raise OrderRefused(
                "the report in the result is not the one that the hospitals attested on-chain"
            )
        terms, hub = self.terms.to_json(), self.market.hub.url
        return Result(got.arrays, got.graph, got.report, terms, self._schema(), hub)

    def _sealed(self) -> bytes:
        """What the hub keeps of a settled job, for which it has BEHIND_S to see what the chain says
        already.
        """
        path, end = f"/api/v1/jobs/{self.id}/result", time.monotonic() + BEHIND_S
        while True:
            try:
                return self.market.hub.call("GET", path).content
            except NotFound:
                raise
            except HubError:
                if self.status()["state"] == "settled" or time.monotonic() > end:
                    raise
            time.sleep(POLL_S)

    def _without_result(self) -> OrderRefused:
        name, status = self.id[:12], self.on_chain
        if status is Status.REFUNDED:
            return Refunded(
                f"job {name} was refunded, so there is no result: order it again with: "
                f"datahub job repeat {name}"
            )
        if status is Status.NONE:
            return OrderRefused(
                f"job {name} was never paid, so there is no result; pay it with: "
                f"datahub job resume {name}"
            )
        return NotSettled(
            f"job {name} is {status}, not settled: no result yet; look at it with: "
            f"datahub job watch {name}"
        )
