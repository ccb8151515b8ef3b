"""Job terms: one document, one hash; one changed byte is another job; signatures bind job, chain
and contract.
"""

import dataclasses
import json
from fractions import Fraction

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from datatokens.errors import SignatureError, TermsError
from datatokens.terms import (
    Attestation,
    DatasetTerm,
    DisputeTerms,
    JobTerms,
    Outcome,
    attestation_message,
    canonical_json,
    check_signature,
    parse_canonical_json,
    privacy_charged,
    rejection_message,
    sign,
)
from tests.conftest import NODE_KEYS, terms

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json__any_value__round_trips(value: object) -> None:
    assert parse_canonical_json(canonical_json(value)) == value


@pytest.mark.parametrize(
    "raw", [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1,"a":1}', b"[NaN]", b"\xff", b"[1"]
)
def test_parse_canonical_json__not_canonical__refused(raw: bytes) -> None:
    with pytest.raises(TermsError):
        parse_canonical_json(raw)


def test_terms__round_trip__keeps_job_id() -> None:
    one = terms()
    assert JobTerms.from_json(one.to_json()).job_id == one.job_id


def test_terms__any_changed_byte__is_refused_or_another_job() -> None:
    one = terms()
    raw = one.to_json()
    for i in range(0, len(raw), 7):
        changed = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
        try:
            other = JobTerms.from_json(changed)
        except TermsError:
            continue
        assert other.job_id != one.job_id


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("quorum", 0, "quorum=0"),
        ("quorum", 5, "quorum=5"),
        ("fee_units", -1, "fee_units=-1"),
        ("reward_units", 2**96, "reward_units="),
        ("buyer", "0x12", "buyer='0x12'"),
        ("deadline", True, "deadline=True"),
        ("deadline", 1.5, "deadline=1.5"),
    ],
)
def test_terms__field_out_of_range__is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(TermsError, match=said):
        terms(**{field: value})


def test_terms__unknown_field__is_named() -> None:
    value = json.loads(terms().to_json()) | {"extra": 1}
    with pytest.raises(TermsError, match="extra"):
        JobTerms.from_json(canonical_json(value))


def test_terms__one_key_for_two_datasets__refused() -> None:
    node = str(Account.from_key(NODE_KEYS[0]).address)
    with pytest.raises(TermsError, match="node key of its own"):
        terms(datasets=(DatasetTerm(1, node, 1), DatasetTerm(2, node, 1)), quorum=2)


def test_dataset_term__voucher_with_a_price__refused() -> None:
    with pytest.raises(TermsError, match="price_units=5 must be 0"):
        DatasetTerm(1, "0x" + "1" * 40, 5, True)


def test_terms__with_dispute_and_compute__round_trip_and_another_job() -> None:
    one = terms()
    lines = (
        dataclasses.replace(one.datasets[0], compute_rate_units=3, compute_cap_units=90),
        *one.datasets[1:],
    )
    other = terms(dispute=DisputeTerms(60, "0x" + "1" * 40, 5, 10_000), datasets=lines)
    assert JobTerms.from_json(other.to_json()) == other
    assert other.amount_units == one.amount_units + 90
    assert len({one.job_id, other.job_id, terms(datasets=lines).job_id}) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, "0x" + "1" * 40, 5, 0), "window_s=0"),
        ((60, "0x" + "0" * 40, 5, 0), "zero address"),
        ((60, "0x12", 5, 0), "arbiter='0x12'"),
        ((60, "0x" + "1" * 40, -1, 0), "bond_units=-1"),
        ((60, "0x" + "1" * 40, 5, 10_001), "silent_bps=10001"),
    ],
)
def test_dispute_terms__out_of_range__named(
    arguments: tuple[int, str, int, int], said: str
) -> None:
    with pytest.raises(TermsError, match=said):
        DisputeTerms(*arguments)


outcomes = st.builds(
    Outcome,
    st.integers(0, 2**88 - 1),
    st.integers(0, 2**88 - 1),
    st.integers(0, 2**40 - 1),
    st.integers(0, 2**40 - 1),
)


@given(outcomes)
def test_outcome__word__round_trips(outcome: Outcome) -> None:
    assert Outcome.from_word(outcome.word) == outcome
    assert outcome.word < 2**256


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_privacy_charged__any_spend__never_less_than_it_and_less_than_a_step_more(
    epsilon: float, delta: float
) -> None:
    micro, pico = privacy_charged(epsilon, delta)
    assert Fraction(epsilon) <= Fraction(micro, 10**6) < Fraction(epsilon) + Fraction(1, 10**6)
    assert Fraction(delta) <= Fraction(pico, 10**12) < Fraction(delta) + Fraction(1, 10**12)


@pytest.mark.parametrize(
    "spend", [(-1e-9, 0.0), (float("nan"), 0.0), (float("inf"), 0.0), (1.0, 1.1)]
)
def test_privacy_charged__no_spend_at_all__refused(spend: tuple[float, float]) -> None:
    with pytest.raises(TermsError):
        privacy_charged(*spend)


def attested(of: JobTerms) -> Attestation:
    return Attestation(
        of.job_id, b"\1" * 32, b"\2" * 32, 15, tuple(Outcome(0, i, 1, 1) for i in range(1, 5))
    )


def test_signature__right_key_and_content__passes() -> None:
    one = terms()
    node = str(Account.from_key(NODE_KEYS[0]).address)
    message = attestation_message(one, attested(one))
    check_signature(message, sign(message, NODE_KEYS[0]), node)


def test_signature__other_job_chain_market_key_or_kind__refused() -> None:
    one = terms()
    node = str(Account.from_key(NODE_KEYS[0]).address)
    signature = sign(attestation_message(one, attested(one)), NODE_KEYS[0])
    for other in (
        attestation_message(terms(deadline=1_999_999_999), attested(terms(deadline=1_999_999_999))),
        attestation_message(terms(chain_id=1), attested(one)),
        attestation_message(terms(market="0x" + "1" * 40), attested(one)),
        rejection_message(one, "no"),
    ):
        with pytest.raises(SignatureError):
            check_signature(other, signature, node)
    with pytest.raises(SignatureError, match="not by"):
        message = attestation_message(one, attested(one))
        check_signature(message, sign(message, NODE_KEYS[1]), node)


@given(st.binary(max_size=80))
def test_signature__random_bytes__never_pass_nor_crash(raw: bytes) -> None:
    one = terms()
    with pytest.raises(SignatureError):
        check_signature(
            attestation_message(one, attested(one)),
            raw,
            str(Account.from_key(NODE_KEYS[0]).address),
        )
