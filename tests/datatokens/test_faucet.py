"""Test money: who gets it, and where nobody does."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from bank_world import World
from click.testing import Result
from eth_account import Account
from typer.testing import CliRunner

from datatokens import cli, faucet
from datatokens.chain.connection import Chain, connect
from datatokens.chain.devchain import MNEMONIC
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import deploy
from datatokens.errors import BankError, NodeRefused


def asked(world: World, file: Path, *more: str) -> Result:
    words = ["faucet", *more, "--chain", world.url, "--deployment", str(file)]
    return CliRunner().invoke(cli.app, words)


@pytest.fixture
def file(world: World, tmp_path: Path) -> Path:
    world.deployment.save(tmp_path / "deployment.json")
    return tmp_path / "deployment.json"


def test_faucet__a_new_address__has_test_dollars_and_gas(world: World, file: Path) -> None:
    to = Account.create().address
    done = asked(world, file, to.lower(), "--amount", "25", "--gas", "2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"address": to, "units": 25_000_000, "wei": 2 * 10**18}
    assert world.money(world.operator).balance_units(to) == 25_000_000
    both = "1,025.00 tUSD (1025000000 base units)"
    assert asked(world, file, to).stdout.strip() == f"{to} has {both} and 3 coins for gas now"


def test_faucet__gas_alone__needs_no_market(world: World, tmp_path: Path) -> None:
    to = Account.create().address
    done = asked(world, tmp_path / "none.json", to, "--amount", "0")
    assert done.exit_code == 0 and done.stdout.strip() == f"{to} has 1 coins for gas now"
    missing = asked(world, tmp_path / "none.json", to)
    assert missing.exit_code == 1
    assert "name the hub's deployment.json with --deployment" in missing.stderr
    assert connect(world.url).balance_wei(to) == 10**18


def test_faucet__no_address__is_a_sentence(world: World, file: Path) -> None:
    done = asked(world, file, "0x12")
    assert done.exit_code == 1 and "address='0x12'" in done.stderr


def test_faucet__a_chain_that_is_no_test_chain__refuses_before_anything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chain, "_whole_chain_id", lambda self: 1)
    to = Account.create().address
    with pytest.raises(BankError, match="is chain 1, where money may be real"):
        faucet.give(world.url, to, wei=1, made=world.deployment, units=1)
    assert connect(world.url).balance_wei(to) == 0


def test_faucet__a_token_that_cannot_be_minted__gives_nothing(world: World) -> None:
    to = Account.create().address
    other = dataclasses.replace(world.deployment, payment_token=world.deployment.market)
    with pytest.raises(BankError, match="is not this version's test token, so nobody can mint it"):
        faucet.give(world.url, to, wei=1, made=other, units=1)
    elsewhere = dataclasses.replace(world.deployment, chain_id=5)
    with pytest.raises(BankError, match="is chain 31337; the market is on 5"):
        faucet.give(world.url, to, wei=1, made=elsewhere, units=1)
    assert connect(world.url).balance_wei(to) == 0


def test_faucet__somebody_s_own_token__wants_its_deployers_key(
    world: World, tmp_path: Path
) -> None:
    owner, to = Account.create(), Account.create().address
    key = tmp_path / "owner.key"
    key.write_text("0x" + owner.key.hex().removeprefix("0x"))
    faucet.give(world.url, owner.address, wei=10**18, made=None, units=0)
    deploy(connect(world.url, key.read_text())).save(tmp_path / "own.json")
    refused = asked(world, tmp_path / "own.json", to)
    assert refused.exit_code == 1
    assert f"only {owner.address}, who deployed the test token" in refused.stderr
    given = asked(world, tmp_path / "own.json", to, "--key-file", str(key), "--json")
    assert given.exit_code == 0 and json.loads(given.stdout)["units"] == 10**9


def test_transfer__more_than_there_is__names_the_address_and_what_there_is(world: World) -> None:
    poor = Account.create()
    with pytest.raises(NodeRefused, match=f"insufficient funds: {poor.address} has 0 "):
        connect(world.url, poor.key).transfer(accounts()[0][0], 1)


def test_start__the_accounts__are_printed_with_their_public_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    said = CliRunner().invoke(cli.app, ["start"])
    assert said.exit_code == 0 and len(started) == 1
    assert MNEMONIC in said.stdout and "never send anything real there" in said.stdout
    for who, key in accounts():
        assert f"{who}  key {key}" in said.stdout
    rows = json.loads(CliRunner().invoke(cli.app, ["start", "--json"]).stdout)["accounts"]
    assert [(row["address"], row["key"]) for row in rows] == accounts()
