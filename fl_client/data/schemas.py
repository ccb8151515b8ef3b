"""How a hospital's columns become a model's inputs and a target, as a public document with a hash.
Knows nothing of rows, files or how a hospital calls its columns.

Preprocessing uses only public constants written here (centre, scale, levels): nothing is fitted on
patients, so nothing has to be paid for. A schema is made once, by whoever wants hospitals to train
together; each hospital maps its own columns and words to it in private (sources.py).

It has columns (features.py), or every record is one picture by public rules (pictures.py); and a
target (targets.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from datatokens.terms import canonical_json
from fl_client.data.features import Feature
from fl_client.data.fields import refuse_unknown
from fl_client.data.pictures import PictureRules
from fl_client.data.targets import Target
from fl_client.errors import DatasetError

OUTPUT = "output"  # the loss of model/losses.py that has no target
PICTURE = "picture"  # the column that names a record's file
MOST_FEATURES = 2000


@dataclass(frozen=True)
class Schema:
    """The features in order, or what becomes of a picture, and the target."""

    features: tuple[Feature, ...]
    target: Target
    picture: PictureRules | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model's input: (inputs,), or that of a picture."""
        if self.picture is not None:
            return self.picture.shape
        return (sum(feature.width for feature in self.features),)

    @property
    def width(self) -> int:
        """How many numbers the model's input has."""
        return math.prod(self.shape)

    @property
    def losses(self) -> dict[str, int]:
        """Loss that a job over it may name -> how many outputs that takes; the usual one first."""
        return self.target.losses | {OUTPUT: 1}

    def inputs(self, loss: str) -> tuple[int, ...]:
        """The shape of a model's input under `loss`. Under "output" there is no target, and its
        numbers follow the features; they stand alone for pictures.
        """
        if loss != OUTPUT:
            return self.shape
        return (math.prod(self.target.shape) + (0 if self.picture else self.width),)

    @property
    def names(self) -> tuple[str, ...]:
        """What is wanted of a hospital's table: features in order or a picture's file, then what
        the target reads.
        """
        given = (PICTURE,) if self.picture else tuple(feature.name for feature in self.features)
        return (*given, *(column.name for column in self.target.reads))

    def as_dict(self) -> dict[str, Any]:
        """The schema as JSON."""
        if self.picture is not None:
            return {PICTURE: self.picture.as_dict(), "target": self.target.as_dict()}
        return {
            "features": [feature.as_dict() for feature in self.features],
            "target": self.target.as_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Schema:
        """The schema in `value`; raises DatasetError naming the field that is wrong."""
        try:
            refuse_unknown("schema", value, {"features", PICTURE, "target"})
            if PICTURE in value:
                if "features" in value:
                    raise DatasetError("schema: features or a picture, and not both")
                rules = PictureRules.from_dict(value[PICTURE])
                schema = cls((), Target.from_dict(value["target"]), rules)
                _all_different(schema)
                return schema
            if len(value["features"]) > MOST_FEATURES:
                raise DatasetError(
                    f"features: {len(value['features'])} columns; {MOST_FEATURES} are the most"
                )
            schema = cls(
                tuple(Feature.from_dict(item) for item in value["features"]),
                Target.from_dict(value["target"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                "schema must look like {features: [{name, centre, scale, categories?}], "
                f"target: {{name, kind or positive_above}}}}; look at {error}"
            ) from error
        if not schema.features:
            raise DatasetError("features: there must be at least one")
        _all_different(schema)
        return schema

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: two datasets fit one job if it is
        equal.
        """
        return hashlib.sha256(canonical_json(self.as_dict())).hexdigest()


def _all_different(schema: Schema) -> None:
    if len(set(schema.names)) != len(schema.names):
        raise DatasetError(
            "features: names must be there, all different, and not contain the target"
        )
