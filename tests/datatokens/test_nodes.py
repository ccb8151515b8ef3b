"""The node registry's binding on both chains: keys come with consent, rotate, are revoked, vouch
for machines.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import pytest
from bank_world import World
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from eth_account import Account

from datatokens.bindings.nodes import KeyState, NodeRegistry, Offer, public_point
from datatokens.chain.connection import Chain
from datatokens.errors import TermsError, TransactionRefused
from datatokens.terms import acceptance_message, sign


@dataclass(frozen=True)
class Key:
    secret: bytes
    address: str


def key() -> Key:
    secret = secrets.token_bytes(32)
    return Key(secret, str(Account.from_key(secret).address))


def pem(curve: ec.EllipticCurve) -> bytes:
    public = ec.generate_private_key(curve).public_key()
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def registry(world: World, chain: Chain) -> NodeRegistry:
    return NodeRegistry(chain, world.deployment.registry)


def enrolled(world: World, owner: Chain) -> tuple[NodeRegistry, int, Key]:
    """A hospital of `owner` with one active key."""
    nodes, first = registry(world, owner), key()
    hospital = nodes.register("https://hospital.example/card.json")
    nodes.add_key(
        hospital,
        first.address,
        sign(nodes.consent_message(hospital, str(owner.address)), first.secret),
    )
    return nodes, hospital, first


def test_add_key__with_its_consent__is_active_for_its_hospital(world: World) -> None:
    owner = world.hospitals[0]
    nodes, hospital, first = enrolled(world, owner)
    status = nodes.status(first.address)
    assert (status.state, status.hospital_id, status.owner) == (
        KeyState.ACTIVE,
        hospital,
        owner.address,
    )
    assert nodes.owner(hospital) == owner.address
    assert nodes.status(key().address).state is KeyState.UNKNOWN


def test_add_key__somebody_elses_key__refuses(world: World) -> None:
    owner, victim, thief = world.hospitals[0], key(), key()
    nodes, hospital, _ = enrolled(world, owner)
    consent = sign(nodes.consent_message(hospital, str(owner.address)), thief.secret)
    with pytest.raises(TransactionRefused, match=f"the key {victim.address} has not signed this"):
        nodes.add_key(hospital, victim.address, consent)


def test_rotate_key__overlap__both_serve_then_the_new_one(world: World) -> None:
    owner, second = world.hospitals[1], key()
    nodes, hospital, first = enrolled(world, owner)
    consent = sign(nodes.consent_message(hospital, str(owner.address)), second.secret)
    nodes.rotate_key(first.address, second.address, 500, consent)
    assert {nodes.status(k.address).state for k in (first, second)} == {KeyState.ACTIVE}
    world.travel(2000)
    assert nodes.status(first.address).state is KeyState.EXPIRED
    assert nodes.status(second.address).state is KeyState.ACTIVE
    with pytest.raises(TransactionRefused, match="is expired, so this cannot be done"):
        nodes.rotate_key(first.address, key().address, 0, b"\0" * 65)


def test_revoke_key__accepted_job__the_acceptance_can_be_taken_back_by_anybody(
    world: World,
) -> None:
    owner, stolen = world.hospitals[0], key()
    nodes, hospital, _ = enrolled(world, owner)
    nodes.add_key(
        hospital,
        stolen.address,
        sign(nodes.consent_message(hospital, str(owner.address)), stolen.secret),
    )
    mine = world.registry(owner)
    dataset = world.dataset_ids[0]
    before = mine.dataset(dataset).node
    mine.set_node(dataset, stolen.address)
    try:
        quoted = world.terms(quorum=1)
        lines = [
            replace(t, node=stolen.address) if t.dataset_id == dataset else t
            for t in quoted.datasets
        ]
        terms = replace(quoted, datasets=tuple(sorted(lines, key=lambda line: line.node)))
        escrow = world.escrow(world.buyer)
        escrow.create_job(terms)
        signatures = world.acceptances(terms, (1, 2)) | {
            stolen.address: sign(acceptance_message(terms), stolen.secret)
        }
        escrow.accept(terms, signatures)
        with pytest.raises(TransactionRefused, match="is not revoked, so what it accepted stands"):
            escrow.revoke_acceptances(terms, [stolen.address])
        nodes.revoke_key(stolen.address)
        assert nodes.status(stolen.address).owner is None
        escrow.revoke_acceptances(terms, [stolen.address])
        assert escrow.job(terms.job_id).accepted == 0b111 ^ 1 << terms.index_of_node(stolen.address)
        with pytest.raises(
            TransactionRefused, match="is revoked in the node registry, so it cannot accept jobs"
        ):
            escrow.accept(terms, signatures)
    finally:
        mine.set_node(dataset, before)
    with pytest.raises(TransactionRefused, match="serves once, so make a new one"):
        nodes.add_key(
            hospital,
            stolen.address,
            sign(nodes.consent_message(hospital, str(owner.address)), stolen.secret),
        )


def test_bind_supernode__by_a_stranger_with_the_keys_word__is_vouched_for(world: World) -> None:
    nodes, _, first = enrolled(world, world.hospitals[2])
    anybody = registry(world, world.buyer)
    one, two = public_point(pem(ec.SECP384R1())), public_point(pem(ec.SECP256R1()))
    word = sign(anybody.supernode_message(first.address, one), first.secret)
    anybody.bind_supernode(first.address, one, word)
    assert nodes.vouches(first.address, one) and not nodes.vouches(first.address, two)
    anybody.bind_supernode(
        first.address, two, sign(anybody.supernode_message(first.address, two), first.secret)
    )
    assert nodes.vouches(first.address, two) and not nodes.vouches(first.address, one)
    with pytest.raises(TransactionRefused, match="has not signed this"):
        anybody.bind_supernode(
            first.address, one, word
        )  # good once: an old machine does not come back
    nodes.revoke_key(first.address)
    assert not nodes.vouches(first.address, two)


@pytest.mark.parametrize(
    "given", [b"", b"nothing", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_public_point__no_key__refuses(given: bytes) -> None:
    with pytest.raises(TermsError, match="not a PEM public key"):
        public_point(given)


def test_public_point__key_without_a_curve_point__refuses() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    raw = other.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(TermsError, match="not one of an elliptic curve"):
        public_point(raw)


def test_set_offer__owner__is_read_back_with_its_version(world: World) -> None:
    nodes, hospital, _ = enrolled(world, world.hospitals[0])
    token = world.deployment.payment_token
    assert nodes.offer(hospital) is None
    nodes.set_offer(hospital, token, 250, "1 GPU, 80 GiB")
    assert nodes.offer(hospital) == Offer(token, 250, 1, "1 GPU, 80 GiB")
    with pytest.raises(TermsError, match="bytes of hardware"):
        nodes.set_offer(hospital, token, 250, "x" * 257)
    with pytest.raises(TransactionRefused, match="does not own hospital"):
        registry(world, world.buyer).set_offer(hospital, token, 1, "mine")
