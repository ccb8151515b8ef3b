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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from fl_client.node.policy import (
    ANYONE,
    BUILT_IN,
    PERSON,
    RULE_FIELDS,
    TWO_PERSONS,
    Policy,
    Rule,
    span,
)
from fl_client.node.purposes import DISEASE, INTENTS, MODIFIERS, PERMISSIONS, problem


@dataclass(frozen=True)
class Notify:
    """Who is told that a job waits: a URL, and a mail server (host:port) with addresses."""

    webhook: str = ""
    smtp: str = ""
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()


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
    policies: Mapping[int, Policy]  # of the datasets that have one of their own
    rules: tuple[Rule, ...]
    notify: Notify
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

    def policy_of(self, dataset_id: int) -> Policy:
        """The rules of a dataset."""
        return self.policies.get(dataset_id, self.policy)

    def dataset(self, dataset_id: int) -> DatasetEntry | None:
        """The dataset with this id, if this node serves it."""
        return next((entry for entry in self.datasets if entry.dataset_id == dataset_id), None)


TEMPLATE = """\
# The node of one hospital. Everything here can be read and changed by the hospital. A change of
# policy, rules or notify is taken in by a running node; for anything else, restart it.
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
longest_deadline_s = 1209600       # refuse jobs whose end is farther off (14 days)
reservations_per_buyer = 3         # how many jobs of one buyer may hold one at a time
max_job_minutes = 240              # refuse jobs that would train longer on a machine like this
max_memory_gb = 4                  # refuse jobs that need more memory
arbiters = []  # addresses trusted to rule on disputes; others' dispute windows are refused
approval = "person"                # who says yes where no rule below does; or "two persons"
permits = []                       # what the data may be used for: DUO codes, like "DUO:0000006"
max_epsilon_per_month = 0          # the most that all jobs of any 30 days may cost; 0: no limit
losses = ["*"]                     # losses that may be trained by, or "*"
models = ["*"]                     # SHA-256 of graphs that may be trained, "mlp", ..., or "*"
partners = ["*"]                   # ids of datasets that are trained together with, or "*"
least_price_units = 0              # what a job must pay at least, in base units
begin = []                         # when jobs may begin, like "mon-fri 20:00-06:00"; []: always
threads = 0                        # how many a job may use; 0: as many as there are processors
gpu = true                         # whether jobs may use a graphics processor
hold_results = false               # true: a person lets each final result go

# For one dataset alone, what differs from the above:
# [dataset.7]
# purposes = ["cardiology"]

# Jobs that are taken without asking anybody. Every line must be there.
# [[rules]]
# name = "our partners"
# datasets = ["*"]
# buyers = ["0x..."]
# purposes = ["DUO:0000006"]
# models = ["*"]
# max_epsilon = 1.0
# jobs_per_week = 3

# Who is told that a job waits (never anything about data):
# [notify]
# webhook = "https://..."
# smtp = "mail.example.org:587"
# mail_from = "node@example.org"
# mail_to = ["it@example.org"]
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


OWN = (
    "keys",
    "datasets",
    "snapshots",
    "pictures",
    "jobs",
    "ledger.*",
    "node.toml",
    "compliance.toml",
    "superlink-ca.crt",
)


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
    not_here = ("folder", "datasets", "unusable", "policies")
    known = [n for n in NodeConfig.__dataclass_fields__ if n not in not_here] + ["dataset"]
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
    given = {name: raw.get(name, {}) for name in ("policy", "dataset", "notify")}
    for name, value in given.items():
        if not isinstance(value, dict):
            problems.append(f"{name} must be a table")
            given[name] = {}
    if "policy" not in raw:
        problems.append("policy is missing")
    own = _policy("policy.", given["policy"], None, problems)
    of_datasets = {}
    for number, value in given["dataset"].items():
        if not (number.isascii() and number.isdigit()) or not isinstance(value, dict):
            problems.append(f"dataset.{number} must be a table named by a dataset's id")
        elif own is not None:
            of_datasets[int(number)] = _policy(f"dataset.{number}.", value, own, problems) or own
    rules = _rules(raw.get("rules", []), problems)
    notify = _notify(given["notify"], problems)
    if problems or own is None:
        raise ConfigError(f"{folder}/node.toml: " + "; ".join(problems))
    datasets, unusable = entries.read(folder)
    return NodeConfig(
        folder=folder,
        policy=own,
        policies=of_datasets,
        rules=rules,
        notify=notify,
        datasets=datasets,
        unusable=unusable,
        **values,
    )


def changed(old: NodeConfig, new: NodeConfig) -> list[str]:
    """What differs in policy, rules and notices, one clause each: what, before, after."""
    before, after = _flat(old), _flat(new)
    return [
        f"{name}: {before.get(name, 'not there')} -> {after.get(name, 'not there')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _flat(config: NodeConfig) -> dict[str, str]:
    tables: dict[str, Any] = {"policy": config.policy, "notify": config.notify}
    tables |= {f"dataset.{number}": policy for number, policy in config.policies.items()}
    tables |= {f"rules.{rule.name}": rule for rule in config.rules}
    return {
        f"{table}.{name}": repr(value)
        for table, made in tables.items()
        for name, value in vars(made).items()
    }


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


# -- policy, rules, notify -------------------------------------------------------------------------


def _many(one: Callable[[str, Any], str]) -> Callable[[str, Any], tuple[str, ...]]:
    def read(name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{name}={value!r} must be a list")
        return tuple(one(name, each) for each in value)

    return read


def _account(name: str, value: Any) -> str:
    return ANYONE if value == ANYONE else address(name, value)


def _number_or_any(name: str, value: Any) -> str:
    """A dataset's id, written as a number or as text."""
    text = str(value)
    if text != ANYONE and (isinstance(value, bool) or not text.isascii() or not text.isdigit()):
        raise ConfigError(f'{name}: {value!r} must be a dataset id, or "*"')
    return text


