"""The front desk: catalogue, quotes, jobs, claims. Sees no patient data, holds nobody's money, can
be rebuilt.

>>> from datahub import Market  # doctest: +SKIP
>>> market = Market(hub, chain=chain, key=my_key)  # doctest: +SKIP
>>> quote = market.quote(market.search("heart"), epsilon=4.0, purpose="research")  # doctest: +SKIP
>>> quote.order().wait().predict(dataframe)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datahub.buyer.results import Result
    from datahub.buyer.sdk import Market

__all__ = ["Market", "Result"]


def __getattr__(name: str) -> Any:
    # imported on use: a market brings the chain, which a page does not need
    if name == "Market":
        from datahub.buyer.sdk import Market

        return Market
    if name == "Result":
        from datahub.buyer.results import Result

        return Result
    raise AttributeError(name)
