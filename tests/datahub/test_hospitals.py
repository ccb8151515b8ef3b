"""Who a node key belongs to and which machine dials in for it: as the node registry says, or
refused."""

from __future__ import annotations

import secrets

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from eth_account import Account

from datahub.errors import BadRequest, NotFound
from datahub.market import hospitals
from datatokens.bindings.nodes import NodeRegistry, public_point
from datatokens.terms import sign
from tests.datahub.hub_world import HubWorld


def machine_key() -> bytes:
    """The public key of a new SuperNode (PEM)."""
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def enrolled(hub: HubWorld) -> tuple[str, bytes]:
    """A new node key of hospital 0 in the registry, and the machine that it vouches for (PEM)."""
    owner, secret, machine = hub.bank.hospitals[0], secrets.token_bytes(32), machine_key()
    node = str(Account.from_key(secret).address)
    nodes = NodeRegistry(owner, hub.bank.deployment.registry)
    hospital = nodes.register("https://hospital.example/card.json")
    nodes.add_key(hospital, node, sign(nodes.consent_message(hospital, str(owner.address)), secret))
    point = public_point(machine)
    nodes.bind_supernode(node, point, sign(nodes.supernode_message(node, point), secret))
    return node, machine


def test_register_node__the_key_vouches_for_the_machine__is_known_to_the_superlink(
    hub: HubWorld,
) -> None:
    node, machine = enrolled(hub)
    mine = hub.bank.registry(hub.bank.hospitals[0])
    before = mine.dataset(1).node
    mine.set_node(1, node)
    try:
        number = hospitals.register_node(hub.desk, node, machine.decode())
        assert hub.superlink.registered == {node: number}
        assert hospitals.register_node(hub.desk, node, machine.decode()) == number
    finally:
        mine.set_node(1, before)


def test_register_node__no_dataset_names_the_key__refuses(hub: HubWorld) -> None:
    node, machine = enrolled(hub)
    with pytest.raises(BadRequest, match="signs for no listed dataset; list one first"):
        hospitals.register_node(hub.desk, node, machine.decode())
    assert not hub.superlink.registered


@pytest.mark.parametrize("machine", [machine_key().decode(), "no key at all"])
def test_register_node__a_machine_that_nobody_vouches_for__refuses(
    hub: HubWorld, machine: str
) -> None:
    with pytest.raises(BadRequest, match=r"vouches for it in the node registry|not a PEM public"):
        hospitals.register_node(hub.desk, hub.bank.node(0), machine)


def test_hospital__a_registered_key__shows_its_registration_and_standing(hub: HubWorld) -> None:
    node, _ = enrolled(hub)
    hub.desk.index.catch_up()
    card = hospitals.hospital(hub.desk, node)
    assert (card["node"], card["state"]) == (node, "active")
    assert card["owner"] == hub.bank.hospitals[0].address and card["datasets"] == []


def test_hospital__a_key_that_is_in_no_registry_or_none__refuses(hub: HubWorld) -> None:
    with pytest.raises(NotFound, match="is not in the node registry"):
        hospitals.hospital(hub.desk, hub.bank.node(0))
    with pytest.raises(BadRequest, match="must be an address"):
        hospitals.hospital(hub.desk, "0x12")