def _graph(name: str, value: Any) -> str:
    if value in (ANYONE, *BUILT_IN):
        return str(value)
    text = value.removeprefix("0x") if isinstance(value, str) else ""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ConfigError(
            f'{name}: {value!r} must be the SHA-256 of a graph, {", ".join(BUILT_IN)}, or "*"'
        )
    return text


def _epsilon(least: float) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value < 1000 or (not least and value < 0):
            what = "a number above 0" if least else "a number from 0, which is no limit,"
            raise ConfigError(f"{name}={value!r} must be {what} and below 1000")
        return float(value)

    return read


def _between(low: int, high: int) -> Callable[[str, Any], int]:
    return lambda name, value: whole(name, value, low, high)


def _one_of(*allowed: Any) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            words = " or ".join(
                str(one).lower() if one in (True, False) else one for one in allowed
            )
            raise ConfigError(f"{name}={value!r} must be {words}")
        return value

    return read


def _codes(name: str, value: Any) -> tuple[str, ...]:
    found = _many(_text)(name, value)
    if wrong := problem(found, [*PERMISSIONS, *MODIFIERS]):
        raise ConfigError(f"{name}: {wrong}")
    return found


def _spans(name: str, value: Any) -> tuple[str, ...]:
    found = _many(_text)(name, value)
    for text in found:
        try:
            span(text)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    return found


