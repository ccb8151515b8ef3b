"""Prometheus' text format, version 0.0.4: families of samples as text. Knows nothing of what they
count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True)
class Sample:
    """One number; `suffix` is added to the family's name (`_sum`, of a histogram)."""

    value: float
    labels: Mapping[str, str]
    suffix: str = ""


@dataclass(frozen=True)
class Family:
    """Samples of one name; `help` in a sentence, with the unit."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def gauge(name: str, help: str, value: float, **labels: str) -> Family:
    """A family of one sample."""
    return Family(name, GAUGE, help, [Sample(value, labels)])


def histogram(
    labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int], total: float
) -> list[Sample]:
    """The samples of one histogram: `counts` of each bucket alone, the last one beyond all
    `bounds`; `total` of all values.
    """
    found, so_far = [], 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        so_far += count
        found.append(Sample(so_far, {**labels, "le": _number(bound)}, "_bucket"))
    return [*found, Sample(total, labels, "_sum"), Sample(so_far, labels, "_count")]


def text(families: Iterable[Family]) -> str:
    """The families as they are asked for."""
    lines = []
    for family in families:
        lines += [
            f"# HELP {family.name} {_escaped(family.help)}",
            f"# TYPE {family.name} {family.kind}",
        ]
        for one in family.samples:
            labels = ",".join(
                f'{name}="{_escaped(value, quoted=True)}"' for name, value in one.labels.items()
            )
            named = f"{family.name}{one.suffix}" + (f"{{{labels}}}" if labels else "")
            lines.append(f"{named} {_number(one.value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
