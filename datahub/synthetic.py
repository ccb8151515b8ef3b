"""Made-up records from a public schema alone, so that a buyer can run a whole training loop at home
before paying. They hold nothing of any patient: nobody's data was there to look at.

Numbers are spread by the schema's own centre and scale, levels are equally likely, texts are a
random half of the vocabulary, and the outcome leans on the inputs, so that a model has something to
learn. Knows nothing of hubs or jobs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from datetime import date, timedelta

import numpy as np

from fl_client.data.features import NO, YES, Feature
from fl_client.data.fields import show
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_client.errors import DatasetError

MOST = 1_000_000
MOST_NUMBER = sys.float_info.max


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
        chance = 0.5 + 0.5 * math.tanh(float(leaning @ inputs))  # which no inputs overflow
        yield [*cells, *_outcome(schema.target, chance, random)]


def _value(feature: Feature, random: np.random.Generator) -> float | str:
    if feature.kind == "category":
        return feature.categories[int(random.integers(len(feature.categories)))]
    if feature.kind == "text":
        said = random.random(len(feature.vocabulary)) < 0.5
        words = [word for word, there in zip(feature.vocabulary, said, strict=True) if there]
        return " ".join(words) + "."  # with an end, so that no word reads as a missing value
    if feature.kind == "yes/no":
        return (NO, YES)[int(random.integers(2))]
    value = feature.centre + feature.scale * min(3.0, max(-3.0, float(random.normal())))
    # as far as a cell can hold it: whoever lists writes what centre and scale they like
    if feature.kind != "date":
        return min(MOST_NUMBER, max(-MOST_NUMBER, value))
    reference = date.fromisoformat(feature.reference)
    first, last = ((end - reference).days for end in (date.min, date.max))
    return float(round(min(last, max(first, value))))


def _cell(feature: Feature, value: float | str) -> str:
    if feature.kind == "date":
        return (date.fromisoformat(feature.reference) + timedelta(days=float(value))).isoformat()
    return show(value)


def _outcome(target: Target, chance: float, random: np.random.Generator) -> list[str]:
    """Cells of what the target reads, so that a larger `chance` means more of it."""
    drawn = [bool(random.random() < chance) for _ in target.reads]
    if target.positive_above is not None:
        return [repr(target.positive_above + (1 if drawn[0] else 0))]
    if target.kind == "classes":
        return [show(target.levels[int(random.binomial(len(target.levels) - 1, chance))])]
    if target.kind == "number":
        part = min(1.0, max(0.0, chance + 0.1 * float(random.normal())))
        return [repr(target.low * (1 - part) + target.high * part)]
    if target.kind == "time to event":
        time = min(MOST_NUMBER, float(random.exponential(target.edges[-1] * (1.2 - chance))))
        return [repr(time), YES if time <= target.edges[-1] else NO]
    return [YES if one else NO for one in drawn]
