"""Once, five refundable jobs with deadlines a year away froze a hospital's whole lifetime budget;
and a passing fault was signed as a refusal, with the URL of the hospital's chain in it.
"""

from dataclasses import replace

import pytest

from datatokens.chain.connection import connect
from fl_client.errors import BudgetExceeded, DatasetError, LedgerError, NodeError, Refusal
from fl_client.node import config
from fl_client.node.admission import NOT_NOW, admit
from fl_client.node.handlers import make_app
from fl_client.node.policy import Policy
from fl_client.node.room import IDLE_S
from fl_client.node.rounds import train
from fl_client.privacy.ledger import Ledger
from fl_client.protocol import Refused, Signed
from tests.clinic import BUYER, GRAPH, OTHER_BUYER, WEIGHTS, Clinic, accepted, refusal, weights

YEAR = 360 * 24 * 3600


def test_far_deadline__refused_by_default_after_two_weeks(clinic: Clinic) -> None:
    now = connect(clinic.url).now()
    said = refusal(clinic, clinic.paid(deadline=now + YEAR))
    assert "this hospital holds a reservation for at most 1209600 s" in said
    toml = clinic.folder / "node.toml"
    toml.write_text(
        toml.read_text().replace(
            "longest_deadline_s = 1209600 ", f"longest_deadline_s = {YEAR + 60} "
        )
    )
    assert isinstance(
        admit(clinic.room(), clinic.paid(deadline=now + YEAR).to_json(), GRAPH, WEIGHTS), Signed
    )


def test_one_buyer__holds_at_most_three_reservations(clinic: Clinic) -> None:
    jobs = [accepted(clinic, epsilon=0.2) for _ in range(3)]
    said = refusal(clinic, clinic.paid(clinic.spec(epsilon=0.2)))
    assert f"buyer={BUYER[0]} has 3 jobs here that are not done; at most 3" in said
    other = clinic.paid(clinic.spec(epsilon=0.2), buyer=OTHER_BUYER[0], key=OTHER_BUYER[1])
    assert isinstance(admit(clinic.room(), other.to_json(), GRAPH, WEIGHTS), Signed)
    room = clinic.room()
    room.ledger.close_job(jobs[0].job_id.hex())
    again = clinic.paid(clinic.spec(epsilon=0.2))
    assert isinstance(admit(room, again.to_json(), GRAPH, WEIGHTS), Signed)


def test_partner_who_never_answers__reservation_is_free_after_an_hour(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = accepted(clinic, epsilon=2.5)
    assert "lifetime budget" in refusal(clinic, clinic.paid(clinic.spec(epsilon=2.0)))
    assert IDLE_S == 3600
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.node.room.IDLE_S", -1.0)  # the hour is over
        other = clinic.paid(clinic.spec(epsilon=2.0))
        room = clinic.room()
        assert isinstance(admit(room, other.to_json(), GRAPH, WEIGHTS), Signed)
    with pytest.raises(BudgetExceeded, match="what is left of this job needs"):
        train(clinic.room(), frozen.job_id.hex(), 1, weights())
    clinic.room().ledger.close_job(other.job_id.hex())
    train(clinic.room(), frozen.job_id.hex(), 1, weights())  # it fits again, so it goes on


def test_chain_unreachable__is_no_refusal_and_is_over_when_the_chain_is_back(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, room = clinic.paid(), clinic.room()
    with monkeypatch.context() as patch:
        patch.setattr(room, "escrow", type(room.escrow)(gone(clinic), clinic.made.market))
        answer = admit(room, terms.to_json(), GRAPH, WEIGHTS)
    assert answer == Refused(NOT_NOW) and answer.signature == b""
    assert not (clinic.folder / "jobs" / terms.job_id.hex()).exists()
    assert isinstance(admit(room, terms.to_json(), GRAPH, WEIGHTS), Signed)


def gone(clinic: Clinic) -> object:
    """A connection whose other end is not there any more."""
    chain = connect(clinic.url)
    chain._web3.provider.endpoint_uri = "http://user:secret@127.0.0.1:9/"
    return chain


def test_ledger_busy__is_no_refusal_and_is_over_when_it_is_free(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, room = clinic.paid(), clinic.room()

    def busy(*_: object, **__: object) -> None:
        raise LedgerError("the privacy ledger cannot be used (database is locked)")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reserve", busy)
        assert admit(room, terms.to_json(), GRAPH, WEIGHTS) == Refused(NOT_NOW)
    assert isinstance(admit(room, terms.to_json(), GRAPH, WEIGHTS), Signed)


def test_errors__only_a_refusal_may_leave() -> None:
    assert not issubclass(DatasetError, Refusal) and not issubclass(LedgerError, Refusal)
    assert issubclass(BudgetExceeded, Refusal) and issubclass(Refusal, NodeError)


def test_policy__defaults_of_folders_from_before__hold(clinic: Clinic) -> None:
    toml = clinic.folder / "node.toml"
    lines = [
        line
        for line in toml.read_text().splitlines()
        if not line.startswith(("longest_deadline_s", "reservations_per_buyer"))
    ]
    toml.write_text("\n".join(lines))
    policy = config.read(clinic.folder).policy
    assert policy == replace(
        Policy(("*",), ("*",), 4.5, 10), longest_deadline_s=14 * 86400, reservations_per_buyer=3
    )
    assert make_app(clinic.room()) is not None
