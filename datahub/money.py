"""Where the pages find how an amount is shown (datatokens/money.py). Pure."""

from datatokens.money import DECIMALS, money

__all__ = ["DECIMALS", "money"]
