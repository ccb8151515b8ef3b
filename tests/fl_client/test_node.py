"""The data room against a real chain: what it admits, what it refuses, and that asking again
changes nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.nodes import KeyState, NodeRegistry
from datatokens.bindings.registry import Listing, Registry, State
from datatokens.bindings.storefront import Storefront
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.errors import SignatureError
from datatokens.terms import (
    DisputeTerms,
    JobTerms,
    acceptance_message,
    canonical_json,
    check_signature,
    rejection_message,
)
from fl_client.data.sources import plain
from fl_client.errors import ConfigError, LedgerError, ProtocolError
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.node import config, entries
from fl_client.node.admission import admit
from fl_client.node.job_folder import write_whole
from fl_client.node.listing import enrol, rotate_key
from fl_client.node.rounds import attest, evaluate, release, train
from fl_client.privacy import accounting
from fl_client.privacy.evaluation import CELLS, IN_FINE, IN_GROUP
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.training import ENGINES
from fl_client.protocol import JobSpec, Refused, Signed, sha256_hex
from fl_client.worker.workers import Worker
from fl_server.report import Round
from fl_server.report import build as build_report
from fl_server.settlement import accept, settle
from tests.clinic import (
    BUYER,
    GRAPH,
    OTHER_BUYER,
    PRICE,
    WEIGHTS,
    Clinic,
    accepted,
    part_of,
    refusal,
    trained,
    weights,
)

OWNER = accounts()[1]


def test_admit__paid_job__is_accepted_and_signed(clinic: Clinic) -> None:
    terms = clinic.paid()
    answer = admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Signed)
    check_signature(acceptance_message(terms), answer.signature, clinic.node)


def test_admit__price_or_compute_other_than_listed__refused(clinic: Clinic) -> None:
    for changes, said in (
        ({"price_units": PRICE - 1}, f"price_units={PRICE - 1} must be {PRICE}"),
        ({"compute_rate_units": 5, "compute_cap_units": 50}, "compute_rate_units=5 must be 0"),
        ({"tier": 1}, "dataset"),
        ({"price_units": 0}, f"price_units=0 must be {PRICE}"),
    ):
        assert said in refusal(clinic, clinic.paid(datasets=(clinic.line(**changes),)))


def test_admit__order_that_still_runs__needs_no_price(clinic: Clinic) -> None:
    owner, buyer = connect(clinic.url, accounts()[1][1]), connect(clinic.url, BUYER[1])
    registry = Registry(owner, clinic.made.registry)
    tier = registry.add_tier(clinic.dataset_id, "MONTH", 5_000_000, 30 * 24 * 3600, 0)
    line = clinic.line(tier=tier, price_units=0)
    assert "price_units=0 must be 5000000" in refusal(clinic, clinic.paid(datasets=(line,)))
    shop = Storefront(buyer, registry.storefront())
    shop.buy_and_order(clinic.dataset_id, tier, BUYER[0], shop.quote(clinic.dataset_id, tier))
    for _ in range(2):  # as often as the buyer likes within its time
        terms = clinic.paid(datasets=(line,))
        assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)
        release(clinic.room(), terms.job_id.hex())
    registry.close_tier(clinic.dataset_id, tier)
    assert f"tier={tier} of dataset {clinic.dataset_id} is closed" in refusal(
        clinic, clinic.paid(datasets=(line,))
    )


def test_admit__a_tier_that_is_not_sold__takes_its_datatoken_or_an_order_and_nothing_else(
    clinic: Clinic,
) -> None:
    """A price of 0 is not a sale (IDatasetRegistry): who names such a tier has not paid by it."""
    owner, buyer = connect(clinic.url, accounts()[1][1]), connect(clinic.url, BUYER[1])
    registry = Registry(owner, clinic.made.registry)
    tier = registry.add_tier(clinic.dataset_id, "GIVEN", 0, 3600, 0)
    line = clinic.line(tier=tier, price_units=0)
    said = f"tier={tier} of dataset {clinic.dataset_id} is not sold"
    assert said in refusal(clinic, clinic.paid(datasets=(line,)))
    registry.mint_tier(clinic.dataset_id, tier, BUYER[0], 2 * 10**18)
    voucher = clinic.paid(datasets=(replace(line, voucher=True),))
    assert isinstance(admit(clinic.room(), voucher.to_json(), GRAPH, WEIGHTS), Signed)
    release(clinic.room(), voucher.job_id.hex())
    datatoken = registry.tier(clinic.dataset_id, tier).datatoken
    Storefront(buyer, registry.storefront()).order(clinic.dataset_id, tier, BUYER[0], datatoken)
    ordered = clinic.paid(datasets=(line,))
    assert isinstance(admit(clinic.room(), ordered.to_json(), GRAPH, WEIGHTS), Signed)


def test_admit__compute_has_a_price__one_minute_at_least_must_be_escrowed(clinic: Clinic) -> None:
    path = clinic.folder / "datasets" / f"{clinic.dataset_id}.json"
    entry = json.loads(path.read_text())
    entry["manifest"]["compute_rate_units"] = 7
    path.write_text(json.dumps(entry))
    short = clinic.paid(datasets=(clinic.line(compute_rate_units=7, compute_cap_units=6),))
    assert "compute_cap_units=6 must be at least 7" in refusal(clinic, short)
    enough = clinic.paid(datasets=(clinic.line(compute_rate_units=7, compute_cap_units=7),))
    assert isinstance(admit(clinic.room(), enough.to_json(), GRAPH, WEIGHTS), Signed)


def test_admit__arbiter_that_the_hospital_does_not_trust__refused(clinic: Clinic) -> None:
    arbiter = accounts()[7][0]
    terms = clinic.paid(dispute=DisputeTerms(3600, arbiter, 5, 0))
    assert f"arbiter={arbiter} is not one that this hospital trusts" in refusal(clinic, terms)
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace("arbiters = []", f'arbiters = ["{arbiter}"]'))
    again = clinic.paid(dispute=DisputeTerms(3600, arbiter, 5, 0))
    assert isinstance(admit(clinic.room(), again.to_json(), GRAPH, WEIGHTS), Signed)


def test_admit__unpaid_job__refused_without_a_signature_and_free_to_be_paid_later(
    clinic: Clinic,
) -> None:
    terms = clinic.terms()
    room = clinic.room()
    answer = admit(room, terms.to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and "holds no money for exactly these terms" in answer.reason
    assert answer.signature == b""
    Escrow(connect(clinic.url, BUYER[1]), clinic.made.market).create_job(terms)
    assert isinstance(admit(room, terms.to_json(), GRAPH, WEIGHTS), Signed)


def test_admit__terms_changed_in_one_byte__are_not_the_paid_ones(clinic: Clinic) -> None:
    raw = clinic.paid().to_json()
    changed = raw.replace(b'"purpose":"research"', b'"purpose":"researcg"')
    answer = admit(clinic.room(), changed, GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and "holds no money for exactly these terms" in answer.reason


def test_admit__other_chain_or_market__refused(clinic: Clinic) -> None:
    for change in ({"chain_id": 1}, {"market": "0x" + "1" * 40}):
        answer = admit(clinic.room(), clinic.terms(**change).to_json(), GRAPH, WEIGHTS)
        assert (
            isinstance(answer, Refused)
            and "this node serves" in answer.reason
            and answer.signature == b""
        )


def test_admit__wrong_buyer__refused(clinic: Clinic) -> None:
    text = (clinic.folder / "node.toml").read_text()
    (clinic.folder / "node.toml").write_text(
        text.replace('buyers = ["*"]', f'buyers = ["{BUYER[0]}"]')
    )
    assert "is not on this hospital's list" in refusal(
        clinic, clinic.paid(buyer=OTHER_BUYER[0], key=OTHER_BUYER[1])
    )
    assert isinstance(admit(clinic.room(), clinic.paid().to_json(), GRAPH, WEIGHTS), Signed)


def test_admit__more_epsilon_than_the_lifetime_budget_leaves__refused(clinic: Clinic) -> None:
    assert isinstance(
        admit(clinic.room(), clinic.paid(clinic.spec(epsilon=2.5)).to_json(), GRAPH, WEIGHTS),
        Signed,
    )
    said = refusal(clinic, clinic.paid(clinic.spec(epsilon=2.0)))
    assert "the lifetime budget is 3" in said or "lifetime budget of 3" in said


def test_admit__more_epsilon_than_one_job_may_cost__refused(clinic: Clinic) -> None:
    assert "one job may cost" in refusal(clinic, clinic.paid(clinic.spec(epsilon=6.0)))


def test_admit__cohort_under_the_floor__refused(clinic: Clinic) -> None:
    text = (clinic.folder / "node.toml").read_text()
    (clinic.folder / "node.toml").write_text(
        text.replace("minimum_persons = 10", "minimum_persons = 41")
    )
    assert "under this hospital's floor of 41" in refusal(clinic, clinic.paid())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_hash": "0" * 64}, "schema_hash"),
        ({"loss": "anything"}, "loss='anything' must be one of"),
        ({"graph_hash": "0" * 64}, "graph_hash"),
    ],
)
def test_admit__spec_that_does_not_fit__says_which_field(
    clinic: Clinic, change: dict[str, Any], said: str
) -> None:
    assert said in refusal(clinic, clinic.paid(clinic.spec(**change)))


def test_admit__persons_that_were_not_released__refused(clinic: Clinic) -> None:
    assert "persons=400 must be 40" in refusal(
        clinic, clinic.paid(clinic.spec(persons={clinic.dataset_id: 400}))
    )


@pytest.mark.parametrize(
    ("graph", "start", "said"),
    [
        (
            GRAPH.replace(b"linear.default", b"from_file.default"),
            WEIGHTS,
            "'from_file.default' is not allowed",
        ),
        (b"\x80\x04\x95junk.", WEIGHTS, "pickle"),
        (GRAPH, b"\x80\x04\x95junk.", "pickle"),
        (GRAPH, b"PK\x03\x04junk", "zip"),
    ],
)
def test_admit__hostile_model_file__refused(
    clinic: Clinic, graph: bytes, start: bytes, said: str
) -> None:
    spec = clinic.spec(graph_hash=sha256_hex(graph), weights_hash=sha256_hex(start))
    assert said in refusal(clinic, clinic.paid(spec), graph, start)


def test_admit__asked_again_after_a_restart__gives_the_same_answer(clinic: Clinic) -> None:
    terms = clinic.paid()
    first = admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS)
    assert admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS) == first


def test_data_room__table_changed_since_listing__is_skipped_and_says_what_to_do(
    clinic: Clinic,
) -> None:
    (entry,) = config.read(clinic.folder).datasets
    entry.source.file.write_text(entry.source.file.read_text() + "\n1,1,1\n")
    room = clinic.room()
    assert room.datasets == []
    assert (
        f"has changed since it was listed; make it the next version of this dataset: datahub node "
        f"replace-dataset FOLDER {clinic.dataset_id}" in room.skipped[str(clinic.dataset_id)]
    )
    answer = admit(room, clinic.paid().to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused)
    assert answer.reason == f"dataset_id={clinic.dataset_id} is not served by this node"
    assert answer.signature == b"", "it may be served again in a minute"


def test_train__same_round_again_even_after_a_restart__same_reply_and_one_charge(
    clinic: Clinic,
) -> None:
    job = accepted(clinic).job_id.hex()
    first = train(clinic.room(), job, 1, weights())
    again = train(clinic.room(), job, 1, weights())
    assert first == again
    assert model_hash(from_safetensors(first.model)) != model_hash(weights())
    key = config.read(clinic.folder).datasets[0].name
    assert (
        sum(
            c.steps
            for c in Ledger(clinic.folder / "ledger.sqlite").history(key)
            if c.what == "training"
        )
        == 1
    )


def test_train__engine_of_node_toml__trains_and_another_name_is_refused(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accepted(clinic).job_id.hex()
    toml = clinic.folder / "node.toml"
    text = toml.read_text()
    assert 'engine = "book-keeping"' in text
    used, tell = [], Worker.tell
    monkeypatch.setattr(
        Worker,
        "tell",
        lambda self, task, stops: (
            used.append(getattr(task, "engine", "")) or tell(self, task, stops)
        ),
    )
    toml.write_text(text.replace('engine = "book-keeping"', 'engine = "hooks"'))
    trained = from_safetensors(train(clinic.room(), job, 1, weights()).model)
    assert used == ["hooks", "", ""], "the check; a cohort and a round of what was checked"
    assert model_hash(trained) != model_hash(weights())
    toml.write_text(text.replace('engine = "book-keeping"', 'engine = "ghost"'))
    with pytest.raises(ConfigError, match=f"engine='ghost' must be {' or '.join(ENGINES)}"):
        config.read(clinic.folder)
    toml.write_text(text.replace('engine = "book-keeping"', ""))
    assert config.read(clinic.folder).engine == "book-keeping", (
        "folders made before there was a choice"
    )


def test_train__same_round_with_another_model__refused(clinic: Clinic) -> None:
    job = accepted(clinic).job_id.hex()
    room = clinic.room()
    train(room, job, 1, weights())
    with pytest.raises(LedgerError):
        train(room, job, 1, {name: array + 1 for name, array in weights().items()})


@pytest.mark.parametrize("number", [0, 3, -1, True, "1"])
def test_train__round_outside_the_plan__refused(clinic: Clinic, number: Any) -> None:
    job = accepted(clinic).job_id.hex()
    with pytest.raises(ProtocolError, match="round="):
        train(clinic.room(), job, number, weights())


def test_train__job_that_was_not_accepted__refused(clinic: Clinic) -> None:
    with pytest.raises(ProtocolError, match="was not accepted"):
        train(clinic.room(), "ab" * 32, 1, weights())
    with pytest.raises(ProtocolError, match="hexadecimal"):
        train(clinic.room(), "../../etc/passwd", 1, weights())


@pytest.mark.parametrize("bad", ["names", "shape", "nan"])
def test_train__parameters_that_do_not_fit__cost_nothing(clinic: Clinic, bad: str) -> None:
    job = accepted(clinic).job_id.hex()
    arrays = weights()
    if bad == "names":
        arrays["extra"] = np.zeros(1, np.float32)
    elif bad == "shape":
        arrays["bias"] = np.zeros(2, np.float32)
    else:
        arrays["bias"] = np.array([np.nan], np.float32)
    with pytest.raises(ProtocolError, match="model:"):
        train(clinic.room(), job, 1, arrays)
    key = config.read(clinic.folder).datasets[0].name
    assert not [
        c for c in Ledger(clinic.folder / "ledger.sqlite").history(key) if c.what == "training"
    ]


def test_evaluate__asked_again_after_a_restart__the_same_table_for_one_charge(
    clinic: Clinic,
) -> None:
    terms, spec, arrays, part = trained(clinic)
    job, key = terms.job_id.hex(), config.read(clinic.folder).datasets[0].name
    before = Ledger(clinic.folder / "ledger.sqlite").history(key)
    first = evaluate(clinic.room(), job, arrays)
    assert evaluate(clinic.room(), job, arrays) == first and len(first.scores) == CELLS
    after = Ledger(clinic.folder / "ledger.sqlite").history(key)
    assert sum(c.steps for c in after) == sum(c.steps for c in before) + 1
    # all that the job reserved is spent now, and no more than its plan
    assert first.epsilon_job == pytest.approx(
        accounting.epsilon(spec.plan.charges(), spec.plan.delta)
    )
    assert part.epsilon_job is not None and first.epsilon_job > part.epsilon_job
    with pytest.raises(LedgerError):
        evaluate(clinic.room(), job, {name: array + 1 for name, array in arrays.items()})


def test_evaluate__before_the_last_round__refused_and_costs_nothing(clinic: Clinic) -> None:
    job = accepted(clinic).job_id.hex()
    room = clinic.room()
    arrays = from_safetensors(train(room, job, 1, weights()).model)
    key = config.read(clinic.folder).datasets[0].name
    before = room.ledger.history(key)
    with pytest.raises(ProtocolError, match="after 2 rounds, not before"):
        evaluate(room, job, arrays)
    assert room.ledger.history(key) == before


def test_attest__table_that_the_node_released__must_be_in_the_report_as_it_was(
    clinic: Clinic,
) -> None:
    terms, spec, arrays, part = trained(clinic)
    job, ours = terms.job_id.hex(), clinic.dataset_id
    told = evaluate(clinic.room(), job, arrays)
    names = ("epsilon_job", "epsilon_lifetime", "delta_lifetime", "log_head")
    figures = {n: getattr(told, n) for n in names}
    honest = replace(part, scores=list(told.scores), **figures)
    spoiled = [*told.scores[:-1], told.scores[-1] + 1]
    for wrong, said in (
        (replace(honest, scores=spoiled), "scores"),
        (replace(honest, scores=None), "scores"),
        (part, "epsilon"),
        (replace(honest, log_head=part.log_head), "log_head"),
        (replace(honest, no_walls="files, network"), "no_walls"),
    ):
        report, _ = build_report(terms, spec, model_hash(arrays), [], {ours: wrong})
        with pytest.raises(ProtocolError, match=said):
            attest(clinic.room(), job, arrays, report)
    report, _ = build_report(terms, spec, model_hash(arrays), [], {ours: honest})
    better = json.loads(report)
    assert better["evaluation"]["calibration"][0]["from"] == 0
    better["evaluation"]["calibration"][0]["to"] = 1
    with pytest.raises(ProtocolError, match="evaluation does not follow"):
        attest(clinic.room(), job, arrays, canonical_json(better))
    assert attest(clinic.room(), job, arrays, report).signature


def test_data_room__patient_column__patients_are_the_unit_in_rounds_and_tables(
    clinic: Clinic,
) -> None:
    (entry,) = config.read(clinic.folder).datasets
    head, *rows = entry.source.file.read_text().split("\n")
    entry.source.file.write_text(
        "\n".join([f"{head},who", *(f"{row},p{i // 2}" for i, row in enumerate(rows))])
    )
    manifest = replace(entry.manifest, unit="patient", records_per_patient=2)
    clinic.write(replace(entry, manifest=manifest, source=plain(entry.source.file, "who")))
    room = clinic.room()
    assert room.records[clinic.dataset_id].persons == 20
    terms, spec, arrays, _ = trained(clinic)
    scores = evaluate(clinic.room(), terms.job_id.hex(), arrays).scores
    # sums of the noised cells around the true 20 in groups and in cells: six standard deviations
    expected = 20 * (IN_GROUP + IN_FINE)
    assert abs(sum(scores) - expected) < 6 * CELLS**0.5 * spec.plan.score_noise_multiplier
    other = plain(entry.source.file, "whose")
    entries.update(clinic.folder, clinic.dataset_id, source=other)
    assert "how its table is read" in clinic.room().skipped[str(clinic.dataset_id)]


def test_attest__honest_report__is_signed_and_settles(clinic: Clinic) -> None:
    terms, spec, arrays, part = trained(clinic)
    rounds = [Round(1, 0.7, 0.1), Round(2, 0.6, 0.1)]
    report, worked = build_report(
        terms, spec, model_hash(arrays), rounds, {clinic.dataset_id: part}
    )
    answer = attest(clinic.room(), terms.job_id.hex(), arrays, report)
    outcome = {
        "model_hash": model_hash(arrays).hex(),
        "worked": worked,
        "signatures": {clinic.node: answer.signature.hex()},
    }
    escrow = Escrow(connect(clinic.url, accounts()[0][1]), clinic.made.market)
    accepted_by = json.loads(
        (clinic.folder / "jobs" / terms.job_id.hex() / "answer.json").read_text()
    )["signature"]
    for _ in range(2):  # a hub that was killed in between does it again
        accept(escrow, terms, {clinic.node: accepted_by, "0x" + "1" * 40: "00"})
    settle(escrow, terms, outcome, report)
    assert escrow.job(terms.job_id).status == "settled"
    attested = escrow.attested(terms.job_id)
    assert attested is not None
    [charged] = attested.outcomes
    assert (
        charged.epsilon_micro == math.ceil(part.epsilon_lifetime * 10**6)
        and charged.delta_pico == 10**7 + 1
    )


def test_attest__figures_that_the_node_knows_better__refused(clinic: Clinic) -> None:
    terms, spec, arrays, part = trained(clinic)
    job, ours = terms.job_id.hex(), clinic.dataset_id
    for wrong, said in (
        (replace(part, epsilon_job=part.epsilon_job / 2), "epsilon_job"),
        (replace(part, epsilon_lifetime=0.1), "epsilon_lifetime"),
        (replace(part, delta_lifetime=1e-6), "delta_lifetime"),
        (replace(part, compute_seconds=part.compute_seconds + 60), "compute_seconds"),
        (replace(part, rounds_answered=1), "the quorum is 1"),
        (replace(part, unit="patient"), "unit='patient' of this node must be record"),
    ):
        report, _ = build_report(terms, spec, model_hash(arrays), [], {ours: wrong})
        with pytest.raises(ProtocolError, match=said):
            attest(clinic.room(), job, arrays, report)
    other = {name: array + 1 for name, array in arrays.items()}
    report, _ = build_report(terms, spec, model_hash(arrays), [], {ours: part})
    with pytest.raises(ProtocolError, match="model_hash"):
        attest(clinic.room(), job, other, report)
    with pytest.raises(ProtocolError, match="reward_units"):
        attest(
            clinic.room(), job, arrays, report.replace(b'"reward_units":100', b'"reward_units":99')
        )


def test_attest__a_second_different_result__is_never_signed(clinic: Clinic) -> None:
    terms, spec, arrays, part = trained(clinic)
    job = terms.job_id.hex()
    report, _ = build_report(terms, spec, model_hash(arrays), [], {clinic.dataset_id: part})
    first = attest(clinic.room(), job, arrays, report)
    assert attest(clinic.room(), job, arrays, report) == first
    other = {name: array + 1 for name, array in arrays.items()}
    report, _ = build_report(terms, spec, model_hash(other), [], {clinic.dataset_id: part})
    with pytest.raises(ProtocolError, match="already signed another result"):
        attest(clinic.room(), job, other, report)


def test_attest__before_the_last_round__refused(clinic: Clinic) -> None:
    terms = accepted(clinic)
    spec = JobSpec.from_dict(terms.spec)
    reply = train(clinic.room(), terms.job_id.hex(), 1, weights())
    arrays = from_safetensors(reply.model)
    part = part_of(clinic, spec.rounds, reply, reply.compute_seconds)
    report, _ = build_report(terms, spec, model_hash(arrays), [], {clinic.dataset_id: part})
    with pytest.raises(ProtocolError, match="only 1 of 2 rounds"):
        attest(clinic.room(), terms.job_id.hex(), arrays, report)


def test_release__frees_the_reservation_and_ends_the_job(clinic: Clinic) -> None:
    terms = accepted(clinic, epsilon=2.5)
    key = config.read(clinic.folder).datasets[0].name
    ledger = Ledger(clinic.folder / "ledger.sqlite")
    assert ledger.epsilon_committed(key) > 2.4
    release(clinic.room(), terms.job_id.hex())
    assert ledger.epsilon_committed(key) == 0
    with pytest.raises(LedgerError):
        train(clinic.room(), terms.job_id.hex(), 1, weights())


def test_refusal__signature_of_another_node__does_not_pass(clinic: Clinic) -> None:
    terms = clinic.paid(clinic.spec(epsilon=6.0))
    answer = admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS)
    with pytest.raises(SignatureError):
        check_signature(rejection_message(terms, answer.reason), answer.signature, "0x" + "2" * 40)


def nodes_of(clinic: Clinic) -> NodeRegistry:
    return NodeRegistry(connect(clinic.url), clinic.made.registry)


def test_admit__what_the_market_would_not_take__is_refused_before_anything_is_trained(
    clinic: Clinic,
) -> None:
    registry = Registry(connect(clinic.url, OWNER[1]), clinic.made.registry)
    said = f"dataset {clinic.dataset_id} is paused or retired, or does not serve"
    registry.set_state(clinic.dataset_id, State.PAUSED)
    assert said in refusal(clinic, clinic.paid())
    registry.set_state(clinic.dataset_id, State.ACTIVE)
    registry.set_listing(clinic.dataset_id, [BUYER[0]], Listing.DENIED)
    assert said in refusal(clinic, clinic.paid())
    terms = clinic.paid(buyer=OTHER_BUYER[0], key=OTHER_BUYER[1])
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)


def test_enrol__new_node__its_key_and_machine_are_in_the_node_registry_once(clinic: Clinic) -> None:
    owner = connect(clinic.url, OWNER[1])
    node, nodes = config.read(clinic.folder), nodes_of(clinic)
    hospital = enrol(node, owner)
    assert enrol(node, owner) == hospital
    status = nodes.status(node.node_address)
    assert (status.state, status.hospital_id, status.owner) == (
        KeyState.ACTIVE,
        hospital,
        owner.address,
    )
    with pytest.raises(ConfigError, match=f"serves hospital {hospital} of {owner.address}, not of"):
        enrol(node, connect(clinic.url, accounts()[2][1]))


def attested_with_the_old_key(clinic: Clinic) -> tuple[JobTerms, dict[str, Any]]:
    """A job that was trained before, and attested now."""
    terms, spec, arrays, part = trained(clinic)
    rounds = [Round(1, 0.7, 0.1), Round(2, 0.6, 0.1)]
    report, worked = build_report(
        terms, spec, model_hash(arrays), rounds, {clinic.dataset_id: part}
    )
    path = clinic.folder / "jobs" / terms.job_id.hex() / "answer.json"
    escrow = Escrow(connect(clinic.url, accounts()[0][1]), clinic.made.market)
    old = terms.datasets[0].node
    accept(escrow, terms, {old: json.loads(path.read_text())["signature"]})
    rotate_key(config.read(clinic.folder), OWNER[1], 3600, False)
    answer = attest(clinic.room(), terms.job_id.hex(), arrays, report)
    outcome = {
        "model_hash": model_hash(arrays).hex(),
        "worked": worked,
        "signatures": {old: answer.signature.hex()},
    }
    settle(escrow, terms, outcome, report)
    return terms, {"status": escrow.job(terms.job_id).status}


def test_rotate_key__job_under_way__is_settled_with_the_old_key_and_the_next_uses_the_new_one(
    clinic: Clinic,
) -> None:
    enrol(config.read(clinic.folder), connect(clinic.url, OWNER[1]))
    terms, found = attested_with_the_old_key(clinic)
    assert found["status"] == "settled"
    now, old = config.read(clinic.folder), terms.datasets[0].node
    assert now.node_address != old
    assert set(now.node_keys) == {now.node_address, old}
    assert (
        Registry(connect(clinic.url), clinic.made.registry).dataset(clinic.dataset_id).node
        == now.node_address
    )
    assert {nodes_of(clinic).status(key).state for key in now.node_keys} == {KeyState.ACTIVE}
    late = clinic.paid(
        datasets=(clinic.line(node=old),)
    )  # quoted before, paid now, within the overlap
    assert isinstance(admit(clinic.room(), late.to_json(), GRAPH, WEIGHTS), Signed)
    release(clinic.room(), late.job_id.hex())
    new = clinic.paid()
    answer = admit(clinic.room(), new.to_json(), GRAPH, WEIGHTS)
    check_signature(acceptance_message(new), answer.signature, now.node_address)


def test_rotate_key__stolen__old_key_is_dead_and_what_it_accepted_is_taken_back(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = clinic.folder / "jobs" / ("0" * 64) / "terms.json"  # before all the others
    write_whole(damaged, b"{")
    enrol(config.read(clinic.folder), connect(clinic.url, OWNER[1]))
    terms = accepted(clinic)
    escrow, old = Escrow(connect(clinic.url, accounts()[0][1]), clinic.made.market), clinic.node
    path = clinic.folder / "jobs" / terms.job_id.hex() / "answer.json"
    accept(escrow, terms, {old: json.loads(path.read_text())["signature"]})
    rotate_key(config.read(clinic.folder), OWNER[1], 3600, True)
    assert nodes_of(clinic).status(old).state is KeyState.REVOKED
    assert escrow.job(terms.job_id).accepted == 0
    assert "is not taken back: job 000000000000: terms.json" in caplog.text
    late = clinic.paid(datasets=(clinic.line(node=old),))
    assert f"the node key {old} is revoked in the node registry" in refusal_by(clinic, late, old)


def refusal_by(clinic: Clinic, terms: JobTerms, node: str) -> str:
    answer = admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused)
    check_signature(rejection_message(terms, answer.reason), answer.signature, node)
    return answer.reason


@pytest.mark.parametrize(
    "step",
    ["fl_client.node.listing.promote_next_key", "datatokens.bindings.registry.Registry.set_node"],
)
def test_rotate_key__cut_off__goes_on_where_it_was(
    clinic: Clinic, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(config.read(clinic.folder), connect(clinic.url, OWNER[1]))
    old = clinic.node

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, cut)
        with pytest.raises(KeyboardInterrupt):
            rotate_key(config.read(clinic.folder), OWNER[1], 60, False)
    rotate_key(config.read(clinic.folder), OWNER[1], 60, False)
    now = config.read(clinic.folder)
    assert old in now.node_keys
    assert (
        Registry(connect(clinic.url), clinic.made.registry).dataset(clinic.dataset_id).node
        == now.node_address
    )
    status = nodes_of(clinic).status(now.node_address)
    assert (status.state, status.hospital_id) == (
        KeyState.ACTIVE,
        nodes_of(clinic).status(old).hospital_id,
    )
