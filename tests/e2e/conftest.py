"""One running marketplace for all end-to-end tests: chain, hub, SuperLink and four nodes as real
processes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datahub.buyer import networks
from datahub.buyer.sdk import Market
from datahub.demo import data as demo_data
from datahub.demo.hospitals import Hospital, join
from datahub.demo.stack import BUYER, Stack, wait_for
from datatokens.bindings.registry import Token

CHROMIUM = shutil.which("chromium")


@dataclass
class Marketplace:
    """The stack, its hospitals, a buyer, and the data that the tables came from."""

    stack: Stack
    data: demo_data.DemoData
    hospitals: list[Hospital]
    buyer: Market

    @property
    def ids(self) -> list[int]:
        return [h.dataset_id for h in self.hospitals]

    def balance(self) -> int:
        token = Token(self.buyer.chain, self.stack.deployment.payment_token)
        return token.balance_units(self.buyer.address)


@pytest.fixture(scope="session")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    folder: Path = tmp_path_factory.mktemp("marketplace")
    data = demo_data.prepare("breast-cancer", None, folder / "tables")
    stack = Stack(folder)
    try:
        stack.start()
        network = stack.network
        with ThreadPoolExecutor(4) as pool:
            hospitals = list(pool.map(lambda i: join(stack, data, i, network), range(4)))
        wait_for("every node", lambda: stack.online(4), stack.processes)
        os.environ["DATAHUB_HOME"] = str(folder / "buyer")
        networks.pin(stack.pinned)
        buyer = Market(stack.hub_url, chain=stack.chain_url, key=stack.accounts[BUYER][1])
        yield Marketplace(stack, data, hospitals, buyer)
    finally:
        stack.processes.stop()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        one = browser.new_page()
        one.complaints = []
        one.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.on(
            "console",
            lambda message: (
                one.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        one.on(
            "response",
            lambda said: (
                one.complaints.append(f"{said.status} {said.url}") if said.status >= 400 else None
            ),
        )
        yield one
        browser.close()
