"""A node's folder: node.toml, its keys, its ledger, its admitted jobs. Read once, every error
at once.

Knows nothing of what the values are used for. A node has three keys: the owner's (cold, lists
datasets, not kept here unless the owner says so), the node key (signs acceptances, refusals,
attestations) and the SuperNode key.
"""

from __future__ import annotations

import difflib
import json
import os
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from eth_account import Account

from datatokens.errors import TermsError
from datatokens.terms import address, whole
from fl_client.data.manifests import PLATFORM_MINIMUM_PERSONS
from fl_client.errors import ConfigError
from fl_client.node import entries
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import private_folder, write_whole
from fl_client.node.policy import Policy


@dataclass(frozen=True)
class NodeConfig:
    """Everything a node process needs, checked."""

    folder: Path
    name: str
    hub: str
    chain: str
    chain_id: int
    registry: str
    market: str
    payment_token: str
    superlink: str
    engine: str
    policy: Policy
    datasets: tuple[DatasetEntry, ...]
    unusable: Mapping[str, str]  # file of a dataset -> why it cannot be used

    @property
    def ca_file(self) -> Path:
        """The certificate authority of the SuperLink's operator."""
        return self.folder / "superlink-ca.crt"

    @property
    def node_key(self) -> bytes:
        """The secp256k1 key that signs for this node."""
        return bytes.fromhex((self.folder / "keys" / "node.key").read_text().strip())

    @property
    def node_address(self) -> str:
        """The address of the node key."""
        return str(Account.from_key(self.node_key).address)

    @property
    def node_keys(self) -> dict[str, bytes]:
        """Address -> key: the one that signs now, and those before it, which finish the jobs that
        they accepted.
        """
        past = [
            bytes.fromhex(path.read_text().strip())
            for path in sorted((self.folder / "keys").glob("node-0x*.key"))
        ]
        return {str(Account.from_key(key).address): key for key in (self.node_key, *past)}

    @property
    def supernode_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that authenticates towards the SuperLink."""
        raw = (self.folder / "keys" / "supernode.key").read_bytes()
        key = serialization.load_pem_private_key(raw, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{self.folder}/keys/supernode.key is not an elliptic curve key")
        return key

    @property
    def supernode_public_key(self) -> bytes:
        """PEM SubjectPublicKeyInfo, as the SuperLink registers it."""
        return self.supernode_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def dataset(self, dataset_id: int) -> DatasetEntry | None:
        """The dataset with this id, if this node serves it."""
        return next((entry for entry in self.datasets if entry.dataset_id == dataset_id), None)


TEMPLATE = """\
# The node of one hospital. Everything here can be read and changed by the hospital;
# restart the node after a change.
name = {name}
hub = {hub}                # where datasets are shown; its word counts for nothing
chain = {chain}            # your own chain connection: payment is checked here
chain_id = {chain_id}
registry = {registry}      # compare these three addresses with the ones your contract names
market = {market}
payment_token = {payment_token}
superlink = {superlink}    # what this node dials besides the two above; it opens no port
engine = "book-keeping"    # or "hooks": gradients by Opacus itself, slower, without dropout

