"""Questions over many hospitals: counts, histograms, means, quantiles, survival; as a model to
order, and what its noised sums answer. Knows nothing of hubs, money or chains.

    count [by COLUMN [at EDGE ...]], ...      how many patients in each cell
    histogram of COLUMN [from LOW to HIGH]    the same, in ten equal cells
    mean of COLUMN [from LOW to HIGH] [by ...]       values beyond the range count as its ends
    quantiles of COLUMN [from LOW to HIGH] [by ...]  by a histogram of 32 cells
    survival [by ...]                         of a time to event: the part without it, by interval;
                                              the count is of those at risk in the first

Names, levels and ranges are the public schema's; what lies beyond the values that it cuts at cannot
be told apart, so that no edge and no range may. A question is a job like any other: it is
admitted, paid and charged as one, and each patient counts once, with the mean of the records. Every
figure carries the 95 % interval of its noise; a count under SMALL patients is not shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from datahub.errors import OrderRefused
from fl_client.data.features import SCALED_LIMIT, Feature
from fl_client.data.fields import show
from fl_client.data.manifests import PLATFORM_MINIMUM_PERSONS as SMALL
from fl_client.data.schemas import Schema
from fl_client.privacy.evaluation import Z95, quotient

if TYPE_CHECKING:
    from fl_client.model.sums import Axis, Sums, Value

KINDS_ASKED = ("number", "date", "category", "yes/no")  # of features
KINDS = ("count", "histogram", "mean", "quantiles", "survival")
BARS, FINE = 10, 32  # cells of a histogram, and of one that quantiles are read from
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MOST_CELLS = 4096
MOST_AXES = 4
LEAST_AT_RISK = 5  # standard deviations of noise; with fewer a logarithm says nothing
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
ANY = "everybody"


@dataclass(frozen=True)
class Column:
    """A column of the schema as it stands in a model's input: a number with centre and scale there
    (value = centre + scale * input) and a usual range, or `levels` in a row of inputs. Inputs are
    those of `least` to `most`, whatever the value is; `edges` are the usual ones.
    """

    name: str
    at: int
    centre: float
    scale: float
    low: float
    high: float
    levels: tuple[str, ...] = ()
    steps: bool = False  # the levels are one input, from 0
    edges: tuple[float, ...] = ()
    least: float = -math.inf  # a value beyond stands there as this one, so that nothing tells them
    most: float = math.inf  # apart

    def inside(self, value: float) -> float:
        """A value of the column as the model's input has it."""
        return (value - self.centre) / self.scale


@dataclass(frozen=True)
class Question:
    """One that was understood: its kind, the column that it is of, the range of that one, and the
    axes: (column, edges), no edges for levels.
    """

    text: str
    kind: str
    of: Column | None
    low: float
    high: float
    by: tuple[tuple[Column, tuple[float, ...]], ...]
    intervals: tuple[str, ...] = ()  # of a survival
    first: int = 0  # the input at which its numbers begin

    @property
    def values(self) -> int:
        """Sums in each cell beside the count."""
        return {"mean": 1, "survival": 2 * len(self.intervals)}.get(self.kind, 0)

    @property
    def counts(self) -> bool:
        """Whether each cell's number is asked for."""
        return self.kind != "survival"

    @property
    def length(self) -> float:
        """The largest L2 norm of what one patient adds to the sums: the clip of the job."""
        if self.kind == "survival":  # an event in one interval, at risk in all
            return math.sqrt(1 + len(self.intervals))
        return math.sqrt(1 + self.values)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The cells of its axes, each the words for every axis, in the table's order."""
        return list(product(*(_words(column, edges) for column, edges in self.by)))


def columns(schema: Schema) -> dict[str, Column]:
    """Every column that can be asked for, by its name."""
    found: dict[str, Column] = {}
    at = 0
    for feature in () if schema.picture else schema.features:
        if feature.kind in KINDS_ASKED:
            found[feature.name] = _of_feature(feature, at)
        at += feature.width
    target = schema.target
    if target.kind == "classes":
        levels = tuple(map(show, target.levels))
        found[target.name] = Column(target.name, at, 0.0, 1.0, 0.0, 1.0, levels, steps=True)
    elif target.kind == "number":
        low, high = target.low, target.high
        edges = tuple(low + (high - low) * i / 4 for i in range(1, 4))
        found[target.name] = Column(
            target.name, at, low, high - low, low, high, edges=edges, least=low, most=high
        )
    elif target.positive_above is not None:
        levels = tuple(f"{word} {show(target.positive_above)}" for word in ("up to", "above"))
        found[target.name] = Column(target.name, at, 0.0, 1.0, 0.0, 1.0, levels)
    elif target.kind != "time to event":
        for i, name in enumerate(target.labels):
            found[name] = Column(name, at + i, 0.0, 1.0, 0.0, 1.0, ("no", "yes"))
    return found


