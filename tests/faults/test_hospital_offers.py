"""What a node will refuse is said before money moves: signed, for this market alone, in agreement
with its own admission, and asked by the hub at the quote.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.errors import SignatureError, TermsError
from datatokens.terms import DisputeTerms
from fl_client.errors import ConfigError, PolicyRefusal
from fl_client.node import offer as offers
from fl_client.node.offer import Asked, Offer, asked, banded, objections
from fl_client.node.policy import Request, admit
from fl_client.node.publishing import GOOD_FOR_S, Publisher, make
from fl_client.privacy.accounting import epsilon
from fl_client.protocol import JobSpec
from tests.clinic import BUYER, OTHER_BUYER, Clinic, accepted, refusal

ONE, OTHER, ARBITER = BUYER[0], OTHER_BUYER[0], accounts()[7][0]
OFFER = Offer(
    dataset_id=3,
    node=accounts()[2][0],
    state="open",
    max_epsilon_per_job=2.0,
    epsilon_left=1.5,
    delta=1e-5,
    buyers=(ONE,),
    purposes=("research", "care"),
    arbiters=(ARBITER,),
    minimum_persons=20,
    longest_deadline_s=7200,
    max_job_minutes=10,
    operations_per_second=1e10,
    issued_at=1000,
    valid_until=2000,
)


@given(
    st.builds(
        Request,
        buyer=st.sampled_from([ONE, OTHER]),
        purpose=st.sampled_from(["research", "Care", "advertising"]),
        epsilon=st.sampled_from([0.5, 2.0, 2.01]),
        delta=st.sampled_from([1e-6, 1e-5, 1e-4]),
        persons=st.sampled_from([19, 20, 500]),
        deadline_s=st.sampled_from([600, 7200, 7201]),
        arbiter=st.sampled_from([None, ARBITER, OTHER]),
    )
)
def test_whatever_the_policy_refuses_the_offer_names__and_nothing_else(request: Request) -> None:
    named = objections(OFFER, Asked(request, None))
    try:
        admit(OFFER.policy, request, OFFER.delta)
    except PolicyRefusal as error:
        assert named[0] == str(error)
    else:
        assert named == []


@pytest.mark.parametrize(
    ("changes", "epsilon_whole", "operations", "said"),
    [
        ({"state": "paused"}, None, None, "it is paused and takes no job now"),
        ({}, 1.51, None, "epsilon=1.510 is more than its lifetime budget leaves, at most 1.5"),
        ({}, None, 1e13, "the job takes 17 minutes there; it gives a job 10 minutes"),
        ({"max_job_minutes": 30}, None, 1e13, "16.7 minutes there; 10.0 minutes are left"),
    ],
)
def test_objections__beyond_the_policy__are_named(
    changes: dict, epsilon_whole: float | None, operations: float | None, said: str
) -> None:
    request = Request(ONE, "research", 1.0, 1e-5, 40, 600)
    (named,) = objections(replace(OFFER, **changes), Asked(request, epsilon_whole, operations))
    assert said in named
    assert objections(OFFER, Asked(request, 1.5, 1e12)) == []


def test_offer_is_changed_or_taken_to_another_market_or_chain__signature_fails() -> None:
    key, market, other = bytes.fromhex(accounts()[2][1].removeprefix("0x")), ARBITER, OTHER
    signature = offers.signed(OFFER, 1337, market, key)
    offers.check(OFFER, 1337, market, signature)
    for offer, chain_id, where in (
        (replace(OFFER, epsilon_left=8.0), 1337, market),
        (OFFER, 1, market),
        (OFFER, 1337, other),
        (replace(OFFER, node=OTHER), 1337, market),
    ):
        with pytest.raises(SignatureError):
            offers.check(offer, chain_id, where, signature)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_id", 2**63),
        ("node", "0x12"),
        ("state", "retired"),
        ("max_epsilon_per_job", "2"),
        ("epsilon_left", -1),
        ("delta", 10**70),
        ("buyers", ["anybody"]),
        ("purposes", ["x"] * 1001),
        ("purposes", ["x" * 201]),
        ("arbiters", {}),
        ("minimum_persons", True),
        ("longest_deadline_s", 1.5),
        ("issued_at", -1),
        ("valid_until", 1000 + 24 * 3600 + 1),
        ("operations_per_second", None),
        ("more", 1),
    ],
)
def test_malformed_offer__refused_naming_the_field(field: str, value: object) -> None:
    assert Offer.from_json(OFFER.to_json()) == OFFER
    document = json.loads(OFFER.to_json()) | {field: value}
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(TermsError, match=field if field != "more" else "exactly the fields"):
        Offer.from_json(raw)


def test_offer_of_100000_brackets_or_a_megabyte__refused() -> None:
    for raw in (b"[" * 30_000 + b"]" * 30_000, b"[" * 100_000, b'"' + b"x" * 1_000_000 + b'"'):
        with pytest.raises(TermsError):
            Offer.from_json(raw)


@given(st.floats(0, 8), st.sampled_from([0.5, 3.0, 8.0]))
def test_epsilon_left__banded__never_says_less_and_only_one_of_eleven_numbers(
    left: float, lifetime: float
) -> None:
    left = min(left, lifetime)
    shown = banded(left, lifetime)
    assert left - 1e-9 * lifetime <= shown <= left + lifetime / 10 + 1e-9
    assert round(shown / lifetime * 10, 6) in range(11)


def test_node_offers_what_its_ledger_leaves__a_job_that_fits_is_never_refused_by_it(
    clinic: Clinic,
) -> None:
    """Lifetime 3; what is left is what fits, not what a subtraction says."""
    room = clinic.room()
    (entry,) = room.datasets
    before = room.ledger.epsilon_left(entry.name)
    assert 2.5 < before <= 3.01
    accepted(clinic, epsilon=2.0)
    left = room.ledger.epsilon_left(entry.name)
    assert 0.9 < left < before
    offer = make(room, entry, 1000)
    assert offer is not None and left <= offer.epsilon_left <= left + 0.3 + 1e-6
    # the largest that fits is admitted, one that the offer refuses is not
    fitting = clinic.paid(clinic.spec(epsilon=left * 0.98))
    too_much = clinic.paid(clinic.spec(epsilon=offer.epsilon_left * 1.01))
    job = asked(too_much, entry.dataset_id, offer.delta, connect(clinic.url).now())
    assert "lifetime budget leaves" in objections(offer, job)[0]
    assert "lifetime budget of 3" in refusal(clinic, too_much)
    job = asked(fitting, entry.dataset_id, offer.delta, connect(clinic.url).now())
    assert objections(offer, job) == []
    accepted_too = clinic.spec(epsilon=left * 0.98)
    assert epsilon(accepted_too.plan.charges(), 1e-5) <= left
    accepted(clinic, epsilon=left * 0.98)


def test_asked__of_terms__is_what_admission_works_out(clinic: Clinic) -> None:
    dispute = DisputeTerms(3600, ARBITER, 10, 5000)
    terms = clinic.terms(clinic.spec(purpose="care"), dispute=dispute)
    job = asked(terms, clinic.dataset_id, 1e-5, terms.deadline - 100.5)
    plan = JobSpec.from_dict(terms.spec).plan
    expected = epsilon(plan.charges(), plan.delta)
    assert job == Asked(Request(ONE, "care", expected, 1e-5, 40, 100, ARBITER), expected)


def test_paused_dataset_is_offered_as_paused__retired_one_not_at_all(clinic: Clinic) -> None:
    room = clinic.room()
    (entry,) = room.datasets
    registry = Registry(connect(clinic.url, accounts()[1][1]), clinic.made.registry)
    registry.set_state(clinic.dataset_id, State.PAUSED)
    offer = make(room, entry, 1000)
    assert offer is not None and offer.state == "paused"
    registry.set_state(clinic.dataset_id, State.RETIRED)
    assert make(room, entry, 1000) is None


def test_publisher__sends_what_changed_and_what_runs_out__nothing_else(clinic: Clinic) -> None:
    room, sent = clinic.room(), []
    publisher = Publisher(room, lambda dataset_id, body: sent.append((dataset_id, body)))
    publisher._send(publisher.due(1000))
    (dataset_id, body) = sent.pop()
    offer = Offer.from_json(body["offer"].encode())
    assert dataset_id == offer.dataset_id == clinic.dataset_id and offer.node == clinic.node
    offers.check(offer, clinic.made.chain_id, clinic.made.market, bytes.fromhex(body["signature"]))
    assert publisher.due(1010) == [], "nothing has changed"
    accepted(clinic, epsilon=1.5)
    (changed,) = publisher.due(1020)
    assert changed.epsilon_left < offer.epsilon_left
    publisher._send([changed])
    assert publisher.due(1020 + GOOD_FOR_S // 2 - 1) == []
    assert len(publisher.due(1020 + GOOD_FOR_S // 2 + 1)) == 1, "before it runs out"


def test_hub_takes_no_offers__is_logged_once_and_stops_nothing(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("the hub refused: no")

    publisher = Publisher(clinic.room(), refuse)
    for now in (1000, 1001, 1002):
        publisher._send(publisher.due(now))
    said = [r.message for r in caplog.records if "offers" in r.message]
    assert said == ["the hub does not take this node's offers: the hub refused: no"]