[policy]
buyers = ["*"]                     # addresses that may buy, or "*"
purposes = ["*"]                   # allowed purposes, or "*"
max_epsilon_per_job = 4.5          # the most one job may cost
minimum_persons = {minimum}  # refuse while a dataset has fewer patients (at least {minimum})
longest_deadline_s = 86400         # refuse jobs that would hold their reservation longer
reservations_per_buyer = 3         # how many jobs of one buyer may hold one at a time
max_job_minutes = 240              # refuse jobs that would train longer on a machine like this
max_memory_gb = 4                  # refuse jobs that need more memory
arbiters = []  # addresses trusted to rule on disputes; others' dispute windows are refused
"""


def write_private(path: Path, content: bytes) -> None:
    """Write `content` readable by this user only, from the first byte on; refuses to overwrite."""
    private_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already; a key is never overwritten") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def create(folder: Path, *, name: str, hub: str, chain: str, network: dict[str, Any]) -> NodeConfig:
    """Make a node's folder: keys, node.toml from what the hub says of the network, the SuperLink's
    CA.
    """
    if (folder / "node.toml").exists():
        raise ConfigError(f"{folder} holds a node already; choose another folder")
    private_folder(folder)
    folder.chmod(0o700)
    values = {
        k: network[k] for k in ("chain_id", "registry", "market", "payment_token", "superlink")
    }
    values |= {"name": name, "hub": hub, "chain": chain}
    text = TEMPLATE.format(
        **{k: json.dumps(v) for k, v in values.items()}, minimum=PLATFORM_MINIMUM_PERSONS
    )
    write_private(folder / "keys" / "node.key", Account.create().key.hex().encode())
    supernode = ec.generate_private_key(ec.SECP384R1())
    pem = supernode.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / "keys" / "supernode.key", pem)
    # what patients' identities are keyed with: without it nobody's history is found
    write_private(folder / "keys" / "patients.key", secrets.token_hex(32).encode())
    write_whole(folder / "superlink-ca.crt", network["ca_certificate"].encode())
    write_whole(folder / "node.toml", text.encode())
    return read(folder)


OWN = ("keys", "datasets", "jobs", "ledger.*", "node.toml", "superlink-ca.crt")


def tighten(folder: Path) -> None:
    """Take from others what a version before this one left open to them: the folder, and what a
    node keeps in it.
    """
    own = [path for name in OWN for path in folder.glob(name)]
    inside = [path for top in own if top.is_dir() for path in top.rglob("*")]
    for path in (folder, *own, *inside):
        if path.exists() and not path.is_symlink() and path.stat().st_mode & 0o077:
            path.chmod(path.stat().st_mode & 0o700)


def next_node_key(folder: Path) -> bytes:
    """The key that will follow the node key; made once, so that a rotation that was cut off goes on
    with it.
    """
    path = folder / "keys" / "next.key"
    if not path.exists():
        write_private(path, Account.create().key.hex().encode())
    return bytes.fromhex(path.read_text().strip())


def promote_next_key(folder: Path, old: str) -> NodeConfig:
    """Put the next key in the place of `old` (its address), which is kept for the jobs that it has
    accepted.
    """
    keys = folder / "keys"
    kept = keys / f"node-{old}.key"
    if not kept.exists():
        os.link(keys / "node.key", kept)
    (keys / "next.key").replace(keys / "node.key")
    return read(folder)


def read(folder: Path) -> NodeConfig:
    """The node in `folder`. Raises ConfigError listing everything that is missing or wrong."""
    try:
        raw = tomllib.loads((folder / "node.toml").read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no node.toml; make one with: datahub node init {folder}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{folder}/node.toml is not TOML: {error}") from error
    known = [
        *(name for name in NodeConfig.__dataclass_fields__ if name not in ("folder", "datasets"))
    ]
    problems = unknown("", raw, known)

    def field(name: str, check: Any) -> Any:
        try:
            return check(name, raw[name])
        except KeyError:
            problems.append(f"{name} is missing")
        except (TermsError, ConfigError) as error:
            problems.append(str(error))

    values = {name: field(name, _text) for name in ("name", "hub", "chain", "superlink")}
    values |= {name: field(name, address) for name in ("registry", "market", "payment_token")}
    raw.setdefault("engine", "book-keeping")
    values["engine"] = field("engine", _engine)
    values["chain_id"] = field("chain_id", lambda n, v: whole(n, v, 1, 2**64 - 1))
    policy = field("policy", lambda _, value: _policy(value))
    if problems:
        raise ConfigError(f"{folder}/node.toml: " + "; ".join(problems))
    datasets, unusable = entries.read(folder)
    return NodeConfig(folder=folder, policy=policy, datasets=datasets, unusable=unusable, **values)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}={value!r} must be text")
    return value


def _engine(name: str, value: object) -> str:
    if value not in ("book-keeping", "hooks"):
        raise ConfigError(f"{name}={value!r} must be book-keeping or hooks")
    return str(value)


def unknown(where: str, given: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """What is misspelt in a table of node.toml: one clause for each key that means nothing."""
    found = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)[0]
            found.append(f"{where}{name} is unknown, the nearest known one is {where}{near}")
    return found


def _policy(value: Any) -> Policy:
    try:
        if problems := unknown("policy.", value, [*Policy.__dataclass_fields__]):
            raise ConfigError("; ".join(problems))
        buyers = tuple(b if b == "*" else address("policy.buyers", b) for b in value["buyers"])
        purposes = tuple(_text("policy.purposes", p) for p in value["purposes"])
        epsilon = value["max_epsilon_per_job"]
        minimum = whole(
            "policy.minimum_persons", value["minimum_persons"], PLATFORM_MINIMUM_PERSONS, 10**9
        )
        arbiters = tuple(address("policy.arbiters", a) for a in value.get("arbiters", []))
        holds = [
            whole(f"policy.{name}", value.get(name, getattr(Policy, name)), low, high)
            for name, low, high in (
                ("longest_deadline_s", 600, 365 * 24 * 3600),
                ("reservations_per_buyer", 1, 1000),
                ("max_job_minutes", 1, 31 * 24 * 60),
                ("max_memory_gb", 1, 10_000),
            )
        ]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"policy: look at {error}") from error
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1000:
        raise ConfigError(f"policy.max_epsilon_per_job={epsilon!r} must be a number above 0")
    return Policy(buyers, purposes, float(epsilon), minimum, arbiters, *holds)
