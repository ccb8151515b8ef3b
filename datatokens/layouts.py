"""The two packed layouts of a job: a dataset's line in the terms, its outcome in the result.

Named here once; contracts/JobLayout.sol says the same for Solidity. Pure: numbers in, bytes out.
"""

from __future__ import annotations

from collections.abc import Mapping

# field -> bytes, big-endian, in this order
LINE = {"dataset_id": 4, "node": 20, "tier": 1, "price_units": 12, "compute_cap_units": 12}
OUTCOME = {"compute_units": 11, "reward_units": 11, "epsilon_micro": 5, "delta_pico": 5}
LINE_BYTES = sum(LINE.values())


def most(layout: Mapping[str, int], field: str) -> int:
    """The greatest number that fits into a field."""
    return int(256 ** layout[field] - 1)


def pack(layout: Mapping[str, int], values: Mapping[str, int]) -> bytes:
    """The numbers of exactly the layout's fields as bytes. Raises OverflowError for one that does
    not fit.

    >>> pack({"a": 1, "b": 2}, {"a": 1, "b": 515}).hex()
    '010203'
    """
    return b"".join(values[field].to_bytes(size, "big") for field, size in layout.items())


def unpack(layout: Mapping[str, int], raw: bytes) -> dict[str, int]:
    """The numbers in `raw`, which has the layout's length. Raises ValueError for another."""
    if len(raw) != sum(layout.values()):
        raise ValueError(f"{len(raw)} bytes are not the {sum(layout.values())} of this layout")
    values, start = {}, 0
    for field, size in layout.items():
        values[field] = int.from_bytes(raw[start : start + size], "big")
        start += size
    return values


def dataset_ids(lines: bytes) -> list[int]:
    """The datasets of packed lines, in their order. Raises ValueError for a line cut short."""
    starts = range(0, len(lines), LINE_BYTES)
    return [unpack(LINE, lines[i : i + LINE_BYTES])["dataset_id"] for i in starts]
