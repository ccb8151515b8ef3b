"""What a buyer begins with: look for datasets, ask for a quote, order. The buyer's own key, chain
connection and checks.

The hub's quote is only a proposal: it is worked out again from the chain before anything is paid
(quoting.py), and what is paid into is the market that the buyer has pinned (networks.py). What
comes after is a job (jobs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from datahub.buyer import access, job_store, networks
from datahub.buyer.access import Tier
from datahub.buyer.hub_client import Hub
from datahub.buyer.jobs import Job
from datahub.buyer.search import Dataset, found
from datahub.errors import BadRequest, OrderRefused
from datatokens import deploy
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.chain.connection import Chain, connect
from datatokens.money import amount
from datatokens.terms import USUAL_DEADLINE_S, DisputeTerms, JobTerms, canonical_json, sign_text
from fl_client.data.manifests import UNITS, Manifest
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.errors import NodeError
from fl_client.protocol import JobSpec
from fl_server.results import KEY_MESSAGE, result_key

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datahub.order import Listed


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
    schema: Schema
    market: Market = field(repr=False, compare=False)
    question: str = ""  # of a job that asks for figures (questions.py)
    asked: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # to repeat

    def keep(self) -> Job:
        """Write the job down, which is done before anything is sent: from here on it has an id to
        go on with.
        """
        schema = canonical_json(self.schema.as_dict())
        job_store.keep(self.terms, self.graph, self.weights, schema, self.question, self.asked)
        return Job(self.market, self.terms.job_id.hex())

    def order(self) -> Job:
        """Keep the job, escrow exactly its price, and hand the terms to the hub. Raises
        TransactionRefused, e.g. for too small a balance; HubError where the job is paid and the hub
        does not answer: it takes up by itself what it has quoted, and `resume` tells it again.
        """
        job = self.keep()
        job.pay()
        job.hand_over()
        return job


@dataclass(frozen=True)
class Wallet:
    """What it takes to pay: a pinned network, the buyer's own chain connection with its key, and
    the key that results are sealed to.
    """

    network: networks.Network
    chain: Chain
    escrow: Escrow
    registry: Registry
    result_key: bytes = field(repr=False)


class Market:
    """A hub's datasets, for everybody who looks; for a wallet, quotes and jobs. `key` is the
    wallet's private key; it never leaves this process.
    """

    def __init__(
        self,
        hub: str,
        *,
        chain: str = "",
        key: str = "",
        network: networks.Network | None = None,
    ):
        """Without a key, to search. With one, connect to the hub's pinned network (`datahub
        network add`), or to the one given, and check its contracts on `chain`: their code and what
        they were constructed with.

        Raises OrderRefused for a hub that is not pinned, BankError for contracts that are others.
        """
        self.hub = Hub(hub)
        if bool(chain) is not bool(key):
            raise OrderRefused("chain and key: give both to buy, or neither to search")
        self._wallet: Wallet | None = None
        if key:
            network = network or networks.by_hub(hub)
            connection = connect(chain, key=key)
            deploy.check(connection, network.deployment)
            # one key for all results, made by the wallet: nothing to lose but the wallet, and a
            # browser that has it makes the same
            self._wallet = Wallet(
                network,
                connection,
                Escrow(connection, network.deployment.market),
                Registry(connection, network.deployment.registry),
                result_key(sign_text(KEY_MESSAGE, key)),
            )

    def _paying(self) -> Wallet:
        if self._wallet is None:
            raise OrderRefused(
                "this market was opened without a key, to search: give chain and key to buy"
            )
        return self._wallet

    @property
    def network(self) -> networks.Network:
        """The contracts that are paid into."""
        return self._paying().network

    @property
    def chain(self) -> Chain:
        """The buyer's own chain connection."""
        return self._paying().chain

    @property
    def escrow(self) -> Escrow:
        """Where the money of jobs is."""
        return self._paying().escrow

    @property
    def registry(self) -> Registry:
        """What the chain says of datasets."""
        return self._paying().registry

    @property
    def result_key(self) -> bytes:
        """The X25519 private key that opens this wallet's results."""
        return self._paying().result_key

    @property
    def address(self) -> str:
        """The wallet's address."""
        return str(self.chain.address)

    @property
    def result_public_key(self) -> str:
        """X25519 key that results are sealed to, hexadecimal."""
        public = X25519PrivateKey.from_private_bytes(self.result_key).public_key()
        return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def search(
        self,
        text: str = "",
        *,
        max_price_units: int | None = None,
        unit: str = "",
        online: bool | None = None,
        most: int = 200,
    ) -> list[Dataset]:
        """The hub's datasets on sale, by name: those in whose names, descriptions, columns or
        target every word of `text` begins a word; that cost at most `max_price_units`; whose
        `unit` of privacy is "patient" or "record"; whose node is online now, or is not; the first
        `most`. Raises HubError, BadRequest.

        This is the hub's word; what is paid for is checked on the chain when it is quoted.
        """
        if unit and unit not in UNITS:
            raise BadRequest(f"unit={unit!r:.60} must be {' or '.join(UNITS)}")
        rows = self.hub.rows(
            "/api/v1/datasets",
            most,
            q=text[:200] or None,
            most_units=max_price_units,
            unit=unit or None,
            online=online or None,
        )
        return found(rows, max_price_units, unit, online)

    def quote(
        self,
        datasets: Sequence[int | Dataset],
        *,
        epsilon: float,
        purpose: str,
        delta: float | None = None,
        model: str | nn.Module = "logistic_regression",
        example: Tensor | None = None,
        loss: str | None = None,
        rounds: int | None = None,
        local_steps: int | None = None,
        learning_rate: float | None = None,
        clip_norm: float | None = None,
        server_momentum: float | None = None,
        server_rates: Mapping[str, float] | None = None,
        reward_units: int = 0,
        vouchers: Sequence[int] = (),
        tiers: Mapping[int, int] | None = None,
        compute_minutes: int = 10,
        dispute: DisputeTerms | None = None,
        deadline_s: int = USUAL_DEADLINE_S,
        quorum: int | None = None,
        max_fee_units: int | None = None,
        purpose_codes: Sequence[str] = (),
        answer_s: int | None = None,
    ) -> Quote:
        """Ask for terms and check them: nothing is paid yet. `datasets` are found ones or their
        numbers. `model` is a built-in name or any
        torch module; `loss` is the usual one of the datasets' target where it is not given.

        epsilon and delta are per hospital, for adding or removing one patient; delta defaults to
        min(1e-5, 1 / (10 persons)). `vouchers` are paid with one datatoken each, of the tier that
        `tiers` names for the dataset (0 where it names none); without a voucher, a tier costs its
        own price, and nothing while this wallet's access by it is open. Where a hospital meters its
        compute, `compute_minutes` of it are escrowed and what is not used comes back. `rounds`,
        `local_steps`, `learning_rate`, `clip_norm`, `server_momentum` and `server_rates` follow
        from counts, inputs and epsilon where they are not given (fl_client/privacy/defaults.py).
        The hub's fee is at most what the network was pinned with, and at most `max_fee_units`. With
        `dispute`, payment waits for a window in which an arbiter may be asked. Hospitals where a
        person decides have `answer_s` seconds for it, three quarters of `deadline_s` where it is
        not given; `purpose_codes` are what the job is for in codes of the Data Use Ontology, for
        hospitals that compare them.
        Raises HubError (the hub refused), OrderRefused (the order cannot be, or the quote is not
        it) or GraphRefused (the model cannot travel).
        """
        # torch is loaded here, where a model is touched, and by nothing else that a buyer does
        from datahub.buyer import quoting

        by, spent = quoting.tiers_of(tiers or {}), quoting.dataset_ids("vouchers", vouchers)
        ids, facts = self._facts(datasets, by, spent)
        schema = facts[0].manifest.schema
        loss = next(iter(schema.losses)) if loss is None else loss
        files = quoting.model_files(model, example, schema, loss, server_rates)
        asked = {
            "epsilon": epsilon,
            "purpose": purpose,
            "delta": delta,
            "model": model if isinstance(model, str) else None,
            "loss": loss,
            "rounds": rounds,
            "local_steps": local_steps,
            "learning_rate": learning_rate,
            "clip_norm": clip_norm,
            "server_momentum": server_momentum,
            "server_rates": dict(server_rates)
            if isinstance(server_rates, Mapping)
            else server_rates,
            "reward_units": reward_units,
            "vouchers": list(spent),
            "tiers": {str(dataset_id): tier for dataset_id, tier in by.items()},
            "compute_minutes": compute_minutes,
            "dispute": asdict(dispute) if dispute else None,
            "deadline_s": deadline_s,
            "quorum": quorum,
            "max_fee_units": max_fee_units,
            "purpose_codes": list(purpose_codes),
            "answer_s": answer_s,
        }
        return self._proposed(facts, files, {"datasets": list(ids), **asked})

    def _facts(
        self, datasets: Sequence[int | Dataset], tiers: Mapping[int, int], vouchers: Sequence[int]
    ) -> tuple[tuple[int, ...], list[Listed]]:
        """The datasets' numbers, and what the chain says of each by its tier. Raises
        OrderRefused.
        """
        from datahub.buyer import quoting

        market = self.network.deployment.market
        ids = quoting.dataset_ids("datasets", _ids(datasets))
        if not ids:
            raise OrderRefused("datasets: name at least one dataset id")
        rows = {row["dataset_id"]: row for row in self.hub.get("/api/v1/datasets", id=ids)}
        who = (self.address, market)
        return ids, [
            quoting.listed(self.registry, rows, d, *who, tiers.get(d, 0), d in vouchers)
            for d in ids
        ]

    def _proposed(
        self, facts: Sequence[Listed], files: tuple[bytes, bytes], asked: Mapping[str, Any]
    ) -> Quote:
        """The hub's terms for what is `asked` of these datasets with these model files, checked."""
        from datahub.buyer import quoting
        from datahub.order import Venue
        from fl_client.privacy.evaluation import expected_intervals
        from fl_client.privacy.looks import is_one_yes_no

        max_fee_units = asked["max_fee_units"]
        if max_fee_units is not None and type(max_fee_units) is not int:
            raise OrderRefused(f"max_fee_units={max_fee_units!r:.60} must be a whole number")
        persons = [one.manifest.persons for one in facts]
        order = quoting.order_of(asked, files, persons, self.address, self.result_public_key)
        venue = Venue(self.chain.chain_id, self.network.deployment.market, self.network.fee_bps)
        answer = self.hub.call("POST", "/api/v1/quotes", order.body()).json()
        terms, cost = quoting.checked(answer, order, facts, venue, self.chain.now())
        if max_fee_units is not None and terms.fee_units > max_fee_units:
            raise OrderRefused(
                f"the hub's fee of {amount(terms.fee_units)} is above the {amount(max_fee_units)} "
                "that you allow; nothing was paid"
            )
        spec = JobSpec.from_dict(terms.spec)
        wide = {}
        if is_one_yes_no(order.loss, spec.outputs):
            expected = expected_intervals(persons, spec.plan.score_noise_multiplier).values()
            wide = {n: max(one[n.lower()] for one in expected) for n in ("accuracy", "AUC")}
        schema = facts[0].manifest.schema
        return Quote(terms, spec, terms.amount_units, cost, wide, *files, schema, self, asked=asked)

    def repeat(self, job_id: str) -> Quote:
        """A new quote for what a job of this wallet was ordered with: the same datasets, settings,
        model and first weights, at today's prices. Nothing is paid yet. Raises OrderRefused for a
        job that is not kept on this disk, or whose datasets have another schema by now.
        """
        from datahub.buyer import quoting

        job = self.job(job_id)
        kept = job_store.kept(job.id)
        asked = kept.order if kept else {}
        if kept is None or not asked:
            raise OrderRefused(
                f"job {job.id[:12]}: what was asked for is not kept on this disk, so it cannot be "
                "repeated from here; order it anew with: datahub order new"
            )
        tiers = {int(dataset_id): tier for dataset_id, tier in asked.get("tiers", {}).items()}
        _, facts = self._facts(asked["datasets"], tiers, asked["vouchers"])
        schema = facts[0].manifest.schema
        if schema.hash != JobSpec.from_dict(kept.terms.spec).schema_hash:
            raise OrderRefused(
                f"job {job.id[:12]}: its datasets have another schema by now; look at it (datahub "
                f"data show {asked['datasets'][0]}) and order anew with: datahub order new"
            )
        quoting.check_files(*kept.model_files, schema, asked["loss"], asked["server_rates"])
        return replace(self._proposed(facts, kept.model_files, asked), question=kept.question)

    def ask(self, datasets: Sequence[int | Dataset], question: str, **settings: Any) -> Quote:
        """Terms of a job that answers `question` (questions.py), checked: nothing is paid yet. The
        other settings are those of `quote`: epsilon, purpose and what money is about. One round,
        in which everybody counts once.
        """
        from datahub.buyer import questions, quoting

        ids = quoting.dataset_ids("datasets", _ids(datasets))
        rows = {row["dataset_id"]: row for row in self.hub.get("/api/v1/datasets", id=ids)}
        schema = self._schema(rows, ids)
        asked = questions.parse(question, schema)
        found = self.quote(
            ids,
            model=questions.model(asked),
            loss=OUTPUT,
            rounds=1,
            local_steps=1,
            learning_rate=1.0,
            clip_norm=asked.length,
            server_momentum=0.0,
            server_rates={},
            **settings,
        )
        # what was read above is the hub's word; the quote's schema is the one on the chain
        if found.spec.schema_hash != schema.hash:
            raise OrderRefused(
                "datasets: the schema that the hub showed for the question is not theirs; nothing "
                "was paid"
            )
        return replace(found, question=question)

    def _schema(self, rows: Mapping[int, Any], ids: Sequence[int]) -> Schema:
        """The schema of the first of these datasets in the hub's `rows` that has one. Raises
        OrderRefused.
        """
        for one in ids:
            try:
                return Manifest.from_dict(rows[one]["manifest"]).schema
            except (KeyError, TypeError, NodeError):
                continue
        raise OrderRefused(f"datasets: the hub has no schema of {', '.join(map(str, ids))}")

    def tiers(self, dataset_id: int) -> list[Tier]:
        """The tiers of a dataset from the chain: price, hours, and what this wallet holds."""
        return access.tiers(self._paying(), dataset_id)

    def access_price(self, dataset_id: int, tier: int = 0, count: int = 1) -> int:
        """What `count` datatokens of a tier cost now, fees included, in base units."""
        return access.price(self._paying(), dataset_id, tier, count).total_units

    def buy_access(
        self, dataset_id: int, tier: int = 0, count: int = 1, *, max_units: int | None = None
    ) -> int:
        """Buy datatokens; the base units paid, at most `max_units`. One of a tier without hours is
        a voucher: `quote(..., vouchers=[dataset_id])` pays with it.
        """
        return access.buy(self._paying(), dataset_id, tier, count, max_units)

    def take_access(self, dataset_id: int, tier: int = 0, count: int = 1) -> None:
        """Take datatokens that a dataset's owner gives away. Raises TransactionRefused."""
        access.take(self._paying(), dataset_id, tier, count)

    def give_access(self, dataset_id: int, to: str, count: int = 1, tier: int = 0) -> None:
        """Give datatokens that this wallet holds to another account."""
        access.give(self._paying(), dataset_id, to, count, tier)

    def use_access(self, dataset_id: int, tier: int) -> int:
        """Use one datatoken of a tier with hours up; when the access ends (unix seconds)."""
        return access.use(self._paying(), dataset_id, tier)

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


def _ids(datasets: Sequence[int | Dataset]) -> Any:
    if not isinstance(datasets, Sequence) or isinstance(datasets, str):
        return datasets
    return [one.id if isinstance(one, Dataset) else one for one in datasets]
