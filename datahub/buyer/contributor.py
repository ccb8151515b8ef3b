"""What a contributor runs: claim what is owed, over every dataset, in one transaction.

Loads no torch; the proofs come from the hub, and the pinned contract checks them.
"""

from __future__ import annotations

from datahub.buyer.hub_client import Hub
from datahub.buyer.networks import Network
from datatokens import deploy
from datatokens.bindings.revenue import Claim, Revenue
from datatokens.chain.connection import connect


def claim_all(network: Network, key: str, account: str = "") -> dict[int, int]:
    """Claim everything that `account` (default: the key's own address) is owed, in one transaction;
    dataset id -> units.

    The proofs come from the hub and are checked by the contract; the money goes to `account`. The
    key only pays gas. Raises BankError where the contracts are not the pinned ones.
    """
    connection = connect(network.chain, key)
    deploy.check(connection, network.deployment)
    revenue = Revenue(connection, network.deployment.market)
    owed = account or str(connection.address)
    claims = [
        Claim(
            item["dataset_id"],
            item["epoch"],
            item["weight"],
            tuple(bytes.fromhex(sibling.removeprefix("0x")) for sibling in item["proof"]),
        )
        for item in Hub(network.hub).get(f"/api/v1/claims/{owed}")
        # the hub's index may be a moment behind the chain: what was claimed just now is not owed
        if item["claimable_units"] > 0
        and revenue.claimable(item["dataset_id"], item["epoch"], owed, item["weight"]) > 0
    ]
    return revenue.claim_on_behalf(owed, claims) if claims else {}
