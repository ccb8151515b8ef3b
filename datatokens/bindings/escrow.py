"""The job escrow as typed calls: pay, look, settle, refund. Knows nothing of what a job
computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from eth_utils.crypto import keccak

from datatokens.bindings.registry import Registry, Token
from datatokens.chain.connection import Chain
from datatokens.errors import BankError, TransactionRefused
from datatokens.money import amount
from datatokens.terms import Attestation, DatasetTerm, JobTerms, Outcome, address, whole

ONE_JOB = 10**18  # datatokens
Signed = TypeVar("Signed")


class Status(StrEnum):
    """What the escrow says of a job."""

    NONE = "none"
    FUNDED = "funded"
    SETTLED = "settled"
    REFUNDED = "refunded"
    PROPOSED = "proposed"
    DISPUTED = "disputed"


@dataclass(frozen=True)
class EscrowJob:
    """A job's slot: what is held (base units), which datasets accepted (bits), end of a window
    (unix seconds; 0 = none).
    """

    status: Status
    amount_units: int
    accepted: int
    until: int


@dataclass(frozen=True)
class Settlement:
    """What a settlement said, from its events: what was attested, which part of it was paid (basis
    points), how much.
    """

    attestation: Attestation
    paid_bps: int
    paid_units: int
    change_units: int


@dataclass(frozen=True)
class Standing:
    """What the escrow has seen of a dataset's hospital: numbers of jobs."""

    accepted: int
    settled: int
    failed: int
    disputed: int
    lost: int


