"""Three lines for a buyer: order, wait, use the model. The buyer's own key, chain connection and
checks.

The hub's quote is only a proposal: it is worked out again from the chain before anything is paid
(quoting.py), and what is paid into is the market that the buyer has pinned (networks.py). A job is
on the buyer's disk and known to the hub before its money moves (job_store.py), so that a buyer who
dies at any moment goes on with `resume`; after settlement, the model must be the one that the
hospitals attested.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from datahub.buyer import job_store, networks
from datahub.buyer.hub_client import Hub
from datahub.errors import HubError, OrderRefused
from datatokens import deploy
from datatokens.bindings.escrow import Escrow, Status
from datatokens.bindings.registry import Registry
from datatokens.chain.connection import connect
from datatokens.errors import TermsError, TransactionRefused
from datatokens.terms import DisputeTerms, JobTerms
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.results import Result, unseal

if TYPE_CHECKING:
    from torch import Tensor, nn

POLL_S = 0.25
SEEN_S = 180.0
LEAST_TIME_S = 300  # a job that would be paid with less time left to its deadline is not


@dataclass(frozen=True)
class Quote:
    """Checked terms and what they cost: base units of the payment token, epsilon per hospital.

    `interval95` is how wide the 95 % intervals of the report's accuracy and AUC must be expected to
    be, from 0 to 1, for outcomes in one of five or balanced; nearly 1 is more noise than signal.
    """

    terms: JobTerms
    spec: JobSpec
    amount_units: int
    epsilon: float
    interval95: Mapping[str, float]
    graph: bytes
    weights: bytes


class Buyer:
    """A wallet that buys training jobs. `key` is its private key; it never leaves this process."""

    def __init__(self, hub: str, *, chain: str, key: str, network: networks.Network | None = None):
        """Connect to the hub's pinned network (`datahub network add`), or to the one given, and
        check its contracts on `chain`: their code and what they were constructed with.

        Raises OrderRefused for a hub that is not pinned, BankError for contracts that are others.
        """
        self.network = network or networks.by_hub(hub)
        self.hub = Hub(hub)
        self.chain = connect(chain, key=key)
        deploy.check(self.chain, self.network.deployment)
        self.escrow = Escrow(self.chain, self.network.deployment.market)
        self.registry = Registry(self.chain, self.network.deployment.registry)
        # one key for all results, made from the wallet's: nothing to lose but the wallet
        raw = bytes.fromhex(key.removeprefix("0x"))
        self._result_key = HKDF(SHA256(), 32, salt=None, info=b"datahub result key 1").derive(raw)

    @property
    def address(self) -> str:
        """The wallet's address."""
        return str(self.chain.address)

    @property
    def result_public_key(self) -> str:
        """X25519 key that results are sealed to, hexadecimal."""
        public = X25519PrivateKey.from_private_bytes(self._result_key).public_key()
        return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def quote(
        self,
        datasets: Sequence[int],
        *,
        epsilon: float,
        purpose: str,
        delta: float | None = None,
        model: str | nn.Module = "logistic_regression",
        example: Tensor | None = None,
        loss: str = "binary_cross_entropy",
        rounds: int | None = None,
        local_steps: int | None = None,
        learning_rate: float | None = None,
        clip_norm: float | None = None,
        server_momentum: float | None = None,
        server_rates: Mapping[str, float] | None = None,
        reward_units: int = 0,
        vouchers: Sequence[int] = (),
        compute_minutes: int = 10,
        dispute: DisputeTerms | None = None,
        deadline_s: int = 3600,
        quorum: int | None = None,
        max_fee_units: int | None = None,
    ) -> Quote:
        """Ask for terms and check them: nothing is paid yet. `model` is a built-in name or any
        torch module.

        epsilon and delta are per hospital, for adding or removing one patient; delta defaults to
        min(1e-5, 1 / (10 persons)). Where a hospital meters its compute, `compute_minutes` of it
        are escrowed and what is not used comes back. `rounds`, `local_steps`, `learning_rate`,
        `clip_norm`, `server_momentum` and `server_rates` follow from counts, inputs and epsilon
        where they are not given (fl_client/privacy/defaults.py). The hub's fee is at most what the
        network was pinned with, and at most `max_fee_units`. With `dispute`, payment waits for a
        window in which an arbiter may be asked. Raises HubError (the hub refused), OrderRefused
        (the order cannot be, or the quote is not it) or GraphRefused (the model cannot travel).
        """
        # torch is loaded here, where a model is touched, and by nothing else that a buyer does
        from datahub.buyer import quoting
        from datahub.order import Order, Venue
        from fl_client.privacy.evaluation import expected_intervals

        if max_fee_units is not None and type(max_fee_units) is not int:
            raise OrderRefused(f"max_fee_units={max_fee_units!r:.60} must be a whole number")
        market = self.network.deployment.market
        ids = quoting.dataset_ids("datasets", datasets)
        if not ids:
            raise OrderRefused("datasets: name at least one dataset id")
        rows = {row["dataset_id"]: row for row in self.hub.get("/api/datasets")}
        facts = [quoting.listed(self.registry, rows, d, self.address, market) for d in ids]
        persons = [one.manifest.persons for one in facts]
        shape = facts[0].manifest.schema.shape
        graph, weights = quoting.model_files(model, example, shape, loss, server_rates)
        order = Order(
            buyer=self.address,
            buyer_public_key=self.result_public_key,
            datasets=ids,
            vouchers=quoting.dataset_ids("vouchers", vouchers),
            compute_minutes=compute_minutes,
            dispute=dispute,
            graph=graph,
            weights=weights,
            loss=loss,
            epsilon=_number("epsilon", epsilon),
            delta=min(1e-5, *(1 / (10 * n) for n in persons))
            if delta is None
            else _number("delta", delta),
            model=model if isinstance(model, str) else None,
            rounds=rounds,
            local_steps=local_steps,
            learning_rate=_number_or_none("learning_rate", learning_rate),
            clip_norm=_number_or_none("clip_norm", clip_norm),
            server_momentum=_number_or_none("server_momentum", server_momentum),
            server_rates=server_rates,
            reward_units=reward_units,
            purpose=purpose,
            deadline_s=deadline_s,
            quorum=quorum,
        )
        venue = Venue(self.chain.chain_id, market, self.network.fee_bps)
        answer = self.hub.call("POST", "/api/quotes", order.body()).json()
        terms, cost = quoting.checked(answer, order, facts, venue, self.chain.now())
        if max_fee_units is not None and terms.fee_units > max_fee_units:
            raise OrderRefused(
                f"the hub's fee of {terms.fee_units} base units is above the {max_fee_units} that "
                "you allow; nothing was paid"
            )
        spec = JobSpec.from_dict(terms.spec)
        expected = expected_intervals(persons, spec.plan.score_noise_multiplier).values()
        wide = {name: max(one[name.lower()] for one in expected) for name in ("accuracy", "AUC")}
        return Quote(terms, spec, terms.amount_units, cost, wide, graph, weights)

    def keep(self, quote: Quote) -> Job:
        """Write the job down, which is done before anything is sent: from here on it has an id to
        go on with.
        """
        job_store.keep(quote.terms, quote.graph, quote.weights)
        return Job(self, quote.terms.job_id.hex())

    def pay(self, quote: Quote) -> Job:
        """Keep the job, escrow exactly its price, and hand the terms to the hub. Raises
        TransactionRefused, e.g. for too small a balance; HubError where the job is paid and the hub
        does not answer: it takes up by itself what it has quoted, and `resume` tells it again.
        """
        job = self.keep(quote)
        job.pay()
        job.hand_over()
        return job

    def order(
        self, datasets: Sequence[int], *, epsilon: float, purpose: str, **settings: Any
    ) -> Job:
        """Quote, check and pay in one step; see `quote` for the settings."""
        return self.pay(self.quote(datasets, epsilon=epsilon, purpose=purpose, **settings))

    def job(self, job_id: str) -> Job:
        """A job of this wallet by its id or the beginning of it: one that is kept here, or one that
        the chain says this wallet has paid. Raises NotFound.
        """
        mine = [one.hex() for one in self.escrow.created_by(self.address)]
        kept = [one.id for one in job_store.kept_jobs()]
        return Job(self, job_store.whole_id(job_id, [*kept, *mine]))

    def jobs(self) -> list[dict[str, Any]]:
        """Every job that is kept here for this market or that this wallet has paid: id, state on
        the chain (`none` if never paid), deadline (unix seconds), what to do next.
        """
        paid = {one.hex(): until for one, until in self.escrow.created_by(self.address).items()}
        market = self.network.deployment.market
        mine = {
            one.id: one.terms.deadline
            for one in job_store.kept_jobs()
            if (one.terms.market, one.terms.buyer) == (market, self.address)
        }
        return [Job(self, one).standing(until) for one, until in (mine | paid).items()]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OrderRefused(f"{name}={str(value)[:60]} must be a finite number")
    return float(value)


