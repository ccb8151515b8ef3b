"""Orders on the real stack over four real hospitals: AUC beside the same model without privacy, and
every second.

    python -m tests.benchmarks.first_light [--quick] [--seeds N] [--json FILE] [--data-dir FOLDER]

Each seed is one paid order (chain, SuperLink, four node processes with TLS): noise and sampling are
fresh each time and no result is picked. The yardstick, logistic regression on the pooled tables, is
computed outside the nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datahub.buyer import networks
from datahub.buyer.sdk import Market
from datahub.demo import data as demo_data
from datahub.demo.hospitals import join
from datahub.demo.stack import BUYER, TUSD, Stack, wait_for
from datahub.demo.summary import summary_of, test_auc
from datahub.errors import HubError
from datatokens.bindings.registry import Token

SHARED = Path(__file__).parents[3] / "shared" / "data" / "heart-disease"
EPSILON, ROUNDS = 4.0, 10


def measure(data: demo_data.DemoData, seeds: int, folder: Path) -> dict[str, float]:
    """Flat figures over `seeds` orders; seconds, and AUC on the buyer's test part."""
    stack = Stack(folder)
    try:
        stack.start()
        network = stack.network
        with ThreadPoolExecutor(4) as pool:
            hospitals = list(
                pool.map(lambda i: join(stack, data, i, network, (100.0,) * 4), range(4))
            )
        wait_for("every node", lambda: stack.online(4), stack.processes)
        os.environ["DATAHUB_HOME"] = str(folder / "buyer")
        networks.pin(stack.pinned)
        buyer = Market(stack.hub_url, chain=stack.chain_url, key=stack.accounts[BUYER][1])
        wallet = Token(buyer.chain, stack.deployment.payment_token)
        orders: list[dict[str, Any]] = []
        for seed in range(seeds):
            before = wallet.balance_units(buyer.address)
            ids = [h.dataset_id for h in hospitals]
            job = buyer.quote(
                ids, epsilon=EPSILON, delta=data.delta, purpose="benchmark", rounds=ROUNDS
            ).order()
            paid_at = time.time()
            result = job.wait(timeout_s=180)
            one = summary_of(stack, job, job.status(), hospitals, before, paid_at)
            one["auc"] = test_auc(result, data)
            orders.append(one)
            print(
                f"order {seed + 1}: AUC {one['auc']:.4f}, "
                f"{one['seconds']['funded_to_settled']:.1f} s",
                file=sys.stderr,
            )
    finally:
        stack.processes.stop()
    aucs = [o["auc"] for o in orders]
    figures = {
        "orders": float(seeds),
        "epsilon": max(max(o["epsilon"].values()) for o in orders),
        "auc.mean": statistics.mean(aucs),
        "auc.sd": statistics.stdev(aucs) if seeds > 1 else 0.0,
        "auc.without_dp": demo_data.auc_without_dp(data),
        "price_tusd": orders[0]["price_units"] / TUSD,
    }
    figures["auc.gap"] = figures["auc.without_dp"] - figures["auc.mean"]
    for name in orders[0]["seconds"]:
        figures[f"seconds.{name}"] = statistics.median(o["seconds"][name] for o in orders)
    return figures


def main() -> int:
    """Print the figures as a table, and as flat JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two orders")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data-dir", type=Path, default=SHARED if SHARED.exists() else None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = demo_data.prepare("heart-disease", arguments.data_dir, Path(folder) / "tables")
            figures = measure(data, 2 if arguments.quick else arguments.seeds, Path(folder))
        except HubError as error:
            print(f"refused: {error}", file=sys.stderr)
            return 1
    for name, value in figures.items():
        print(f"{name:38} {value:10.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
