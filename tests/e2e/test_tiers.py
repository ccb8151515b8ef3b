"""Orders by another tier of a dataset, on real processes: its datatoken as a voucher, and access
that is open; the hospital's own node takes both.
"""

from __future__ import annotations

import json

import pytest

from datahub.demo.stack import FIRST_HOSPITAL
from datatokens.bindings.registry import Registry
from tests.e2e.conftest import Marketplace

DAY_S = 24 * 3600


@pytest.mark.e2e
def test_order_by_a_tier__with_its_voucher_and_with_open_access__is_quoted_paid_and_admitted(
    marketplace: Marketplace,
) -> None:
    m, dataset_id = marketplace, marketplace.ids[1]
    registry = Registry(m.stack.chain(FIRST_HOSPITAL + 1), m.stack.deployment.registry)
    tier = registry.add_tier(dataset_id, "DAY", 1_000_000, DAY_S)
    m.buyer.buy_access(dataset_id, tier, 2)
    before = m.balance()
    for vouchers in ((dataset_id,), ()):
        if not vouchers:
            m.buyer.use_access(dataset_id, tier)
        quote = m.buyer.quote(
            [dataset_id],
            epsilon=0.2,
            purpose="research",
            rounds=1,
            vouchers=vouchers,
            tiers={dataset_id: tier},
        )
        (line,) = quote.terms.datasets
        assert (line.tier, line.voucher, line.price_units) == (tier, bool(vouchers), 0)
        report = json.loads(quote.order().wait(timeout_s=120).report)
        assert [one["worked"] for one in report["hospitals"]] == [True]
    assert m.balance() == before  # compute is free there, and there is no reward
