"""A job's papers for a data-protection officer and an auditor: what was asked, decided, charged and
released, from the node's own files and log, with what the owner has to say besides. Only reads;
knows nothing of how jobs are decided. What nobody has filled in is said to be missing, and never
made up.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from datatokens.bindings.escrow import Escrow
from datatokens.chain.connection import connect
from datatokens.errors import BankError
from datatokens.wire import parse
from fl_client.errors import ConfigError
from fl_client.node.audit_log import AuditLog, Line
from fl_client.node.config import NodeConfig
from fl_client.node.job_folder import JobFolder, job_folders
from fl_client.node.served import anchors
from fl_client.protocol import JobSpec, Signed

OWNERS_WORDS = "compliance.toml"
ASKED = {  # what only the owner can say -> in words
    "controller": "controller: name and address (GDPR Art. 30(1)(a))",
    "officer": "data protection officer",
    "legal_basis": "legal basis (GDPR Art. 6 and 9; the national law that applies)",
    "permit": "data permit or approval: number, authority, date (EHDS; ethics committee)",
    "categories": "categories of patients and of data (GDPR Art. 30(1)(c))",
    "retention": "how long what is kept here is kept (GDPR Art. 30(1)(f))",
    "informed": "how patients are informed, and how they can object",
}
SOFTWARE = ("datahub", "flwr", "torch", "opacus", "cryptography", "web3", "numpy")
RISKS = (
    "Epsilon bounds what the released numbers can tell about any one of them; it does not make it "
    "nothing, and it bounds nothing that was known from elsewhere.",
    "A worker that the buyer's model has taken over by a fault in native code could leave noise "
    "out of this job's own update. The checks and walls make that hard, not impossible.",
    "Whoever is root, or the node's own user, on the machine can read what jobs see.",
    "Walls that the machine had not are named below.",
    "A model that exists cannot be taken back when a patient withdraws; from the next round on "
    "nothing more of them goes into one.",
    "The names of those who decided are what they called themselves.",
)


def pack(config: NodeConfig, job: str) -> dict[str, Any]:
    """Everything about a job that was accepted here, as plain values. Raises ConfigError for one
    that was not, LogError where the log does not hold.
    """
    folder = _folder(config.folder, job)
    terms, answer = folder.terms, folder.answer
    if terms is None or not isinstance(answer, Signed):
        raise ConfigError(f"job {folder.path.name[:12]} was not accepted by this node")
    spec = JobSpec.from_dict(terms.spec)
    log, heads = AuditLog(config.folder), anchors(config)
    head = log.verify(heads)
    lines = [line for line in log.lines() if line.facts.get("job") == folder.path.name]
    accepted = next((line for line in lines if line.event == "accepted"), None)
    ours = next(line for line in terms.datasets if line.node in config.node_keys)
    entry = config.dataset(ours.dataset_id)
    report = folder.report
    line = _own_line(report, ours.dataset_id)
    by, at = folder.answered_by()
    return {
        "job_id": folder.path.name,
        "node": config.name,
        "asked_of_the_owner": _owners_words(config.folder),
        "record_of_processing": {
            "purpose": spec.purpose,
            "purpose_codes": list(spec.purpose_codes),
            "recipient": terms.buyer,
            "dataset": ours.dataset_id,
            "dataset_name": entry.manifest.name if entry else "",
            "patients_about": spec.persons[ours.dataset_id],
            "unit": entry.manifest.unit if entry else "",
            "together_with": [d.dataset_id for d in terms.datasets if d != ours],
            "transfers": "no record leaves the hospital; what leaves is listed below",
        },
        "decision": {
            "by": by,
            "at": at,
            "said": [asdict(one) for one in folder.decisions()],
            "policy_at_the_time": dict(accepted.facts.get("policy", {})) if accepted else {},
        },
        "terms": {
            "terms_hash": terms.spec_hash.hex(),
            "chain_id": terms.chain_id,
            "market": terms.market,
            "price_units": ours.price_units,
            "reward_units": terms.reward_units,
            "deadline": terms.deadline,
            "plan": spec.plan.as_dict(),
            "rounds": spec.rounds,
            "loss": spec.loss,
            "graph_hash": spec.graph_hash,
            "acceptance_signature": answer.signature.hex(),
        },
        "privacy": {
            "epsilon_job": line.get("epsilon_job"),
            "epsilon_lifetime": line.get("epsilon_lifetime"),
            "delta_lifetime": line.get("delta_lifetime"),
            "lifetime_promised": entry.manifest.lifetime_epsilon if entry else None,
        },
        "left_the_house": [
            {"what": one.facts["what"], "bytes": one.facts["bytes"], "sha256": one.facts["sha256"]}
            for one in lines
            if one.event == "released"
        ],
        "walls_missing": line.get("no_walls"),
        "result": {
            "attested": folder.attested,
            "report_hash": hashlib.sha256(report).hexdigest() if report else "",
            "on_chain": _on_chain(config, folder),
        },
        "audit_log": {
            "lines": head.number,
            "head": head.hash,
            "anchored": list(heads),
            "about_this_job": [_line(one) for one in lines],
        },
        "software": _software(),
        "residual_risks": list(RISKS),
    }


def _folder(node: Path, job: str) -> JobFolder:
    wanted = job.removeprefix("0x")
    found = [one for one in job_folders(node) if wanted and one.path.name.startswith(wanted)]
    if len(found) != 1:
        raise ConfigError(f"job={job!r}: {len(found)} jobs of this node begin so; one must")
    return found[0]


def _own_line(report: bytes | None, dataset_id: int) -> Mapping[str, Any]:
    lines = parse(report)["hospitals"] if report else []
    return next((one for one in lines if one["dataset_id"] == dataset_id), {})


def _owners_words(folder: Path) -> dict[str, dict[str, str]]:
    """What the owner has written in compliance.toml, "" for what is missing."""
    path = folder / OWNERS_WORDS
    try:
        said = tomllib.loads(path.read_text())
    except FileNotFoundError:
        said = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if strange := sorted(set(said) - set(ASKED)):
        raise ConfigError(f"{path}: {strange[0]} is unknown; known are {', '.join(ASKED)}")
    return {
        name: {"asked": words, "said": str(said.get(name, ""))} for name, words in ASKED.items()
    }


def _on_chain(config: NodeConfig, folder: JobFolder) -> str:
    """What the chain says of the attested report, in words."""
    report = folder.report
    if report is None or not folder.attested_model:
        return "this node has signed no result of it"
    try:
        escrow = Escrow(connect(config.chain), config.market)
        attested = escrow.attested(bytes.fromhex(folder.path.name))
    except BankError as error:
        return f"the chain could not be asked: {error}"
    if attested is None:
        return "the chain has no attestation of it"
    same = attested.report_hash == hashlib.sha256(report).digest()
    return "the chain has this report's hash" if same else "the chain has another report's hash"


def _line(line: Line) -> dict[str, Any]:
    return {**vars(line)}


def _software() -> list[dict[str, str]]:
    """Name, version, and SHA-256 of the list of files and their hashes that was installed."""
    found = []
    for name in SOFTWARE:
        made = metadata.distribution(name)
        record = made.read_text("RECORD") or ""
        digest = hashlib.sha256(record.encode()).hexdigest()
        found.append({"name": name, "version": made.version, "record_sha256": digest})
    return found


def as_json(facts: Mapping[str, Any]) -> bytes:
    """The papers as JSON."""
    return json.dumps(facts, indent=1, ensure_ascii=False).encode()