def _of_feature(feature: Feature, at: int) -> Column:
    if feature.kind == "category":
        levels = (*map(show, feature.categories), *("any other",) * feature.other)
    else:
        levels = ("no", "yes") if feature.kind == "yes/no" else ()
    middle, step = feature.centre, feature.scale
    low, high, least, most = (middle + step * i for i in (-3, 3, -SCALED_LIMIT, SCALED_LIMIT))
    edges = tuple(middle + step * i for i in (-2, -1, 0, 1, 2))
    return Column(
        feature.name, at, middle, step, low, high, levels, edges=edges, least=least, most=most
    )


def parse(text: str, schema: Schema) -> Question:
    """The question in `text` about datasets of this schema. Raises OrderRefused naming the word
    that is not understood and what is allowed.
    """
    known = columns(schema)
    rest = " ".join(text.split())
    kind, rest = _kind(rest)
    of, low, high = None, 0.0, 1.0
    if kind in ("histogram", "mean", "quantiles"):
        rest = _after(rest, "of", f"{kind} of COLUMN")
        of, rest = _column(rest, known)
        if of.levels:
            raise OrderRefused(f"{of.name} has levels: ask count by {of.name}")
        low, high = of.low, of.high
        if match := re.match(rf"from ({_NUMBER}) to ({_NUMBER})(?=\s|$)", rest):
            low, high = float(match[1]), float(match[2])
            rest = rest[match.end() :].strip()
        _check_told(of, (low, high))
        if low >= high:
            raise OrderRefused(f"from {low:g} to {high:g}: the second must be above the first")
    by: list[tuple[Column, tuple[float, ...]]] = []
    if rest:
        rest = _after(rest, "by", "by COLUMN, at the end")
        while True:
            column, rest = _column(rest, known)
            edges, rest = _edges(column, rest)
            by.append((column, edges))
            if not rest.startswith(","):
                break
            rest = rest[1:].strip()
    if rest:
        raise OrderRefused(f"{rest[:60]!r} is not understood after {text[: -len(rest)][-40:]!r}")
    if of is not None and kind in ("histogram", "quantiles"):
        cells = BARS if kind == "histogram" else FINE
        edges = tuple(low + (high - low) * i / cells for i in range(cells + 1))
        by.append((of, edges))
    intervals: tuple[str, ...] = ()
    first = 0
    if kind == "survival":
        intervals, first = _intervals(schema)
    asked = Question(text, kind, of, low, high, tuple(by), intervals, first)
    _check_size(asked)
    return asked


def _kind(text: str) -> tuple[str, str]:
    first, _, rest = text.partition(" ")
    if first.lower() not in KINDS:
        raise OrderRefused(
            f"question={text[:60]!r} must begin with {', '.join(KINDS[:-1])} or {KINDS[-1]}"
        )
    return first.lower(), rest.strip()


def _after(text: str, word: str, form: str) -> str:
    if not re.match(rf"{word}\s", text, re.IGNORECASE):
        raise OrderRefused(f"{text[:60]!r} must go on as {form}")
    return text[len(word) :].strip()


def _column(text: str, known: Mapping[str, Column]) -> tuple[Column, str]:
    """The longest name that `text` begins with, and what follows it."""
    fits = [
        name
        for name in known
        if text[: len(name)].casefold() == name.casefold()
        and (len(text) == len(name) or text[len(name)] in " ,")
    ]
    if not fits:
        some = ", ".join(list(known)[:40])
        raise OrderRefused(f"{text[:60]!r} does not begin with a column of the schema: {some}")
    longest = [name for name in fits if len(name) == max(map(len, fits))]
    exact = [name for name in longest if text.startswith(name)]
    if len(longest) > 1 and not exact:
        raise OrderRefused(f"{text[:60]!r}: write the column as it is: {' or '.join(longest)}")
    name = (exact or longest)[0]
    return known[name], text[len(name) :].strip()


