"""Amounts as people read them. Pure; knows nothing of chains: integers in, text out."""

from __future__ import annotations

DECIMALS = 6


def money(units: int | str | None) -> str:
    """Base units as an amount with its currency: 1500000 -> '1.50 tUSD'."""
    if units is None:
        return ""
    whole, rest = divmod(int(units), 10**DECIMALS)
    digits = f"{rest:0{DECIMALS}d}".rstrip("0").ljust(2, "0")
    return f"{whole:,}.{digits} tUSD"


def amount(units: int | str) -> str:
    """The same with the base units that a flag would take: '1.50 tUSD (1500000 base units)'."""
    return f"{money(units)} ({int(units)} base units)"
