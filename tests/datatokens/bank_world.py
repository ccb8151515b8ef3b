"""A small market for the tests of the bank: three hospitals with node keys, a buyer, an
operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eth_account import Account

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry, Token
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain, connect
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import Deployment, deploy
from datatokens.terms import (
    Attestation,
    DatasetTerm,
    DisputeTerms,
    JobTerms,
    Outcome,
    acceptance_message,
    attestation_message,
    sign,
)

PRICE = 1_000_001  # odd on purpose: splits must not lose the last unit
REWARD = 600_000
FEE = 10_000
BPS = 2_500


@dataclass
class World:
    """A deployed market: `hospitals` own datasets 1.., each with a node key; accounts 4.. are
    strangers.
    """

    url: str
    deployment: Deployment
    operator: Chain
    buyer: Chain
    hospitals: list[Chain]
    node_keys: list[str]
    dataset_ids: list[int]
    serial: int = field(default=0)

    def escrow(self, chain: Chain) -> Escrow:
        return Escrow(chain, self.deployment.market)

    def revenue(self, chain: Chain) -> Revenue:
        return Revenue(chain, self.deployment.market)

    def registry(self, chain: Chain) -> Registry:
        return Registry(chain, self.deployment.registry)

    def money(self, chain: Chain) -> Token:
        return Token(chain, self.deployment.payment_token)

    def node(self, index: int) -> str:
        return str(Account.from_key(self.node_keys[index]).address)

    def terms(
        self,
        *,
        seconds: int = 3600,
        quorum: int = 2,
        vouchers: tuple[int, ...] = (),
        compute: tuple[int, int] = (0, 0),
        dispute: DisputeTerms | None = None,
    ) -> JobTerms:
        """`compute` is (rate a minute, cap) at every hospital."""
        self.serial += 1
        lines = tuple(
            DatasetTerm(i, self.node(n), 0 if n in vouchers else PRICE, n in vouchers, 0, *compute)
            for n, i in enumerate(self.dataset_ids)
        )
        return JobTerms(
            chain_id=self.deployment.chain_id,
            market=self.deployment.market,
            buyer=str(self.buyer.address),
            datasets=lines,
            reward_units=REWARD,
            fee_units=FEE,
            deadline=self.operator.now() + seconds,
            quorum=quorum,
            spec={"serial": self.serial},
            dispute=dispute,
        )

    def paid(self, **changes: object) -> JobTerms:
        """A job that nobody has accepted yet."""
        terms = self.terms(**changes)  # type: ignore[arg-type]
        self.escrow(self.buyer).create_job(terms)
        return terms

    def funded(self, **changes: object) -> JobTerms:
        """A job that all three hospitals have accepted."""
        terms = self.paid(**changes)
        self.escrow(self.operator).accept(terms, self.acceptances(terms))
        return terms

    def acceptances(self, terms: JobTerms, nodes: tuple[int, ...] = (0, 1, 2)) -> dict[str, bytes]:
        return {self.node(n): sign(acceptance_message(terms), self.node_keys[n]) for n in nodes}

    def attestation(
        self,
        terms: JobTerms,
        rewards: tuple[int, ...] | None = None,
        worked: int = 0b111,
        compute_units: int = 0,
    ) -> Attestation:
        """Every dataset in `worked` gets its reward (a third each by default) and is charged
        epsilon 1.5, delta 1e-6.
        """
        shares = rewards or (terms.reward_units // len(terms.datasets),) * len(terms.datasets)
        outcomes = tuple(
            Outcome(compute_units, share, 1_500_000, 1_000_000)
            if worked >> i & 1
            else Outcome(0, 0, 0, 0)
            for i, share in enumerate(shares)
        )
        return Attestation(terms.job_id, b"\x11" * 32, b"\x22" * 32, worked, outcomes)

    def signatures(
        self, terms: JobTerms, attestation: Attestation, nodes: tuple[int, ...] = (0, 1, 2)
    ) -> dict[str, bytes]:
        message = attestation_message(terms, attestation)
        return {self.node(n): sign(message, self.node_keys[n]) for n in nodes}

    def travel(self, seconds: int) -> None:
        self.operator.rpc("evm_increaseTime", seconds)
        self.operator.rpc("evm_mine")


def found_world(url: str) -> World:
    """Deploy everything on the empty chain at `url`."""
    keys = [key for _, key in accounts()]
    operator, buyer, *hospitals = (connect(url, key) for key in keys[:5])
    deployment = deploy(operator)
    node_keys = ["0x" + bytes([0xA0 + n] * 32).hex() for n in range(3)]
    made = World(url, deployment, operator, buyer, hospitals, node_keys, [])
    for n, hospital in enumerate(hospitals):
        mine, manifest_hash = made.registry(hospital), bytes([n]) * 32
        made.dataset_ids.append(
            mine.list_dataset(made.node(n), PRICE, BPS, manifest_hash, f"https://h{n}", f"H{n}")
        )
    made.money(operator).mint(str(buyer.address), 10**12)
    return made
