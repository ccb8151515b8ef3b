"""Datasets as their buyers look for them: what a hub lists, in words and types. Knows nothing of
money's movements, keys or chains; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_client.data import words
from fl_client.data.manifests import Manifest
from fl_client.data.schemas import Schema
from fl_client.data.words import ColumnWords
from fl_client.errors import NodeError


@dataclass(frozen=True)
class Dataset:
    """A hospital's dataset, as its manifest and its hub say.

    persons        about how many (noised); never fewer than `minimum_persons`
    unit           what privacy protects: a "patient" with all records, or a "record"
    price_units    of one job, base units of the payment token
    epsilon_left   what one more job may cost at most, as its node says; None where it does not
    target         what is to be learned, and in `learns` what that is
    columns        what the model is given, in words; none where it is given pictures
    schema_hash    datasets with the same one fit one order
    """

    id: int
    name: str
    hospital: str
    description: str
    persons: int
    minimum_persons: int
    unit: str
    price_units: int
    lifetime_epsilon: float
    delta: float
    epsilon_left: float | None
    target: str
    learns: str
    columns: tuple[ColumnWords, ...]
    schema_hash: str
    online: bool
    schema: Schema = field(repr=False)


def found(
    rows: Sequence[Mapping[str, Any]],
    max_price_units: int | None,
    unit: str,
    online: bool | None,
) -> list[Dataset]:
    """The datasets in a hub's answer that fit. Those whose hospital has not sent a manifest, or not
    a whole one, are none that can be ordered.
    """
    return [
        one
        for one in filter(None, map(_dataset, rows))
        if (max_price_units is None or one.price_units <= max_price_units)
        and unit in ("", one.unit)
        and online in (None, one.online)
    ]


def _dataset(row: Mapping[str, Any]) -> Dataset | None:
    try:
        manifest = Manifest.from_dict(row["manifest"] or {})
    except NodeError:
        return None
    schema, offer = manifest.schema, row["offer"]
    return Dataset(
        id=row["dataset_id"],
        name=manifest.name,
        hospital=manifest.hospital,
        description=manifest.description,
        persons=manifest.persons,
        minimum_persons=manifest.minimum_persons,
        unit=manifest.unit,
        price_units=row["price_units"],
        lifetime_epsilon=manifest.lifetime_epsilon,
        delta=manifest.delta,
        epsilon_left=offer["epsilon_left"] if offer else None,
        target=schema.target.name,
        learns=schema.target.words,
        columns=tuple(map(words.column, schema.features)),
        schema_hash=schema.hash,
        online=row["online"],
        schema=schema,
    )
