"""Send what a run has written to the escrow: settle, or give the money back. The only file
here that sends with a wallet's key.

The key is the operator's; it pays gas and nothing else. Every signature is checked before anything
is sent, so a damaged outcome costs no gas and is reported in words. Knows nothing of Flower.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datatokens.bindings.escrow import Escrow
from datatokens.errors import SignatureError, TransactionRefused
from datatokens.terms import (
    Attestation,
    JobTerms,
    acceptance_message,
    attestation_message,
    check_signature,
    rejection_message,
)
from datatokens.wire import parse
from fl_client.node import attestation as attest
from fl_client.protocol import sha256_hex
from fl_server.errors import RunFailed

log = logging.getLogger("datahub.hub")


def attestation_of(terms: JobTerms, model_hash: bytes, worked: int, report: bytes) -> Attestation:
    """What the nodes sign of a report that this theatre has built."""
    return Attestation(
        job_id=terms.job_id,
        model_hash=model_hash,
        report_hash=bytes.fromhex(sha256_hex(report)),
        worked=worked,
        outcomes=tuple(attest.outcome(line) for line in parse(report)["hospitals"]),
    )


def settle(
    escrow: Escrow, terms: JobTerms, outcome: Mapping[str, Any], report: bytes
) -> Attestation:
    """Send the attestations of an attested outcome. Raises RunFailed if too few signatures are
    good.
    """
    model_hash, worked = bytes.fromhex(outcome["model_hash"]), int(outcome["worked"])
    attestation = attestation_of(terms, model_hash, worked, report)
    message = attestation_message(terms, attestation)
    good: dict[str, bytes] = {}
    for line in terms.datasets:
        signature = bytes.fromhex(outcome["signatures"].get(line.node, ""))
        try:
            check_signature(message, signature, line.node)
        except SignatureError:
            continue  # counted below: the quorum decides
        good[line.node] = signature
    if len(good) < terms.quorum:
        raise RunFailed(f"{len(good)} good attestations, the quorum is {terms.quorum}")
    escrow.settle(terms, attestation, good)
    return attestation


def accept(escrow: Escrow, terms: JobTerms, acceptances: Mapping[str, str]) -> None:
    """Put the hospitals' signed acceptances on the chain; idempotent. A bad signature is left
    out.
    """
    good: dict[str, bytes] = {}
    for line in terms.datasets:
        signature = bytes.fromhex(acceptances.get(line.node, ""))
        try:
            check_signature(acceptance_message(terms), signature, line.node)
        except SignatureError:
            continue  # that hospital cannot be paid, and the others go on
        good[line.node] = signature
    try:
        escrow.accept(terms, good)
    except TransactionRefused:  # one hospital's key, dataset or rule: it alone is left out
        for node, signature in good.items():
            try:
                escrow.accept(terms, {node: signature})
            except TransactionRefused as error:
                log.warning("acceptance of %s is not taken by the chain: %s", node, error)


def refund_rejected(
    escrow: Escrow, terms: JobTerms, rejections: Mapping[str, Mapping[str, str]]
) -> None:
    """Send signed refusals, so that the buyer has the money back before the deadline."""
    good: dict[str, tuple[str, bytes]] = {}
    for line in terms.datasets:
        if line.node not in rejections:
            continue
        reason, signature = (
            rejections[line.node]["reason"],
            bytes.fromhex(rejections[line.node]["signature"]),
        )
        try:
            check_signature(rejection_message(terms, reason), signature, line.node)
        except SignatureError:
            continue
        good[line.node] = (reason, signature)
    needed = len(terms.datasets) - terms.quorum + 1
    if len(good) < needed:
        raise RunFailed(f"{len(good)} signed refusals, {needed} are needed before the deadline")
    escrow.refund_rejected(terms, good)
