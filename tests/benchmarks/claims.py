"""Contributor lists of any size: what building the tree takes, and the gas of a claim from the
receipts.

    python -m tests.benchmarks.claims [--quick] [--json FILE]

The chain is the embedded one. "first" is an account's first claim from a list, into an empty purse,
where somebody else has claimed before; "repeat" its next one, after new revenue. `batch`: the same
with one share of each of ten datasets in one transaction, gas per share.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from eth_account import Account
from eth_hash.auto import keccak

from datatokens.bindings.registry import Registry, Token
from datatokens.bindings.revenue import Claim, Revenue
from datatokens.chain.connection import Chain, connect
from datatokens.chain.rpc_server import accounts, running_devchain
from datatokens.deploy import deploy
from datatokens.merkle import Tree

BATCH = 10
REVENUE_UNITS = 10**12


def entries_of(size: int, claimer: str) -> list[tuple[str, int]]:
    """`size` contributors with weights 1..5, the claimer first."""
    others = [("0x" + keccak(i.to_bytes(8, "big"))[:20].hex(), 1 + i % 5) for i in range(1, size)]
    return [(claimer, 3), *others]


class Bench:
    """A market with one account that owns, buys and submits."""

    def __init__(self, chain: Chain):
        self.chain = chain
        where = deploy(chain)
        self.revenue, self.registry = Revenue(chain, where.market), Registry(chain, where.registry)
        Token(chain, where.payment_token).mint(str(chain.address), 10**20)
        self.datasets = 0

    def list(self) -> int:
        """A new dataset whose whole revenue is the contributors'."""
        self.datasets += 1
        node = Account.from_key(self.datasets.to_bytes(32, "big")).address
        return self.registry.list_dataset(node, 1, 10_000, bytes(32), "", "")

    def post(self, dataset_id: int, tree: Tree, entries: Sequence[tuple[str, int]]) -> int:
        """Post a list that is live at once, pay revenue in, let the last account claim; the gas of
        the posting.
        """
        posting = self.revenue.contract.functions.postContributors(dataset_id, tree.root, "")
        gas = int(self.chain.send(posting)["gasUsed"])
        self.revenue.pay_revenue(dataset_id, REVENUE_UNITS)
        account, weight = entries[-1]
        proof = tuple(tree.proof(len(entries) - 1))
        self.revenue.claim_on_behalf(account, [Claim(dataset_id, 1, weight, proof)])
        return gas

    def claim(self, account: str, claims: list[Claim]) -> int:
        """The gas of one claim transaction that anyone submits."""
        call = self.revenue.contract.functions.claimOnBehalf(
            account, [c.to_struct() for c in claims]
        )
        return int(self.chain.send(call)["gasUsed"])


def measure(bench: Bench, sizes: list[int]) -> dict[str, float]:
    """Flat figures: seconds, MB of memory over what the list itself takes, gas."""
    figures: dict[str, float] = {}
    for size in sizes:
        claimer = Account.create().address
        entries = entries_of(size, claimer)
        dataset_id = bench.list()
        peak_before, started = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            time.perf_counter(),
        )
        tree = Tree(dataset_id, 1, entries)
        figures[f"{size}.build_s"] = time.perf_counter() - started
        figures[f"{size}.memory_mb"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
        ) / 1024
        claims = [Claim(dataset_id, 1, 3, tuple(tree.proof(0)))]
        figures[f"{size}.proof_steps"] = len(claims[0].proof)
        figures[f"{size}.post_gas"] = bench.post(dataset_id, tree, entries)
        figures[f"{size}.first_gas"] = bench.claim(claimer, claims)
        bench.revenue.pay_revenue(dataset_id, REVENUE_UNITS)
        figures[f"{size}.repeat_gas"] = bench.claim(claimer, claims)
        del tree, entries
        print(f"{size} contributors: {figures[f'{size}.build_s']:.1f} s", file=sys.stderr)
    claimer, claims = Account.create().address, []
    for _ in range(BATCH):
        dataset_id = bench.list()
        entries = entries_of(sizes[0], claimer)
        tree = Tree(dataset_id, 1, entries)
        bench.post(dataset_id, tree, entries)
        claims.append(Claim(dataset_id, 1, 3, tuple(tree.proof(0))))
    figures["batch.first_gas"] = bench.claim(claimer, claims) / BATCH
    for claim in claims:
        bench.revenue.pay_revenue(claim.dataset_id, REVENUE_UNITS)
    figures["batch.repeat_gas"] = bench.claim(claimer, claims) / BATCH
    return figures


def main() -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="lists of 1,000 and 10,000 only")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    sizes = [1_000, 10_000] if given.quick else [1_000, 100_000, 1_000_000]
    with running_devchain(instant=True) as url:
        figures = measure(Bench(connect(url, accounts()[0][1])), sizes)
    for name, value in figures.items():
        print(f"{name:24} {value:,.1f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
