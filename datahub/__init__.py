"""The front desk: catalogue, quotes, jobs, claims. Sees no patient data, holds nobody's money, can
be rebuilt.

>>> from datahub import Buyer  # doctest: +SKIP
>>> buyer = Buyer(hub, chain=chain, key=my_key)  # doctest: +SKIP
>>> result = buyer.order([1, 2, 3, 4], epsilon=4.0, purpose="research").wait()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datahub.buyer.sdk import Buyer

__all__ = ["Buyer"]


def __getattr__(name: str) -> Any:
    if name == "Buyer":  # imported on use: it brings the chain, which a page does not need
        from datahub.buyer.sdk import Buyer

        return Buyer
    raise AttributeError(name)
