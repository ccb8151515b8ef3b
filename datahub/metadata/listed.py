"""A listed dataset as the documents about it need it, and the sentences that all of them say. Knows
nothing of HTTP, databases or formats.

Everything in a manifest was written by a stranger: here and in every format it is a value, never a
name, an address or markup.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

NEVER = (
    "The records are not downloadable: they never leave the hospital. A model is trained there, or "
    "a figure counted, under differential privacy, and only that comes back."
)
MADE_UP = (
    "Made-up records, by the public schema alone: nothing in them is anybody's data, and no record "
    "of the hospital was there to look at. They have the columns of the real ones, to try a model "
    "on."
)


@dataclass(frozen=True)
class Listed:
    """hub: its address, without a slash at the end; market: which registry on which chain it lists
    from, the same at whatever address; manifest: fl_client.data.manifests, as the hub keeps it;
    published: when this hub was first sent it; purposes, permits: what its node says that the data
    may be used for, in words and in codes of the Data Use Ontology, () where it says nothing.
    """

    hub: str
    market: str
    dataset_id: int
    manifest: Mapping[str, Any]
    schema_hash: str
    published: datetime
    purposes: Sequence[str] = ()
    permits: Sequence[str] = ()

    @property
    def page(self) -> str:
        """Its page, and what it is called in linked data."""
        return f"{self.hub}/datasets/{self.dataset_id}"

    @property
    def table(self) -> str:
        """Where its made-up records are; "" for pictures, of which nothing is made up."""
        return "" if self.manifest["schema"].get("picture") else f"{self.page}/made-up.csv"

    @property
    def identifier(self) -> str:
        """The same at every hub that lists from this registry."""
        return f"{self.market}/{self.dataset_id}"

    @property
    def size(self) -> str:
        """How much is in it, as far as that is public."""
        unit, persons = self.manifest["unit"], self.manifest["persons"]
        return (
            f"About {persons} {unit}s (noised for their privacy), never fewer than "
            f"{self.manifest['minimum_persons']}."
        )

    @property
    def privacy(self) -> str:
        """What may be spent of whom."""
        unit = self.manifest["unit"]
        return (
            f"Privacy protects each {unit}: all jobs of its life together may cost epsilon "
            f"{self.manifest['lifetime_epsilon']:g} at delta {self.manifest['delta']:g}, and the "
            "hospital's own node keeps the ledger."
        )


def urn(identifier: str) -> str:
    """A name that never changes, of what has this identifier (RFC 4122, version 5)."""
    return uuid.uuid5(uuid.NAMESPACE_URL, identifier).urn