class Escrow:
    """The escrow half of Market.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("Market", address)

    def create_job(self, terms: JobTerms) -> None:
        """Escrow the whole price from the connection's account, approving exactly that first.

        Raises BankError naming what is short before anything is approved, TransactionRefused for
        anything else; what was approved is then taken back.
        """
        account = self.chain.address
        if account is None:
            raise BankError("paying for a job needs the buyer's key; this connection has none")
        self._send_approved(
            self.spent(terms, account), self.contract.functions.createJob(terms.to_struct())
        )

    def spent(self, terms: JobTerms, account: str) -> list[tuple[Token, int]]:
        """What `account` has to let the market take for these terms, and has. Raises BankError
        naming what is short.
        """
        payment = self._payment_token()
        have = payment.balance_units(account)
        if have < terms.amount_units:
            raise BankError(
                f"{account} has {amount(have)}; this job needs {amount(terms.amount_units)}: send "
                f"{amount(terms.amount_units - have)} more to that address"
            )
        vouchers = [(self._datatoken(account, d), ONE_JOB) for d in terms.datasets if d.voucher]
        return [(payment, terms.amount_units), *vouchers]

    def _datatoken(self, account: str, line: DatasetTerm) -> Token:
        """The datatoken of the line's own tier, of which `account` must hold one."""
        registry = Registry(self.chain, self.chain.read(self.contract.functions.registry()))
        datatoken = Token(self.chain, registry.tier(line.dataset_id, line.tier).datatoken)
        if datatoken.balance_units(account) < ONE_JOB:
            raise BankError(
                f"{account} holds less than one datatoken of tier {line.tier} of dataset "
                f"{line.dataset_id}"
            )
        return datatoken

    def _send_approved(self, spent: Sequence[tuple[Token, int]], function: Any) -> None:
        """Send `function`, for which the market may take exactly these units; nothing stays
        approved where it refuses.
        """
        owner, market = str(self.chain.address), self.contract.address
        try:
            for token, units in spent:
                _approve(token, owner, market, units)
            self.chain.send(function)
        except TransactionRefused:
            for token, _ in spent:
                _approve(token, owner, market, 0)
            raise

    def _payment_token(self) -> Token:
        return Token(self.chain, self.chain.read(self.contract.functions.paymentToken()))

    def job(self, job_id: bytes) -> EscrowJob:
        """Where the escrow has a job; status none for one that nobody paid."""
        amount_units, accepted, until, status = self.chain.read(self.contract.functions.job(job_id))
        return EscrowJob(list(Status)[status], amount_units, accepted, until)

    def accept(self, terms: JobTerms, signatures: Mapping[str, bytes]) -> None:
        """Write down that hospitals agreed (node address -> signed acceptance); those written
        already are left out.
        """
        there = self.job(terms.job_id).accepted
        new = {n: s for n, s in signatures.items() if not there >> terms.index_of_node(n) & 1}
        if new:
            bits, ordered = _in_order(terms, new)
            self.chain.send(
                self.contract.functions.accept(
                    terms.to_struct(), bits, [_compact(s) for s in ordered]
                )
            )

    def revoke_acceptances(self, terms: JobTerms, nodes: Sequence[str]) -> None:
        """Take back what these node keys accepted: they are revoked in the node registry. By
        anybody.
        """
        bits = sum(1 << terms.index_of_node(node) for node in nodes)
        self.chain.send(self.contract.functions.revokeAcceptances(terms.to_struct(), bits))

    def settle(
        self, terms: JobTerms, attestation: Attestation, signatures: Mapping[str, bytes]
    ) -> None:
        """Pay against attestations (node address -> signature). Raises TransactionRefused."""
        bits, ordered = _in_order(terms, signatures)
        compact = [_compact(signature) for signature in ordered]
        self.chain.send(
            self.contract.functions.settle(
                terms.to_struct(), attestation.to_struct(), bits, compact
            )
        )

    def finalize(self, terms: JobTerms, attestation: Attestation) -> None:
        """Pay an attested job after its dispute window, or after an arbiter's silence."""
        self.chain.send(
            self.contract.functions.finalize(terms.to_struct(), attestation.to_struct())
        )

    def dispute(self, terms: JobTerms, attestation: Attestation) -> None:
        """The buyer or a node: ask the arbiter to look, for the bond in the terms, approved first.
        Raises TransactionRefused; the approval is then taken back.
        """
        bond = terms.dispute.bond_units if terms.dispute else 0
        self._send_approved(
            [(self._payment_token(), bond)] if bond else [],
            self.contract.functions.dispute(terms.to_struct(), attestation.to_struct()),
        )

    def rule(self, terms: JobTerms, attestation: Attestation, paid_bps: int) -> None:
        """The arbiter: pay `paid_bps` basis points of what was attested, the rest back to the
        buyer.
        """
        whole("paid_bps", paid_bps, 0, 10_000)
        self.chain.send(
            self.contract.functions.rule(terms.to_struct(), attestation.to_struct(), paid_bps)
        )

    def refund(self, terms: JobTerms) -> None:
        """After the deadline: everything back to the buyer. Raises TransactionRefused before it."""
        self.chain.send(self.contract.functions.refund(terms.to_struct()))

    def created_by(self, buyer: str) -> dict[bytes, int]:
        """Every job that `buyer` has ever paid for, oldest first: job id -> its deadline (unix
        seconds), from events.
        """
        event = self.contract.events.JobCreated()
        found = (log["args"] for log in self.chain.logs(event, buyer=address("buyer", buyer)))
        return {said["jobId"]: int(said["deadline"]) for said in found}

    def refund_recorded(self, job_id: bytes) -> None:
        """As `refund`, with the terms as the buyer's own payment has them on the chain: for a buyer
        who has lost them. Raises BankError for a job that was not paid by a plain transaction.
        """
        market = self.contract
        paid = self.chain.newest_log(market.events.JobCreated(), jobId=job_id)
        if paid is None:
            raise BankError(f"job 0x{job_id.hex()} was never paid on the market {market.address}")
        lost = f"the terms of job 0x{job_id.hex()} are not in the transaction that paid for it"
        try:
            _, given = market.decode_function_input(self.chain.calldata(paid["transactionHash"]))
            struct = tuple(given["terms"].values())
        except (ValueError, KeyError, AttributeError) as error:  # paid through another contract
            raise BankError(lost) from error
        if self.chain.read(market.functions.hashTerms(struct)) != job_id:
            raise BankError(lost)
        self.chain.send(market.functions.refund(struct))

    def refund_rejected(self, terms: JobTerms, rejections: Mapping[str, tuple[str, bytes]]) -> None:
        """Everything back to the buyer, on signed refusals: node address -> (reason, signature)."""
        bits, ordered = _in_order(terms, rejections)
        hashes = [keccak(text=reason) for reason, _ in ordered]
        compact = [_compact(signature) for _, signature in ordered]
        self.chain.send(
            self.contract.functions.refundRejected(terms.to_struct(), bits, hashes, compact)
        )

    def settlement(self, job_id: bytes) -> Settlement | None:
        """The settlement of a job, from its event; None if it is not settled."""
        if self.job(job_id).status is not Status.SETTLED:
            return None
        paid = self.chain.newest_log(self.contract.events.JobSettled(), jobId=job_id)
        attested = self.attested(job_id)
        if paid is None or attested is None:
            raise BankError(
                f"job 0x{job_id.hex()} is settled, but the chain at {self.chain.host} has lost its "
                "events"
            )
        money = paid["args"]
        return Settlement(attested, money["paidBps"], money["paidUnits"], money["changeUnits"])

    def attested(self, job_id: bytes) -> Attestation | None:
        """What a quorum of the nodes vouched for, from the chain; None before. It may still be
        disputed.
        """
        event = self.chain.newest_log(self.contract.events.JobAttested(), jobId=job_id)
        if event is None:
            return None
        said = event["args"]
        outcomes = tuple(Outcome.from_word(word) for word in said["outcomes"])
        return Attestation(job_id, said["modelHash"], said["reportHash"], said["worked"], outcomes)

    def standing(self, dataset_id: int) -> Standing:
        """What the escrow itself has counted for a dataset; nobody else can write it."""
        return Standing(*self.chain.read(self.contract.functions.standing(dataset_id)))

    def credit_units(self, account: str) -> int:
        """What waits for `account` to withdraw (the hub's fees; a transfer that failed)."""
        return int(self.chain.read(self.contract.functions.credit(account)))

    def withdraw_credit(self, to: str) -> None:
        """Take out the connection's own credit."""
        self.chain.send(self.contract.functions.withdrawCredit(address("to", to)))


def _approve(token: Token, owner: str, spender: str, units: int) -> None:
    """Let `spender` take exactly `units`, neither less nor more than this one payment; through 0,
    as some tokens want it.
    """
    there = token.allowance_units(owner, spender)
    if there == units:
        return
    if there and units:
        token.approve(spender, 0)
    token.approve(spender, units)


def _in_order(terms: JobTerms, signed: Mapping[str, Signed]) -> tuple[int, list[Signed]]:
    """(bits of the datasets whose nodes signed, their signatures in the order of the bits)."""
    indices = sorted(terms.index_of_node(node) for node in signed)
    return sum(1 << i for i in indices), [signed[terms.datasets[i].node] for i in indices]


def _compact(signature: bytes) -> bytes:
    """r, s, v (65 bytes) as r, vs (64 bytes; ERC-2098), which is cheaper to send; anything else as
    it is (ERC-1271).
    """
    if len(signature) != 65:
        return signature
    vs = int.from_bytes(signature[32:64], "big") | (signature[64] - 27 << 255)
    return signature[:32] + vs.to_bytes(32, "big")
