"""The wire form: what one side builds the other reads, and nothing else passes."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fl_client import protocol
from fl_client.errors import ProtocolError
from fl_client.protocol import (
    Admit,
    Attest,
    Evaluate,
    JobSpec,
    Refused,
    Release,
    Released,
    Scored,
    Signed,
    Train,
    Trained,
    from_record,
    pack,
    read_reply,
    to_record,
    unpack,
)
from tests.conftest import spec

ROOT = Path(__file__).parents[2]
TRAINED = Trained(b"model", -0.5, 1.0, 2.0, 1e-5, "patient", 0.1, "cpu")
MESSAGES = [
    Admit(b"terms", b"graph", b"weights"),
    Train("ab" * 32, 3, b"model"),
    Evaluate("ab" * 32, b"model"),
    Attest("ab" * 32, b"model", b"report"),
    Release("ab" * 32),
    Refused("no budget is left", b"signature"),
    Signed(b"signature"),
    TRAINED,
    Scored((1.0, -2.5, 3.0), 1.0, 2.0, 1e-5),
    Released(),
]
every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
number = st.floats(-1e12, 1e12)
words = st.builds(
    Trained,
    st.binary(max_size=200),
    number,
    number,
    number,
    number,
    st.text(max_size=20),
    number,
    st.text(max_size=80),
)


@every_message
def test_record__through_flower_and_back__is_the_same_message(message: Any) -> None:
    assert from_record(type(message), ConfigRecord(to_record(message))) == message
    assert unpack(type(message), pack(message)) == message


@given(words)
def test_pack__any_reply__comes_back_bit_for_bit(reply: Trained) -> None:
    assert unpack(Trained, pack(reply)) == reply
    assert from_record(Trained, ConfigRecord(to_record(reply))) == reply


@every_message
def test_from_record__a_field_less_or_more__refused(message: Any) -> None:
    record = to_record(message)
    for key in record:
        with pytest.raises(ProtocolError, match="must have exactly the fields"):
            from_record(type(message), {k: v for k, v in record.items() if k != key})
    with pytest.raises(ProtocolError, match="must have exactly the fields"):
        from_record(type(message), record | {"persons": 1})


@every_message
def test_from_record__a_field_of_another_type__refused_by_its_name(message: Any) -> None:
    record = to_record(message)
    others: list[Any] = [True, 1, 0.5, "text", b"bytes", ["text"], [0.5, 1], None]
    for key, value in record.items():
        for other in others:
            if type(other) is not type(value) or isinstance(value, list):
                with pytest.raises(ProtocolError, match=f"^{re.escape(key)}="):
                    from_record(type(message), record | {key: other})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.1e12])
def test_record__a_number_that_is_none__neither_sent_nor_read(bad: float) -> None:
    for key in [k for k, v in to_record(TRAINED).items() if isinstance(v, float)]:
        with pytest.raises(ProtocolError, match=f"{key}=.* must be a finite number"):
            from_record(Trained, to_record(TRAINED) | {key: bad})
    with pytest.raises(ProtocolError, match="loss="):
        to_record(replace(TRAINED, loss=bad))
    with pytest.raises(ProtocolError, match="scores="):
        to_record(Scored((0.0, bad), 1.0, 1.0, 0.0))


@pytest.mark.parametrize(
    "message",
    [
        Refused("x" * (protocol.MAX_REASON + 1)),
        Signed(b"x" * 1025),
        Release("a" * 65),
        Scored((0.0,) * 4097, 1.0, 1.0, 0.0),
        replace(TRAINED, unit="x" * 21),
    ],
    ids=lambda m: type(m).__name__,
)
def test_record__longer_than_the_field__neither_sent_nor_read(message: Any) -> None:
    with pytest.raises(ProtocolError, match="is the most"):
        to_record(message)
    keys = {f.name.replace("_", "-"): getattr(message, f.name) for f in fields(message)}
    record = {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()}
    with pytest.raises(ProtocolError, match="is the most"):
        from_record(type(message), record)


def test_read_reply__the_kind_or_a_refusal__and_nothing_else() -> None:
    signed, refused = Signed(b"s"), Refused("no", b"s")
    assert read_reply(Signed, to_record(signed)) == signed
    assert read_reply(Signed, to_record(refused)) == refused
    for other in (to_record(Released()), {}, None, 7, [("signature", b"s")]):
        with pytest.raises(ProtocolError, match="signed must have exactly the fields"):
            read_reply(Signed, other)


@given(st.binary(max_size=64))
def test_unpack__bytes_that_pack_never_made__refused(kept: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(Scored, kept)


def test_unpack__cut_short_or_too_long__refused() -> None:
    kept = pack(TRAINED)
    for other in (kept[:-1], kept + b"x", kept[:3], b""):
        with pytest.raises(ProtocolError, match="this is not a kept trained"):
            unpack(Trained, other)


def test_wire_keys__are_spelled_in_protocol_py_alone() -> None:
    """Flower's records are made of what to_record gave, and read by from_record: in no other file
    stands a key, and only two make a record at all.
    """
    told = {f.name.replace("_", "-") for m in MESSAGES for f in fields(m) if "_" in f.name}
    assert {"epsilon-job", "compute-seconds"} <= told
    files = [path for room in ("fl_client", "fl_server") for path in (ROOT / room).rglob("*.py")]
    makers = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in told, f"{path.name} spells {node.value}"
            if isinstance(node, ast.Call) and ast.unparse(node).startswith("ConfigRecord("):
                makers |= {(path.name, ast.unparse(given)) for given in node.args}
    assert makers == {("handlers.py", "reply"), ("exchange.py", "dict(record)")}


def test_job_spec__server_momentum__is_part_of_the_terms_from_version_2_on() -> None:
    known = spec(server_momentum=0.8, server_rates={"bias": 4.0})
    assert JobSpec.from_dict(known.as_dict()) == known and known.as_dict()["version"] == 4
    old = {k: v for k, v in known.as_dict().items() if k != "server_momentum"} | {"version": 1}
    with pytest.raises(ProtocolError, match="server_momentum"):
        JobSpec.from_dict(old)
    with pytest.raises(ProtocolError, match="version=1 must be 4"):
        JobSpec.from_dict(known.as_dict() | {"version": 1})


def test_job_spec__of_version_2__is_still_read() -> None:
    """Settled jobs of before there were several outputs are shown for ever."""
    known = spec()
    old = {k: v for k, v in known.as_dict().items() if k != "outputs"} | {"version": 2}
    assert JobSpec.from_dict(old) == known and known.outputs == 1
    # once, a job under way with two outputs was refused by a node that had been updated meanwhile
    assert JobSpec.from_dict(old | {"loss": "cross_entropy"}).outputs == 2


@pytest.mark.parametrize("value", [0, -1, 65, 1.0, True, "1", None])
def test_job_spec__outputs_out_of_range__refused_by_name(value: Any) -> None:
    with pytest.raises(ProtocolError, match="outputs="):
        spec(outputs=value)


@pytest.mark.parametrize("value", [-0.1, 0.995, math.nan, 1, True, "0.5", None])
def test_job_spec__server_momentum_out_of_range__is_refused_by_name(value: Any) -> None:
    with pytest.raises(ProtocolError, match="server_momentum="):
        spec(server_momentum=value)


@pytest.mark.parametrize(
    "rates",
    [
        *(None, 4.0, {"w": 0.0}, {"w": math.inf}, {"w": 1}, {"": 1.0}, {3: 1.0}, {"w" * 201: 1.0}),
        {str(number): 1.0 for number in range(17)},
    ],
)
def test_job_spec__server_rates_out_of_range__are_refused_by_name(rates: Any) -> None:
    with pytest.raises(ProtocolError, match="server_rates"):
        spec(server_rates=rates)