def _edges(column: Column, text: str) -> tuple[tuple[float, ...], str]:
    match = re.match(rf"at ({_NUMBER}(?: {_NUMBER})*)(?=[ ,]|$)", text)
    if column.levels:
        if match:
            raise OrderRefused(f"{column.name} has levels, and no edges")
        _check_told(column, (0.0, 1.0))
        return (), text
    edges = tuple(float(one) for one in match[1].split()) if match else column.edges
    _check_told(column, edges)
    if match and list(edges) != sorted(set(edges)):
        raise OrderRefused(f"{column.name} at {match[1]}: each must be above the last")
    return edges, text[match.end() :].strip() if match else text


def _check_told(column: Column, values: Sequence[float]) -> None:
    """Raises OrderRefused for a value that inputs cannot be compared with."""
    for value in values:
        if not math.isfinite(value) or not column.least <= value <= column.most:
            raise OrderRefused(
                f"{column.name}: {value:g} cannot be told from others: the schema cuts it to "
                f"{column.least:g} and {column.most:g}"
            )


def _intervals(schema: Schema) -> tuple[tuple[str, ...], int]:
    target = schema.target
    if target.kind != "time to event":
        raise OrderRefused(
            f"survival: the target {target.name!r} of these datasets is {target.kind}, not a time "
            "to event"
        )
    ends = tuple(f"{show(edge)} {target.unit}".strip() for edge in target.edges)
    return ends, 0 if schema.picture else schema.width


def _check_size(asked: Question) -> None:
    names = [column.name for column, _ in asked.by]
    if len(set(names)) < len(names):
        raise OrderRefused(f"by {', '.join(names)}: a column is named twice")
    sums = len(asked.groups) * (asked.counts + asked.values) if len(names) <= MOST_AXES else 0
    if not 0 < sums <= MOST_CELLS:
        raise OrderRefused(
            f"by {', '.join(names)}: too much at once; at most {MOST_AXES} columns and "
            f"{MOST_CELLS} cells"
        )


def _words(column: Column, edges: Sequence[float]) -> list[str]:
    if column.levels:
        return [f"{column.name} {level}" for level in column.levels]
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{a} to {b}" for a, b in pairwise(shown)]
    return [f"{column.name} {part}" for part in (f"below {shown[0]}", *between, f"{shown[-1]} on")]


def model(asked: Question) -> Sums:
    """The question as a module to export: the same weights and graph for the same question."""
    from fl_client.model.sums import Sums, Value

    axes = [_axis(column, edges) for column, edges in asked.by]
    values: list[Value] = []
    if asked.kind == "mean" and asked.of is not None:
        low = asked.of.inside(asked.low)
        values = [Value(asked.of.at, low, asked.of.inside(asked.high) - low)]
    if asked.kind == "survival":
        values = [Value(asked.first + i, 0.0, 1.0) for i in range(asked.values)]
    return Sums(axes, values, asked.counts)


def _axis(column: Column, edges: Sequence[float]) -> Axis:
    from fl_client.model.sums import Edges, Levels

    if column.steps:  # of classes: between the numbers of one and the next
        return Edges(column.at, tuple(i + 0.5 for i in range(len(column.levels) - 1)))
    if column.levels:
        return Levels(column.at, len(column.levels) - 1, column.inside(0.5), 1 / column.scale)
    return Edges(column.at, tuple(column.inside(edge) for edge in edges))


# -- what the sums say -----------------------------------------------------------------------------


def answer(asked: Question, sums: np.ndarray, sd: float) -> dict[str, Any]:
    """The answer in noised `sums` [cells * (1 + values)], each with independent noise of `sd`: JSON
    of {"question", "small", "rows"}.

    A row is {"group": [words], ...}: with a count {value, low, high}, `value` None below SMALL; or
    a mean, quantiles or the part without the event after each interval, None where the group is
    too small.
    """
    whole = len(asked.groups)
    parts = np.asarray(sums, dtype=np.float64).reshape(-1, whole)
    rows: list[dict[str, Any]]
    if asked.kind in ("count", "histogram"):
        rows = [
            {"group": list(group), "count": _count(float(n), sd)}
            for group, n in zip(asked.groups, parts[0], strict=True)
        ]
    elif asked.kind == "mean":
        rows = [
            {"group": list(group), "count": _count(float(n), sd), "mean": _mean(asked, n, s, sd)}
            for group, n, s in zip(asked.groups, *parts, strict=True)
        ]
    elif asked.kind == "quantiles":
        cells = FINE + 2
        outer = asked.groups[::cells]
        rows = [
            {
                "group": list(group[:-1]),
                "count": _count(float(one.sum()), sd * math.sqrt(cells)),
                "quantiles": _quantiles(asked, one, sd),
            }
            for group, one in zip(outer, parts[0].reshape(-1, cells), strict=True)
        ]
    else:
        m = len(asked.intervals)
        rows = [
            {
                "group": list(group),
                "count": _count(float(parts[m, i]), sd),
                "survival": _survival(asked, parts[:m, i], parts[m:, i], sd),
            }
            for i, group in enumerate(asked.groups)
        ]
    return {"question": asked.text, "small": SMALL, "noise_sd": sd, "rows": rows}


