"""The networks that a buyer or contributor has pinned: contracts that no hub's word can change.

A hub says where the market is, and a hub may lie. `datahub network add` writes its addresses down
once, after their code and what they were constructed with have been checked over the person's own
chain connection and the person has compared them with what the operator gave on another way. Knows
nothing of orders and loads no torch.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datahub.errors import ConfigError, OrderRefused
from datatokens.deploy import Deployment
from datatokens.errors import TermsError
from datatokens.terms import address, whole
from fl_client.node.job_folder import write_whole

MOST_FEE_BPS = 500  # what the contract allows
FIELDS = ("hub", "chain", "fee_bps", *Deployment.__dataclass_fields__)


@dataclass(frozen=True)
class Network:
    """One market with its hub and the person's own chain connection; the hub may take at most
    `fee_bps` basis points of prices and reward.
    """

    name: str
    hub: str
    chain: str
    fee_bps: int
    deployment: Deployment


def home() -> Path:
    """Where networks.toml and jobs are kept: $DATAHUB_HOME, else ~/.config/datahub."""
    return Path(os.environ.get("DATAHUB_HOME") or Path.home() / ".config" / "datahub")


def pinned_file() -> Path:
    """The file that `datahub network add` writes."""
    return home() / "networks.toml"


def read() -> dict[str, Network]:
    """Every pinned network by its name; {} before the first. Raises ConfigError naming what is
    wrong in the file.
    """
    file = pinned_file()
    try:
        raw = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return {name: _network(f"{file}: {name}", name, facts) for name, facts in raw.items()}


def _network(where: str, name: str, facts: Any) -> Network:
    if not isinstance(facts, Mapping) or (wrong := set(facts) ^ set(FIELDS)):
        wrong = wrong if isinstance(facts, Mapping) else set(FIELDS)
        raise ConfigError(
            f"{where} must have exactly {', '.join(FIELDS)}; look at {', '.join(sorted(wrong))}"
        )
    try:
        deployment = Deployment(
            whole("chain_id", facts["chain_id"], 1, 2**64 - 1),
            *(address(k, facts[k]) for k in list(Deployment.__dataclass_fields__)[1:]),
        )
        fee = whole("fee_bps", facts["fee_bps"], 0, MOST_FEE_BPS)
    except TermsError as error:
        raise ConfigError(f"{where}: {error}") from error
    for field in ("hub", "chain"):
        if not isinstance(facts[field], str) or not facts[field].startswith(
            ("http://", "https://")
        ):
            raise ConfigError(f"{where}: {field}={facts[field]!r} must begin with http(s)://")
    return Network(name, facts["hub"].rstrip("/"), facts["chain"], fee, deployment)


def pin(network: Network) -> Path:
    """Write `network` down; the file. Raises ConfigError where its name or its hub is pinned to
    something else: that is taken out by hand, or never.
    """
    known = read()
    for one in known.values():
        if one != network and (one.name == network.name or one.hub == network.hub):
            raise ConfigError(
                f"{one.name} ({one.hub}) is pinned already, to market {one.deployment.market}; if "
                f"you mean to change it, take it out of {pinned_file()} yourself"
            )
    facts = {**known, network.name: network}
    text = "# Contracts that this person pays into. Written by: datahub network add\n"
    for name, one in facts.items():
        lines = {"hub": one.hub, "chain": one.chain, "fee_bps": one.fee_bps} | asdict(
            one.deployment
        )
        body = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
        text += f"\n[{json.dumps(name)}]\n{body}"
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(pinned_file(), text.encode())
    return pinned_file()


def by_name(name: str = "") -> Network:
    """The pinned network of that name, or the only one there is. Raises ConfigError."""
    known = read()
    if not name and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        named = f"network {name!r} is not pinned" if name else "name one with --network"
        raise ConfigError(
            f"{named}; pinned are: {', '.join(known) or 'none'}. Pin one with: "
            "datahub network add NAME --hub URL --chain URL"
        )
    return known[name]


def by_hub(hub: str) -> Network:
    """The pinned network whose hub this is. Raises OrderRefused: nobody pays on a hub's word."""
    for one in read().values():
        if one.hub == hub.rstrip("/"):
            return one
    raise OrderRefused(
        f"the contracts of the hub {hub} are not pinned, and its own word is not enough to pay on: "
        "compare its addresses with those in your contract and run: datahub network add NAME "
        f"--hub {hub} --chain URL"
    )
