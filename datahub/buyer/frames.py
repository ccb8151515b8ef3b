"""A table in memory by its original columns, as a model's inputs: the way back from a schema to
whoever uses a model. pandas and polars are taken as they come, and none of them is imported.

Every cell goes the way that a hospital's own goes (fl_client/data/readers.py, cells.py), so that
node and buyer cannot read the same value differently. Knows nothing of models, jobs or hubs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_client.data import readers
from fl_client.data.cells import Cell
from fl_client.data.features import Feature
from fl_client.data.pictures import read_picture
from fl_client.data.schemas import PICTURE, Schema
from fl_client.data.shards import to_inputs
from fl_client.data.sources import Source, plain
from fl_client.errors import DatasetError

Table = Any  # a pandas or polars DataFrame, a dict of columns, or a list of dicts
MEMORY = Source("csv", Path("table"))  # written as usual: no words or marks of a hospital's own
SHOWN = 3  # cells that are wrong are named at once, before one gives up
FAR, FAR_SHARE = 4.0, 0.05  # so many scales from the centre are rare: more of them is another unit
OFF, OFF_LEAST = (
    2.0,
    20,
)  # a whole column beside the centre, where there are enough values to say so


class Doubt(UserWarning):
    """A table can be read, and may not be what it should be."""


@dataclass(frozen=True)
class Inputs:
    """features [m, *schema.shape] float32 of the records that have all that the schema needs;
    lacks: for each of the table's n records the column that it lacks, "" for none.
    """

    features: np.ndarray
    lacks: tuple[str, ...]

    @property
    def complete(self) -> np.ndarray:
        """Which of the n records are in `features`."""
        return np.array([not one for one in self.lacks], dtype=bool)


def read(table: Table, schema: Schema) -> Inputs:
    """The inputs of a table in memory. Columns go by the schema's names in any order; others are
    not looked at. Records are counted from 0. Raises DatasetError naming column, record and value.
    """
    return _inputs(_rows(table, _wanted(schema)), schema, MEMORY)


def read_file(path: Path | str, schema: Schema) -> Inputs:
    """The inputs of a table's file, of whatever kind a hospital may have. Raises DatasetError."""
    source = plain(Path(path))
    wanted = _wanted(schema)

    def checked() -> Iterator[tuple[str, readers.Row]]:
        for where, row in readers.rows(source):
            _check_columns(row, wanted)
            yield where, row

    return _inputs(checked(), schema, source)


def _wanted(schema: Schema) -> tuple[str, ...]:
    return schema.names[: 1 if schema.picture else len(schema.features)]


def _inputs(rows: Iterable[tuple[str, readers.Row]], schema: Schema, source: Source) -> Inputs:
    if schema.picture is not None:
        return _pictures(rows, schema, source)
    cells = [Cell(feature, source.column(feature.name), source) for feature in schema.features]
    features, lacks, problems = array("f"), [], []
    for where, row in rows:
        try:
            found = [cell.inputs(row, where) for cell in cells]
        except DatasetError as error:
            problems.append(str(error))
            if len(problems) >= SHOWN:
                break
            continue
        lacking = (f.name for f, one in zip(schema.features, found, strict=True) if one is None)
        lacks.append(next(lacking, ""))
        for one in found if not lacks[-1] else ():
            features.extend(one or ())
    if problems:
        raise DatasetError("; ".join(problems))
    table = np.array(features, dtype=np.float32).reshape(lacks.count(""), schema.width)
    return Inputs(table, tuple(lacks))


def _pictures(rows: Iterable[tuple[str, readers.Row]], schema: Schema, source: Source) -> Inputs:
    assert schema.picture is not None
    found: list[np.ndarray] = []
    lacks = []
    for _, row in rows:
        lacks.append("" if row[PICTURE] else PICTURE)
        if row[PICTURE]:
            path = Path(row[PICTURE]) if source is MEMORY else source.picture(row[PICTURE])
            found.append(np.empty(schema.shape, np.float32))
            to_inputs(read_picture(path, schema.picture), found[-1])
    return Inputs(np.array(found, np.float32).reshape(-1, *schema.shape), tuple(lacks))


# -- tables in memory ------------------------------------------------------------------------------


