"""Three lines for a buyer: order, wait, use the model. The buyer's own key, chain connection and
checks.

The hub's quote is only a proposal. Before paying, everything in it that costs money or privacy is
compared with what was asked and with the chain; after settlement, the model must be the one that
the hospitals attested.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from datahub.buyer.hub_client import Hub
from datahub.errors import HubError, OrderRefused
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.chain.connection import connect
from datatokens.terms import DisputeTerms, JobTerms
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.results import Result, unseal

if TYPE_CHECKING:
    from torch import Tensor, nn

POLL_S = 0.25
EPSILON_SLACK = 1.0001
NAMED = ("learning_rate", "clip_norm", "server_momentum")  # numbers of the training plan


@dataclass(frozen=True)
class Quote:
    """Checked terms and what they cost: base units of the payment token, epsilon per hospital."""

    terms: JobTerms
    spec: JobSpec
    amount_units: int
    epsilon: float


class Buyer:
    """A wallet that buys training jobs. `key` is its private key; it never leaves this process."""

    def __init__(self, hub: str, *, chain: str, key: str):
        """Connect; raises HubError or ChainUnreachable."""
        self.hub = Hub(hub)
        self.network = self.hub.get("/api/network")
        self.chain = connect(chain, key=key)
        self.escrow = Escrow(self.chain, self.network["market"])
        self.registry = Registry(self.chain, self.network["registry"])
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
        rounds: int | None = None,
        reward_units: int = 0,
        vouchers: Sequence[int] = (),
        compute_minutes: int = 10,
        dispute: DisputeTerms | None = None,
        **settings: Any,
    ) -> Quote:
        """Ask for terms and check them: nothing is paid yet. `model` is a built-in name or any
        torch module.

        epsilon and delta are per hospital, for adding or removing one patient; delta defaults to
        min(1e-5, 1 / (10 persons)). Where a hospital meters its compute, `compute_minutes` of it
        are escrowed and what is not used comes back. `rounds`, `local_steps`, `learning_rate`,
        `clip_norm`, `server_momentum` and `server_rates` follow from counts, inputs and epsilon
        where they are not given (fl_client/privacy/defaults.py). With `dispute`, payment waits for
        a window in which an arbiter may be asked. Raises HubError (the hub refused) or OrderRefused
        (its quote is wrong).
        """
        # torch is loaded here, where a model is touched, and by nothing else that a buyer does
        from torch import zeros

        from fl_client.model.export import export_model
        from fl_client.model.families import build
        from fl_client.privacy import accounting, defaults

        rows = {row["dataset_id"]: row for row in self.hub.get("/api/datasets")}
        for dataset_id in datasets:
            if dataset_id not in rows or rows[dataset_id]["manifest"] is None:
                raise OrderRefused(f"dataset_id={dataset_id} is not in the catalogue")
        manifests = [rows[d]["manifest"] for d in datasets]
        if delta is None:
            delta = min(1e-5, *(1 / (10 * m["persons"]) for m in manifests))
        width = sum(max(1, len(f["categories"]) - 1) for f in manifests[0]["schema"]["features"])
        module = build(model, width) if isinstance(model, str) else model
        named = {name: settings.pop(name, None) for name in NAMED}
        chosen = defaults.plan(
            model if isinstance(model, str) else None,
            [m["persons"] for m in manifests],
            width,
            float(epsilon),
            delta,
            rounds=rounds,
            **{name: value if value is None else float(value) for name, value in named.items()},
            local_steps=settings.pop("local_steps", None),
            server_rates=settings.pop("server_rates", None),
        )
        graph, weights = export_model(module, zeros(1, width) if example is None else example)
        body = {
            "buyer": self.address,
            "buyer_public_key": self.result_public_key,
            "datasets": list(datasets),
            "vouchers": list(vouchers),
            "compute_minutes": compute_minutes,
            "dispute": asdict(dispute) if dispute else None,
            "graph": base64.b64encode(graph).decode(),
            "weights": base64.b64encode(weights).decode(),
            "epsilon": float(epsilon),
            "delta": float(delta),
            "model": model if isinstance(model, str) else None,
            "rounds": chosen.rounds,
            "local_steps": chosen.local_steps,
            "learning_rate": chosen.learning_rate,
            "clip_norm": chosen.clip_norm,
            "server_momentum": chosen.server_momentum,
            "server_rates": dict(chosen.server_rates),
            "reward_units": reward_units,
            "purpose": purpose,
            **settings,
        }
        answer = self.hub.call("POST", "/api/quotes", body).json()
        terms = JobTerms.from_json(answer["terms"].encode())
        spec = JobSpec.from_dict(terms.spec)
        cost = accounting.epsilon(spec.plan.charges(), spec.plan.delta)
        fee_limit = (terms.amount_units - terms.fee_units) * self.network["fee_bps"] // 10_000
        prices = {d: self.registry.dataset(d) for d in datasets}
        rates = {d: m["compute_rate_units"] for d, m in zip(datasets, manifests, strict=True)}
        checks = {
            "buyer": terms.buyer == self.address
            and spec.buyer_public_key == self.result_public_key,
            "chain": (terms.chain_id, terms.market)
            == (self.chain.chain_id, self.network["market"]),
            "datasets": {line.dataset_id for line in terms.datasets} == set(datasets),
            "prices": all(
                line.price_units == (0 if line.voucher else prices[line.dataset_id].price_units)
                and line.voucher == (line.dataset_id in vouchers)
                and line.node == prices[line.dataset_id].node
                for line in terms.datasets
            ),
            "compute": all(
                line.compute_rate_units == rates[line.dataset_id]
                and line.compute_cap_units == rates[line.dataset_id] * compute_minutes
                for line in terms.datasets
            ),
            "dispute": terms.dispute == dispute,
            "reward_units": terms.reward_units == reward_units,
            "fee_units": terms.fee_units <= fee_limit,
            "model": (spec.graph_hash, spec.weights_hash)
            == (sha256_hex(graph), sha256_hex(weights)),
            "epsilon": cost <= epsilon * EPSILON_SLACK and spec.plan.delta == delta,
            "rounds": (spec.rounds, spec.local_steps, spec.average_last)
            == (chosen.rounds, chosen.local_steps, chosen.average_last),
            "steps": (spec.learning_rate, spec.plan.clip_norm, spec.plan.sampling_rate)
            == (chosen.learning_rate, chosen.clip_norm, chosen.sampling_rate),
            "server_momentum": spec.server_momentum == chosen.server_momentum,
            "server_rates": dict(spec.server_rates) == dict(chosen.server_rates),
            "purpose": spec.purpose == purpose,
        }
        if wrong := [name for name, fine in checks.items() if not fine]:
            raise OrderRefused(
                f"the hub's quote differs from the order in: {', '.join(wrong)}; nothing was paid"
            )
        return Quote(terms, spec, terms.amount_units, cost)

    def pay(self, quote: Quote) -> Job:
        """Escrow the price and hand the terms to the hub. Raises TransactionRefused, e.g. for too
        small a balance.
        """
        self.escrow.create_job(quote.terms)
        self.hub.call("POST", "/api/jobs", {"terms": quote.terms.to_json().decode()})
        return Job(self, quote.terms)

    def order(
        self, datasets: Sequence[int], *, epsilon: float, purpose: str, **settings: Any
    ) -> Job:
        """Quote, check and pay in one step; see `quote` for the settings."""
        return self.pay(self.quote(datasets, epsilon=epsilon, purpose=purpose, **settings))

    def job(self, terms: JobTerms) -> Job:
        """A job that was paid before."""
        return Job(self, terms)


@dataclass(frozen=True)
class Job:
    """A paid job."""

    buyer: Buyer
    terms: JobTerms

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.terms.job_id.hex()

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
            f"job {self.id[:12]} is not finished after {timeout_s:.0f} s; ask again later"
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

    def dispute(self) -> None:
        """Ask the arbiter in the terms to look at the attested result, for the bond. Raises
        OrderRefused before there is
        a result, TransactionRefused after the window."""
        attested = self.buyer.escrow.attested(self.terms.job_id)
        if attested is None:
            raise OrderRefused(
                f"job {self.id[:12]} has no attested result yet, so there is nothing to dispute"
            )
        self.buyer.escrow.dispute(self.terms, attested)

    def result(self) -> Result:
        """The model and the report, checked against what the hospitals attested on-chain."""
        settlement = self.buyer.escrow.settlement(self.terms.job_id)
        if settlement is None:
            raise OrderRefused(f"job {self.id[:12]} is not settled on-chain")
        sealed = self.buyer.hub.call("GET", f"/api/jobs/{self.id}/result").content
        result = unseal(sealed, self.buyer._result_key, self.id, settlement.attestation.model_hash)
        if sha256_hex(result.report) != settlement.attestation.report_hash.hex():
            raise OrderRefused(
                "the report in the result is not the one that the hospitals attested on-chain"
            )
        return result
