"""Packed lines and outcomes: the same fields in Python and in Solidity, and nothing lost on the
way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datatokens
from datatokens.layouts import LINE, LINE_BYTES, OUTCOME, dataset_ids, most, pack, unpack

SOLIDITY = (Path(datatokens.__file__).parent / "contracts" / "JobLayout.sol").read_text()
BITS = {"address": 160}


def numbers(layout: dict[str, int]) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({field: st.integers(0, most(layout, field)) for field in layout})


@pytest.mark.parametrize(("name", "layout"), [("line", LINE), ("outcome", OUTCOME)])
def test_layout__fields_and_widths__are_those_of_the_contract(
    name: str, layout: dict[str, int]
) -> None:
    (said,) = re.findall(rf"/// @dev {name}: (.+)", SOLIDITY)
    fields = {}
    for field in said.split(" | "):
        kind, camel = field.split()
        snake = re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), camel)
        fields[snake] = (BITS.get(kind) or int(kind.removeprefix("uint"))) // 8
    assert list(fields.items()) == list(layout.items())


def test_layout__a_line_and_a_word__have_the_contracts_sizes() -> None:
    assert f"LINE_BYTES = {LINE_BYTES};" in SOLIDITY and sum(OUTCOME.values()) == 32


@given(numbers(LINE), numbers(OUTCOME))
def test_unpack__what_was_packed__comes_back(line: dict[str, int], outcome: dict[str, int]) -> None:
    assert unpack(LINE, pack(LINE, line)) == line
    assert unpack(OUTCOME, pack(OUTCOME, outcome)) == outcome


@pytest.mark.parametrize("field", LINE)
def test_pack__a_number_too_wide_for_its_field__refused(field: str) -> None:
    values = dict.fromkeys(LINE, 0)
    with pytest.raises(OverflowError):
        pack(LINE, values | {field: most(LINE, field) + 1})
    with pytest.raises(OverflowError):
        pack(LINE, values | {field: -1})


@given(st.lists(numbers(LINE), max_size=64))
def test_dataset_ids__packed_lines__in_their_order(lines: list[dict[str, int]]) -> None:
    packed = b"".join(pack(LINE, line) for line in lines)
    assert dataset_ids(packed) == [line["dataset_id"] for line in lines]
    if packed:
        with pytest.raises(ValueError, match="bytes are not the 49 of this layout"):
            dataset_ids(packed[:-1])
