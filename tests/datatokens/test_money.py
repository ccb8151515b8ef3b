"""Amounts as people read them."""

import pytest

from datatokens.money import amount, money


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0.00 tUSD"),
        (1, "0.000001 tUSD"),
        (1_500_000, "1.50 tUSD"),
        ("1234567890000", "1,234,567.89 tUSD"),
        (None, ""),
    ],
)
def test_money__base_units__to_the_last_digit(units: int | str | None, text: str) -> None:
    assert money(units) == text


def test_amount__base_units__says_both() -> None:
    assert amount(1_500_000) == "1.50 tUSD (1500000 base units)"