def _count(value: float, sd: float) -> dict[str, float | None]:
    """A count that is at least SMALL, or none: with its interval, from 0 on."""
    low, high = max(0.0, value - Z95 * sd), max(0.0, value + Z95 * sd)
    if value < SMALL:
        return {"value": None, "low": 0.0, "high": max(high, float(SMALL))}
    return {"value": value, "low": low, "high": high}


def _mean(asked: Question, n: float, total: float, sd: float) -> dict[str, float] | None:
    if n < max(SMALL, 3 * sd):
        return None
    found = quotient(float(total), float(n), (sd * sd, 0.0, sd * sd))
    return {end: asked.low + (asked.high - asked.low) * part for end, part in found.items()}


def _quantiles(asked: Question, cells: np.ndarray, sd: float) -> list[dict[str, float]] | None:
    """Read from a noised histogram [FINE + 2], whose outer cells hold what is beyond the range.

    An interval is all cells, from the first to the last, that may hold the quantile: whose upper
    edge is not surely below it and whose lower edge is not surely above it. Of the true cell that
    asks two edges; the nearest edges that are surely to either side would be the luckiest of many.
    """
    total = float(cells.sum())
    if total < max(SMALL, 3 * sd * math.sqrt(len(cells))):
        return None
    edges = np.linspace(asked.low, asked.high, FINE + 1)
    under = np.cumsum(cells)[:-1]  # how many are below each edge
    rising = np.maximum.accumulate(np.maximum(under, 0.0))
    number = np.arange(1, FINE + 2)
    found = []
    for q in QUANTILES:
        # of under - q * total, whose noise is that of (1 - q) times those below and q times others
        noise = sd * np.sqrt(number * (1 - q) ** 2 + (len(cells) - number) * q**2)
        may_be_above = under - q * total + Z95 * noise >= 0
        may_be_below = under - q * total - Z95 * noise <= 0
        # cell i lies between edges i - 1 and i
        first = int(np.argmax(np.append(may_be_above, True)))
        last = FINE + 1 - int(np.argmax(np.append(may_be_below[::-1], True)))
        found.append(
            {
                "part": q,
                "value": float(np.interp(q * total, rising, edges)),
                "low": float(edges[max(0, first - 1)]),
                "high": float(edges[min(FINE, last)]),
            }
        )
    return found


def _survival(
    asked: Question, events: np.ndarray, at_risk: np.ndarray, sd: float
) -> list[dict[str, Any]]:
    """Kaplan and Meier's product over intervals, with the noise's part of its variance (the delta
    method on its logarithm); None from the first interval with too few at risk on.

    Noised events stay as they are, below 0 as well: cut there, each interval would add some that
    nobody had, and 60 of them half the patients. The logarithm's own bias is taken off for the same
    reason. So the part without the event may rise a little from one interval to the next.
    """
    found: list[dict[str, Any]] = []
    log, variance, known = 0.0, 0.0, True
    for end, d, n in zip(asked.intervals, events, at_risk, strict=True):
        left = float(n - d)
        known = known and n >= max(SMALL, LEAST_AT_RISK * sd) and left > sd * LEAST_AT_RISK / 2
        if not known:
            found.append({"until": end, "value": None, "low": 0.0, "high": 1.0})
            continue
        # E log x is log E x - var x / (2 x^2); `left` has the noise of both sums
        log += math.log(left / n) + (sd / left) ** 2 - (sd / n) ** 2 / 2
        variance += (sd / left) ** 2 + (sd / left - sd / n) ** 2
        wide = Z95 * math.sqrt(variance)
        low, value, high = (min(1.0, math.exp(log + part)) for part in (-wide, 0.0, wide))
        found.append({"until": end, "value": value, "low": low, "high": high})
    return found
