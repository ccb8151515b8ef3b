"""When a node's offers (offer.py) are made and sent to the hub: at start, when one has changed, and
before one runs out. The hub is nobody's authority: that it does not answer is logged once and stops
nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from datatokens.bindings.registry import State
from datatokens.errors import BankError
from fl_client.errors import NodeError
from fl_client.node.entries import DatasetEntry
from fl_client.node.listing import publish
from fl_client.node.offer import OPEN, PAUSED, Offer, banded, signed
from fl_client.node.room import DataRoom
from fl_client.privacy.training import speed

log = logging.getLogger("datahub.node")

GOOD_FOR_S = 3600
LOOK_EVERY_S = 60.0  # without a reason
LEAST_S = 5.0  # between two looks, whatever the reason

Send = Callable[[int, dict[str, str]], None]


def make(room: DataRoom, entry: DatasetEntry, now: int) -> Offer | None:
    """The offer of a dataset as things stand; None for one that is retired, which is not offered.
    Raises NodeError or BankError.
    """
    standing = room.registry.standing(entry.dataset_id)
    if standing.state is State.RETIRED:
        return None
    policy, manifest = room.config.policy_of(entry.dataset_id), entry.manifest
    lifetime = min(manifest.lifetime_epsilon, room.ledger.budget(entry.name).epsilon)
    return Offer(
        dataset_id=entry.dataset_id,
        node=room.config.node_address,
        state=PAUSED if standing.state is State.PAUSED else OPEN,
        max_epsilon_per_job=policy.max_epsilon_per_job,
        epsilon_left=banded(room.ledger.epsilon_left(entry.name), lifetime),
        delta=manifest.delta,
        buyers=policy.buyers,
        purposes=policy.purposes,
        arbiters=policy.arbiters,
        minimum_persons=max(policy.minimum_persons, manifest.minimum_persons),
        longest_deadline_s=policy.longest_deadline_s,
        max_job_minutes=policy.max_job_minutes,
        operations_per_second=speed(),
        issued_at=now,
        valid_until=now + GOOD_FOR_S,
    )


class Publisher:
    """Keeps the hub's copies of a room's offers as they should be; `look` costs little. `spoke` is
    called, in another thread, whenever the hub has taken one.
    """

    def __init__(
        self,
        room: DataRoom,
        send: Send | None = None,
        spoke: Callable[[], None] = lambda: None,
    ):
        self.room, self.send, self.spoke = room, send or self._put, spoke
        self._sent: dict[int, Offer] = {}
        self._next = 0.0
        self._complained = False
        self._sending: threading.Thread | None = None

    def soon(self) -> None:
        """Something has happened that may have changed an offer."""
        self._next = min(self._next, time.monotonic() + LEAST_S)

    def look(self) -> None:
        """Send what has changed or runs out, in a thread of its own: a hub that does not answer
        holds nobody up.
        """
        if time.monotonic() < self._next or (self._sending and self._sending.is_alive()):
            return
        self._next = time.monotonic() + LOOK_EVERY_S
        due = self.due(int(time.time()))
        if due:
            self._sending = threading.Thread(target=self._send, args=(due,), daemon=True)
            self._sending.start()

    def due(self, now: int) -> list[Offer]:
        """Offers that the hub does not have as they are now, or not for much longer."""
        found = []
        for entry in self.room.datasets:
            try:
                offer = make(self.room, entry, now)
            except (NodeError, BankError) as error:
                log.info("dataset %d: no offer now: %s", entry.dataset_id, error)
                continue
            if offer is None:
                continue
            before = self._sent.get(entry.dataset_id)
            same = before is not None and offer == replace(
                before, issued_at=offer.issued_at, valid_until=offer.valid_until
            )
            if before is None or not same or before.valid_until - now < GOOD_FOR_S / 2:
                found.append(offer)
        return found

    def _send(self, due: list[Offer]) -> None:
        config = self.room.config
        for offer in due:
            signature = signed(offer, config.chain_id, config.market, config.node_key)
            body = {"offer": offer.to_json().decode(), "signature": signature.hex()}
            try:
                self.send(offer.dataset_id, body)
            except NodeError as error:
                if not self._complained:
                    log.warning("the hub does not take this node's offers: %s", error)
                self._complained = True
                return
            self.spoke()
            self._sent[offer.dataset_id] = offer
            self._complained = False

    def _put(self, dataset_id: int, body: dict[str, str]) -> None:
        publish(self.room.config, "PUT", f"/api/v1/datasets/{dataset_id}/offer", body)
