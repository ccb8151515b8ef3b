"""Made-up records from a public schema alone, so that a buyer can run a whole training loop at home
before paying. They hold nothing of any patient: nobody's data was there to look at.

Numbers are spread by the schema's own centre and scale, levels are equally likely, and the outcome
leans on the inputs, so that a model has something to learn. Knows nothing of hubs or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, timedelta

import numpy as np

from fl_client.data.schemas import NO, YES, Feature, Schema, show
from fl_client.errors import DatasetError

MOST = 1_000_000


def made_up(schema: Schema, count: int, seed: int = 0) -> Iterator[list[str]]:
    """A header and `count` rows, as a table that tables.load reads by `schema`. Raises DatasetError
    for a schema of pictures, or another count than 1 to a million.
    """
    if schema.picture is not None:
        raise DatasetError(
            f"this dataset has pictures of shape {schema.picture.shape}: any picture files will do"
        )
    if not 1 <= count <= MOST:
        raise DatasetError(f"records={count} must be from 1 to {MOST}")
    yield list(schema.names)
    random = np.random.default_rng(seed)
    leaning = random.normal(size=schema.width) / math.sqrt(schema.width)
    for _ in range(count):
        cells, inputs = [], []
        for feature in schema.features:
            value = _value(feature, random)
            inputs += feature.inputs(value)
            cells.append(_cell(feature, value))
        chance = 1 / (1 + math.exp(-2 * float(leaning @ inputs)))
        yield [*cells, _outcome(schema, bool(random.random() < chance))]


def _value(feature: Feature, random: np.random.Generator) -> float | str:
    if feature.kind == "category":
        return feature.categories[int(random.integers(len(feature.categories)))]
    if feature.kind == "yes/no":
        return (NO, YES)[int(random.integers(2))]
    value = feature.centre + feature.scale * float(np.clip(random.normal(), -3, 3))
    return float(round(value)) if feature.kind == "date" else value


def _cell(feature: Feature, value: float | str) -> str:
    if feature.kind == "date":
        return (date.fromisoformat(feature.reference) + timedelta(days=float(value))).isoformat()
    return show(value)


def _outcome(schema: Schema, positive: bool) -> str:
    above = schema.target.positive_above
    if above is None:
        return YES if positive else NO
    return repr(above + 1 if positive else above)
