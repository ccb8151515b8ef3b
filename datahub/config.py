"""The hub's folder: hub.toml, the operator's key, the database, uploaded models, job folders. Read
once.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datahub.errors import ConfigError
from datatokens.errors import TermsError
from datatokens.terms import address, whole


@dataclass(frozen=True)
class HubConfig:
    """Everything the hub needs, checked.

    fee_bps: the hub's fee in basis points of prices and rewards (the contract allows at most 5 % of
    the amount)
    superlink: host:port of the SuperLink, also told to hospitals; superlink_folder: its state on
    this machine
    database: any SQLAlchemy URL
    behind_proxy: whether a proxy of the operator's writes X-Forwarded-For, by which clients are
    told apart then; false where anybody reaches the hub itself
    origins: https://host of each address under which people reach the hub; they sign in there alone
    (and on this machine)
    webhook_networks: networks besides the public one whose addresses webhooks may name
    metrics: who may ask for /metrics, "loopback" or "anywhere"
    superlink_here: host:port by which this hub reaches the SuperLink, which takes an operator's
    word on its own machine only; "" for superlink
    """

    folder: Path
    chain: str
    chain_id: int
    registry: str
    market: str
    payment_token: str
    superlink: str
    superlink_folder: Path
    database: str
    fee_bps: int
    behind_proxy: bool = False
    origins: tuple[str, ...] = ()
    webhook_networks: tuple[str, ...] = ()
    metrics: str = "loopback"
    superlink_here: str = ""

    @property
    def operator_key(self) -> str:
        """The key that pays gas for settlements and refunds."""
        return (self.folder / "keys" / "operator.key").read_text().strip()

    @property
    def jobs_folder(self) -> Path:
        """Where the hub hands jobs to the SuperLink's ServerApp and finds what it wrote."""
        return self.superlink_folder / "jobs"

    @property
    def trees_folder(self) -> Path:
        """The nodes of contributor lists' trees, named by their roots."""
        return self.folder / "trees"

    @property
    def models_folder(self) -> Path:
        """Uploaded graphs and weights, named by their SHA-256."""
        return self.folder / "models"


OPTIONAL = {"behind_proxy", "metrics", "origins", "superlink_here", "webhook_networks"}
TEXTS = ("chain", "superlink", "superlink_folder", "database")
METRICS = ("loopback", "anywhere")


def write(folder: Path, **values: Any) -> HubConfig:
    """Write hub.toml and read it back. The folder is its user's alone: the database knows who buys
    what, and models lie in it until they are trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (folder / "hub.toml").write_text("\n".join(["# The hub of one operator.", *lines, ""]))
    return read(folder)


def read(folder: Path) -> HubConfig:
    """The hub in `folder`. Raises ConfigError with everything that is missing or wrong."""
    try:
        raw = tomllib.loads((folder / "hub.toml").read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no hub.toml; make one with: datahub hub init {folder}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{folder}/hub.toml is not TOML: {error}") from error
    problems: list[str] = []
    known = {*TEXTS, "chain_id", "registry", "market", "payment_token", "fee_bps"}
    problems += [f"{name} is missing" for name in sorted(known - set(raw))]
    problems += [f"{name} is unknown" for name in sorted(set(raw) - known - OPTIONAL)]
    problems += _options(raw)
    for name in known & set(raw):
        try:
            if name in TEXTS and not (isinstance(raw[name], str) and raw[name]):
                problems.append(f"{name}={raw[name]!r} must be text")
            elif name in ("registry", "market", "payment_token"):
                raw[name] = address(name, raw[name])
            elif name == "chain_id":
                whole(name, raw[name], 1, 2**64 - 1)
            elif name == "fee_bps":
                whole(name, raw[name], 0, 500)
        except TermsError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{folder}/hub.toml: " + "; ".join(problems))
    lists = {name: tuple(raw.get(name, ())) for name in ("origins", "webhook_networks")}
    places = {"superlink_folder": Path(raw["superlink_folder"])}
    return HubConfig(folder=folder, **{**raw, **lists, **places})


def _options(raw: dict[str, Any]) -> list[str]:
    """What is wrong with what may be left out."""
    problems = []
    if type(raw.get("behind_proxy", False)) is not bool:
        problems.append(f"behind_proxy={raw['behind_proxy']!r} must be true or false")
    if raw.get("metrics", METRICS[0]) not in METRICS:
        problems.append(f"metrics={raw['metrics']!r:.80} must be {' or '.join(METRICS)}")
    if not isinstance(raw.get("superlink_here", ""), str):
        problems.append(f"superlink_here={raw['superlink_here']!r:.80} must be text")
    for name, fits, what in (
        ("origins", _is_origin, "addresses like https://hub.example"),
        ("webhook_networks", _is_network, "networks like 10.0.0.0/8"),
    ):
        given = raw.get(name, [])
        if not isinstance(given, list) or not all(isinstance(x, str) and fits(x) for x in given):
            problems.append(f"{name}={given!r:.80} must be a list of {what}")
    return problems


def _is_origin(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and text == f"{parts.scheme}://{parts.netloc}" != "://"


def _is_network(text: str) -> bool:
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False
