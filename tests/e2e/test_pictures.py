"""A hospital of pictures on the running marketplace: listed from files, bought, trained, opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datahub.demo.stack import wait_for
from fl_client.node import config
from fl_client.node.listing import Listing, list_dataset
from tests.clinic import FOR_EVERYBODY
from tests.e2e.conftest import Marketplace
from tests.fl_client.test_album import SCHEMA, SIDE, Small, png

pytestmark = pytest.mark.e2e
pytest.importorskip("PIL", reason="pictures need pillow")


def test_pictures__a_buyers_own_network__is_trained_where_they_are(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    m, stack = marketplace, marketplace.stack
    rng = np.random.default_rng(1)
    labels = [int(i) for i in rng.integers(0, 2, 60)]
    dark = rng.integers(0, 100, (60, SIDE, SIDE))
    pictures = (dark + 120 * np.array(labels)[:, None, None]).astype(np.uint8)
    source = replace(png(tmp_path / "x-rays", pictures, labels), unreadable="leave out")
    (tmp_path / "x-rays" / "files" / "7.png").write_bytes(b"one broken study")
    folder = tmp_path / "pictures-node"
    made = config.create(
        folder, name="Pictures", hub=stack.hub_url, chain=stack.chain_url, network=stack.network
    )
    with (folder / "node.toml").open("a") as toml:
        toml.write(FOR_EVERYBODY)
    listing = Listing("X-rays", "made up", 1_000_000, 5000, 8.0, 1e-5)
    owner, contributors = stack.accounts[13][1], [(stack.accounts[14][0], 1)]
    entry = list_dataset(made, owner, source, SCHEMA, listing, contributors)
    stack.start_node(folder)
    wait_for("the node of pictures", lambda: _online(m, entry), stack.processes)
    torch.manual_seed(0)
    job = m.buyer.quote(
        [entry.dataset_id],
        epsilon=4.0,
        purpose="research",
        model=Small(),
        rounds=5,
        learning_rate=0.5,
    ).order()
    result = job.wait(timeout_s=120)
    (line,) = json.loads(result.report)["hospitals"]
    assert line["worked"] and line["unit"] == "patient" and 3.5 < line["epsilon_job"] <= 4.0
    before = dict(Small().state_dict())
    assert {n: a.shape for n, a in result.arrays.items()} == {n: a.shape for n, a in before.items()}
    page = m.buyer.hub.get("/api/v1/datasets")
    (shown,) = [row for row in page if row["dataset_id"] == entry.dataset_id]
    assert shown["manifest"]["schema"]["picture"]["size"] == [SIDE, SIDE]


def _online(m: Marketplace, entry: object) -> bool:
    rows = m.buyer.hub.get("/api/v1/datasets")
    return any(r["dataset_id"] == getattr(entry, "dataset_id", 0) and r["online"] for r in rows)