OF_POLICY: Mapping[str, Callable[[str, Any], Any]] = {
    "buyers": _many(_account),
    "purposes": _many(_text),
    "max_epsilon_per_job": _epsilon(1e-6),
    "minimum_persons": _between(PLATFORM_MINIMUM_PERSONS, 10**9),
    "arbiters": _many(address),
    "longest_deadline_s": _between(600, 365 * 24 * 3600),
    "reservations_per_buyer": _between(1, 1000),
    "max_job_minutes": _between(1, 31 * 24 * 60),
    "max_memory_gb": _between(1, 10_000),
    "threads": _between(0, 1024),
    "gpu": _one_of(True, False),
    "approval": _one_of(PERSON, TWO_PERSONS),
    "permits": _codes,
    "max_epsilon_per_month": _epsilon(0),
    "max_epsilon_lifetime": _epsilon(0),
    "losses": _many(_text),
    "models": _many(_graph),
    "partners": _many(_number_or_any),
    "least_price_units": _between(0, 10**30),
    "begin": _spans,
    "hold_results": _one_of(True, False),
}
OF_RULES: Mapping[str, Callable[[str, Any], Any]] = {
    "name": lambda name, value: _text(name, value),
    "datasets": _many(_number_or_any),
    "buyers": _many(_account),
    "purposes": _many(_text),
    "models": _many(_graph),
    "max_epsilon": _epsilon(1e-6),
    "jobs_per_week": _between(1, 10_000),
}
ALWAYS = ("buyers", "purposes", "max_epsilon_per_job", "minimum_persons")


def _table(
    where: str,
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[str, Any], Any]],
    problems: list[str],
) -> dict[str, Any]:
    """The values of a table of node.toml; what is wrong with it is added to `problems`."""
    problems += unknown(where, given, [*readers])
    found = {}
    for name, value in given.items():
        if name in readers:
            try:
                found[name] = readers[name](f"{where}{name}", value)
            except (TermsError, ConfigError) as error:
                problems.append(str(error))
    return found


def _policy(
    where: str, given: Mapping[str, Any], base: Policy | None, problems: list[str]
) -> Policy | None:
    """The policy in a table; what `base` says where the table says nothing. None where one cannot
    be made.
    """
    before = len(problems)
    found = _table(where, given, OF_POLICY, problems)
    if base is not None:
        return replace(base, **found)
    problems += [f"{where}{name} is missing" for name in ALWAYS if name not in given]
    return None if len(problems) > before else Policy(**found)


def _rules(given: Any, problems: list[str]) -> tuple[Rule, ...]:
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        problems.append("rules must be tables: [[rules]]")
        return ()
    made: list[Rule] = []
    for number, one in enumerate(given, 1):
        where, before = f"rules {number}: ", len(problems)
        found = _table(where, one, OF_RULES, problems)
        for name in RULE_FIELDS:
            if name not in one:
                problems.append(f'{where}{name} is missing; a rule says everything, "*" included')
            elif found.get(name) == ():
                problems.append(f"{where}{name} is empty, so the rule would take nothing")
        for code in found.get("purposes", ()):
            shape = code.upper().startswith(("DUO:", "MONDO:"))
            if shape and code not in INTENTS and not DISEASE.fullmatch(code):
                problems.append(f"{where}purposes: {code!r} is not a code that a job can declare")
        if len(problems) == before:
            made.append(Rule(**found))
    names = [rule.name for rule in made]
    problems += [
        f"rules: two are called {n!r}" for n in sorted({n for n in names if names.count(n) > 1})
    ]
    return tuple(made)


def _notify(given: Mapping[str, Any], problems: list[str]) -> Notify:
    def mail_server(name: str, value: Any) -> str:
        host, _, port = _text(name, value).rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"{name}={value!r} must look like mail.example.org:587")
        return str(value)

    def web(name: str, value: Any) -> str:
        if not _text(name, value).startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ConfigError(f"{name}={value!r} must begin with https://")
        return str(value)

    readers: dict[str, Callable[[str, Any], Any]] = {
        "webhook": web,
        "smtp": mail_server,
        "mail_from": _text,
        "mail_to": _many(_text),
    }
    found = _table("notify.", given, readers, problems)
    if bool(found.get("smtp")) != bool(found.get("mail_to") and found.get("mail_from")):
        problems.append("notify: smtp, mail_from and mail_to go together")
    return Notify(**found)