def _number_or_none(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value)


@dataclass(frozen=True)
class Job:
    """A job of this buyer, by its id (64 hexadecimal digits): quoted, paid or ended."""

    buyer: Buyer
    id: str

    @property
    def terms(self) -> JobTerms:
        """The terms: from the own disk, else from the hub, whose word is checked against the id.
        Raises OrderRefused for others, HubError where they are nowhere.
        """
        if kept := job_store.kept(self.id):
            return kept.terms
        try:
            raw = self.buyer.hub.call("GET", f"/api/jobs/{self.id}/terms").content
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

    @property
    def deadline(self) -> int:
        """Unix seconds: as the chain has it, or that of terms which were never paid."""
        paid = self.buyer.escrow.created_by(self.buyer.address).get(bytes.fromhex(self.id))
        return self.terms.deadline if paid is None else paid

    @property
    def on_chain(self) -> Status:
        """What the escrow says of it."""
        return self.buyer.escrow.job(bytes.fromhex(self.id)).status

    def standing(self, deadline: int) -> dict[str, Any]:
        """One line of a list of jobs."""
        status = self.on_chain
        over = self.buyer.chain.now() > deadline
        following = {
            Status.NONE: "not paid: nothing was taken",
            Status.FUNDED: f"datahub {'refund' if over else 'resume'} {self.id[:12]}",
            Status.SETTLED: f"datahub result {self.id[:12]}",
            Status.REFUNDED: "every unit came back",
        }
        return {
            "job_id": self.id,
            "state": str(status),
            "deadline": deadline,
            "next": following.get(status, f"datahub resume {self.id[:12]}"),
        }

    def pay(self) -> None:
        """Escrow the price, if it is not there yet, after any other payment from this wallet.
        Raises OrderRefused with too little time left, and what `Escrow.create_job` raises.
        """
        if self.on_chain is not Status.NONE:
            return
        with job_store.sole_payer(self.buyer.address):
            if self.on_chain is not Status.NONE:
                return  # by another process, while this one waited
            terms = self.terms
            if (left := terms.deadline - self.buyer.chain.now()) < LEAST_TIME_S:
                raise OrderRefused(
                    f"job {self.id[:12]} was not paid, and its deadline is in {left} s: order it "
                    "again"
                )
            try:
                self.buyer.escrow.create_job(terms)
            except TransactionRefused as error:
                if error.name == "ERC20InsufficientAllowance":
                    raise OrderRefused(
                        f"job {self.id[:12]} was not paid and nothing was taken: another machine "
                        f"is paying from {self.buyer.address} too and has changed its approval; "
                        f"when that is done: datahub resume {self.id[:12]}"
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
            self.buyer.hub.call("POST", "/api/jobs", body)
        except HubError:
            if (kept := job_store.kept(self.id)) is None:
                raise
            from base64 import b64encode

            files = dict(zip(("graph", "weights"), kept.model_files, strict=True))
            more = {name: b64encode(content).decode() for name, content in files.items()}
            self.buyer.hub.call("POST", "/api/jobs", body | more)

    def status(self) -> dict[str, Any]:
        """The hub's view: state, reason, rounds so far."""
        answer: dict[str, Any] = self.buyer.hub.get(f"/api/jobs/{self.id}")
        return answer

    def watch(self, timeout_s: float = 3600) -> Iterator[dict[str, Any]]:
        """The status again and again until it is final."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = self.status()
            yield status
            if status["state"] in ("settled", "refunded"):
                return
            time.sleep(POLL_S)
        raise HubError(
            f"job {self.id[:12]} is not finished after {timeout_s:.0f} s; ask again later: "
            f"datahub resume {self.id[:12]}"
        )

    def wait(
        self, on_status: Callable[[dict[str, Any]], None] | None = None, timeout_s: float = 3600
    ) -> Result:
        """Wait for settlement and open the result. Raises OrderRefused if the job was refunded
        instead.
        """
        status: dict[str, Any] = {}
        for status in self.watch(timeout_s):
            if on_status:
                on_status(status)
        if status["state"] == "refunded":
            raise OrderRefused(f"job {self.id[:12]} was refunded: {status['reason']}")
        return self.result()

    def refund(self) -> None:
        """After the deadline: every unit back, on the terms kept here or, without them, on those of
        the payment itself. Raises OrderRefused before the deadline or with nothing to take back.
        """
        status, raw = self.on_chain, bytes.fromhex(self.id)
        if status is not Status.FUNDED:
            raise OrderRefused(f"job {self.id[:12]} is {status}: there is nothing to take back")
        if (left := self.deadline - self.buyer.chain.now()) >= 0:
            raise OrderRefused(
                f"job {self.id[:12]} has {left} s left until its deadline; only after it the money "
                f"comes back without the hospitals (datahub resume {self.id[:12]} waits for them)"
            )
        try:
            if kept := job_store.kept(self.id):
                self.buyer.escrow.refund(kept.terms)
            else:
                self.buyer.escrow.refund_recorded(raw)
        except TransactionRefused as error:
            # by the hub at the same moment, or sent before by a process that was killed
            if error.name != "WrongStatus" or self._changed(status) is not Status.REFUNDED:
                raise

    def dispute(self) -> None:
        """Ask the arbiter in the terms to look at the attested result, for the bond. Raises
        OrderRefused before there is a result, TransactionRefused after the window.
        """
        attested = self.buyer.escrow.attested(bytes.fromhex(self.id))
        if attested is None:
            raise OrderRefused(
                f"job {self.id[:12]} has no attested result yet, so there is nothing to dispute"
            )
        with job_store.sole_payer(self.buyer.address):
            self.buyer.escrow.dispute(self.terms, attested)

    def result(self) -> Result:
        """The model and the report, checked against what the hospitals attested on-chain."""
        settlement = self.buyer.escrow.settlement(bytes.fromhex(self.id))
        if settlement is None:
            raise OrderRefused(f"job {self.id[:12]} is {self.on_chain}, not settled: no result yet")
        sealed = self.buyer.hub.call("GET", f"/api/jobs/{self.id}/result").content
        result = unseal(sealed, self.buyer._result_key, self.id, settlement.attestation.model_hash)
        if sha256_hex(result.report) != settlement.attestation.report_hash.hex():
            raise OrderRefused(
                "the report in the result is not the one that the hospitals attested on-chain"
            )
        return result
