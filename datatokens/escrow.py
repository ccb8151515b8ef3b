"""The job escrow as typed calls: pay, look, settle, refund. Knows nothing of what a job computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from eth_utils.crypto import keccak

from datatokens.chain import Chain
from datatokens.errors import BankError
from datatokens.registry import Registry, Token
from datatokens.terms import Attestation, JobTerms, address

ONE_JOB = 10**18  # datatokens


class Status(StrEnum):
    """What the escrow says of a job."""

    NONE = "none"
    FUNDED = "funded"
    SETTLED = "settled"
    REFUNDED = "refunded"


@dataclass(frozen=True)
class EscrowJob:
    """A job's slot: what is held (base units), until when (unix seconds)."""

    status: Status
    amount_units: int
    deadline: int


@dataclass(frozen=True)
class Settlement:
    """What a settlement said, from its event."""

    model_hash: bytes
    report_hash: bytes
    worked: int
    paid_units: int
    change_units: int


class Escrow:
    """The escrow half of Market.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("Market", address)

    def create_job(self, terms: JobTerms) -> None:
        """Escrow the whole price from the connection's account, approving what is short first.

        Raises BankError naming have and need when the balance is short, TransactionRefused for anything else.
        """
        account, market = self.chain.address, self.contract.address
        if account is None:
            raise BankError("paying for a job needs the buyer's key; this connection has none")
        payment = Token(self.chain, self.chain.read(self.contract.functions.paymentToken()))
        have = payment.balance_units(account)
        if have < terms.amount_units:
            raise BankError(f"{account} has {have} units of the payment token; this job needs {terms.amount_units}")
        if payment.allowance_units(account, market) < terms.amount_units:
            payment.approve(market, terms.amount_units)
        registry = Registry(self.chain, self.chain.read(self.contract.functions.registry()))
        for line in terms.datasets:
            if line.voucher:
                datatoken = Token(self.chain, registry.dataset(line.dataset_id).datatoken)
                if datatoken.balance_units(account) < ONE_JOB:
                    raise BankError(f"{account} holds less than one datatoken of dataset {line.dataset_id}")
                if datatoken.allowance_units(account, market) < ONE_JOB:
                    datatoken.approve(market, ONE_JOB)
        self.chain.send(self.contract.functions.createJob(terms.to_struct()))

    def job(self, job_id: bytes) -> EscrowJob:
        """Where the escrow has a job; status none for one that nobody paid."""
        amount_units, deadline, status = self.chain.read(self.contract.functions.job(job_id))
        return EscrowJob(list(Status)[status], amount_units, deadline)

    def settle(self, terms: JobTerms, attestation: Attestation, signatures: Mapping[str, bytes]) -> None:
        """Pay against attestations (node address -> signature). Raises TransactionRefused."""
        indices = sorted(terms.index_of_node(node) for node in signatures)
        result = (attestation.model_hash, attestation.report_hash, attestation.worked, list(attestation.reward_units))
        ordered = [signatures[terms.datasets[i].node] for i in indices]
        self.chain.send(self.contract.functions.settle(terms.to_struct(), result, indices, ordered))

    def refund(self, terms: JobTerms) -> None:
        """After the deadline: everything back to the buyer. Raises TransactionRefused before it."""
        self.chain.send(self.contract.functions.refund(terms.to_struct()))

    def refund_rejected(self, terms: JobTerms, rejections: Mapping[str, tuple[str, bytes]]) -> None:
        """Everything back to the buyer, on signed refusals: node address -> (reason, signature)."""
        indices = sorted(terms.index_of_node(node) for node in rejections)
        ordered = [rejections[terms.datasets[i].node] for i in indices]
        hashes = [keccak(text=reason) for reason, _ in ordered]
        signatures = [signature for _, signature in ordered]
        self.chain.send(self.contract.functions.refundRejected(terms.to_struct(), indices, hashes, signatures))

    def settlement(self, job_id: bytes) -> Settlement | None:
        """The settlement of a job, from its event; None if it is not settled."""
        if self.job(job_id).status is not Status.SETTLED:
            return None
        event = self.chain.newest_log(self.contract.events.JobSettled(), jobId=job_id)
        if event is None:
            raise BankError(f"job 0x{job_id.hex()} is settled, but the chain at {self.chain.url} has lost the event")
        said = event["args"]
        return Settlement(said["modelHash"], said["reportHash"], said["worked"], said["paidUnits"], said["changeUnits"])

    def credit_units(self, account: str) -> int:
        """What waits for `account` to withdraw (the hub's fees; a transfer that failed)."""
        return int(self.chain.read(self.contract.functions.credit(account)))

    def withdraw_credit(self, to: str) -> None:
        """Take out the connection's own credit."""
        self.chain.send(self.contract.functions.withdrawCredit(address("to", to)))