def _rows(table: Table, wanted: Sequence[str]) -> Iterator[tuple[str, readers.Row]]:
    """(where, cells as text) of every record."""
    columns = _columns(table, wanted)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {many}" for name, many in list(lengths.items())[:8])
        raise DatasetError(f"the table's columns differ in length: {said}")
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        where = f"record {i}"
        yield (
            where,
            {
                name: readers.cell_text(_plain(value), f"{where}: {name}")
                for name, value in zip(columns, values, strict=True)
            },
        )


def _columns(table: Table, wanted: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The wanted columns of whatever a table is. Raises DatasetError."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        named = [name for name in table.columns if isinstance(name, str)]
        _check_columns(named, wanted)
        if twice := [name for name in wanted if named.count(name) > 1]:
            raise DatasetError(f"the table has the column {twice[0]} more than once")
        chosen = table[list(wanted)]
        # pandas and polars say "as lists" in two ways
        asked = ("list",) if hasattr(chosen, "iloc") else ()
        given: Mapping[str, Any] = chosen.to_dict(*asked, **({} if asked else {"as_series": False}))
    elif isinstance(table, Mapping):
        given = table
        _check_columns(given, wanted)
    elif isinstance(table, Sequence) and all(isinstance(one, Mapping) for one in table):
        for i, one in enumerate(table):
            _check_columns(one, wanted, f"record {i}")
        given = {name: [one[name] for one in table] for name in wanted}
    else:
        raise DatasetError(
            f"table: a {type(table).__name__} is none; give a pandas or polars DataFrame, a dict "
            "of columns, a list of dicts, or the path of a file"
        )
    return {name: _listed(name, given[name]) for name in wanted}


def _check_columns(given: Iterable[Any], wanted: Sequence[str], where: str = "the table") -> None:
    there = list(given)
    known = set(there)
    if lacking := [name for name in wanted if name not in known]:
        raise DatasetError(
            f"{where} lacks the column(s) {', '.join(lacking[:20])}; it has "
            f"{', '.join(map(str, there[:40])) or 'none'}"
        )


def _listed(name: str, values: Any) -> Sequence[Any]:
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    if kind == "M":  # numpy's own dates would come out as a number of nanoseconds
        values = values.astype("datetime64[us]")
    if hasattr(values, "tolist"):
        values = values.tolist()
    elif hasattr(values, "to_list"):
        values = values.to_list()
    if not isinstance(values, list | tuple):
        raise DatasetError(
            f"column {name}: a {type(values).__name__} is none; give a list of values"
        )
    return values


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's; None for what pandas has for a missing value."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    return value.item() if isinstance(value, np.generic) else value


# -- values that nobody would expect ---------------------------------------------------------------


def doubts(inputs: Inputs, schema: Schema) -> list[str]:
    """A sentence for each column whose numbers are not where the schema's public constants look
    for them: it may be in another unit, or scaled already. A model says nonsense of such a column
    without a word.
    """
    if schema.picture is not None:
        return []
    found, at = [], 0
    for feature in schema.features:
        if feature.kind in ("number", "date"):
            scaled = inputs.features[:, at].astype(np.float64)
            if feature.stands:
                scaled = scaled[inputs.features[:, at + 1] == 0]
            found += _doubt(feature, np.abs(scaled))
        at += feature.width
    return found


def _doubt(feature: Feature, away: np.ndarray) -> list[str]:
    def beyond(limit: float) -> list[str]:
        low, high = (feature.centre + sign * limit * feature.scale for sign in (-1, 1))
        unit = feature.unit or f"days since {feature.reference}" * (feature.kind == "date")
        many = int((away > limit).sum())
        return [
            f"column {feature.name}: {many} of {len(away)} values ({many / len(away):.0%}) are not "
            f"from {low:g} to {high:g}{f' {unit}' * bool(unit)}, where the model's schema has them;"
            " it takes them as they were measured: not scaled, in its own unit"
        ]

    if not len(away):
        return []
    if (away > FAR).mean() > FAR_SHARE:
        return beyond(FAR)
    return beyond(OFF) if len(away) >= OFF_LEAST and np.median(away) > OFF else []
