"""What a trained model is and is not, as a model card in the form of Hugging Face
(https://huggingface.co/docs/hub/model-cards): YAML that programs read, then text for people.

Written from terms, report and schema alone, whose authors are a buyer, hospitals and a hub: what
they wrote stands in quoted YAML and in escaped Markdown, and can end neither. Knows nothing of
folders, weights or HTTP.
"""

from __future__ import annotations

import html
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from datatokens.terms import JobTerms
from fl_client.data import words
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.protocol import JobSpec

MARK = 'library_name: "datahub"'  # stands near the beginning of every card
LICENSE = "unknown"  # the hub's name for it
# of a report's evaluation (fl_client.privacy.looks) -> the hub's name of the metric, a name
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "auc": ("roc_auc", "AUC"),
    "rmse": ("rmse", "Root mean squared error, in parts of the target's range"),
    "r2": ("r_squared", "R squared"),
}
TASKS = {"number": "regression", "time to event": "survival"}  # of a target; else classification
MOST_WIDTH = 0.9  # of an interval that says something
MOST_EXPONENT = 20  # that is shown as a number
MOST_COLUMNS = 50  # in the card; schema.json has all
# what YAML does not take as it is, or takes for the end of a line, and marks that turn text around
_HIDDEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
)

NOT_FOR = (
    "Decisions about the care of a patient: it is no medical device, and was not tried on patients "
    "other than those it was trained on.",
    "Finding out whether somebody was among its patients, or what was the matter with them.",
    "Anything else than the purpose above: that is what the hospitals agreed to.",
)
LIMITS = (
    "Noise was added in training, for privacy: another run would give another model, and the "
    "smaller epsilon is, the less its weights say.",
    "The figures above come from the patients that it was trained on, and have noise of their own. "
    "Test it on your own before you use it.",
    "It knows the hospitals above and no others: who comes to them, how they measure and what they "
    "write down is in it.",
    "It takes values as the schema has them, in the schema's units and levels; a column in another "
    "unit gives a wrong answer, and `predict` warns only of what looks like one.",
    "What moves its answers need not be what causes the outcome.",
)


def document(
    terms: JobTerms,
    spec: JobSpec,
    report: Mapping[str, Any],
    schema: Schema | None,
    hub: str = "",
    license: str = LICENSE,
) -> str:
    """README.md of a result; `hub` is where it was bought, "" where that is not known. A figure
    that the report does not have, or has as something else, is left out.
    """
    given = report.get("hospitals")
    lines = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    scored = _scored(report.get("evaluation"))
    parts = (
        _front_matter(terms, spec, schema, scored, hub, license),
        _title(terms, spec, schema),
        _how_good(spec, scored, report.get("evaluation")),
        _privacy(spec, lines),
        _hospitals(terms, spec, lines, hub),
        _columns(schema),
        _loading(spec),
        _list("What it must not be used for", NOT_FOR),
        _list("Limitations", LIMITS),
    )
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(
    terms: JobTerms,
    spec: JobSpec,
    schema: Schema | None,
    scored: Mapping[str, Mapping[str, float]],
    hub: str,
    license: str,
) -> str:
    name = f"datahub job {terms.job_id.hex()[:12]}"
    task = _task(schema)
    datasets = [_dataset(terms, line.dataset_id, hub) for line in terms.datasets]
    facts: dict[str, Any] = {
        "license": license,
        "library_name": "datahub",
        "tags": ["datahub", "federated-learning", "differential-privacy", "medical", spec.loss],
        "datasets": datasets,
        "metrics": [METRICS[key][0] for key in scored],
    }
    if task and task != "survival":
        facts["pipeline_tag"] = task
    if scored:
        metrics = [
            {
                "type": METRICS[key][0],
                "name": f"{METRICS[key][1]}, noised, on the patients trained on; 95 % interval "
                f"{one['low']:.3f} to {one['high']:.3f}",
                "value": one["value"],
            }
            for key, one in scored.items()
        ]
        where = {"type": datasets[0], "name": f"{len(datasets)} hospitals' datasets"}
        result = {"task": {"type": task or "other"}, "dataset": where, "metrics": metrics}
        facts["model-index"] = [{"name": name, "results": [result]}]
    return "\n".join(["---", *(f"{key}: {_yaml(value)}" for key, value in facts.items()), "---"])


def _task(schema: Schema | None) -> str:
    if schema is None:
        return ""
    task = TASKS.get(schema.target.kind, "classification")
    if task == "survival":
        return task
    return f"image-{task}" if schema.picture else f"tabular-{task}"


def _title(terms: JobTerms, spec: JobSpec, schema: Schema | None) -> str:
    heading = f"# datahub job {terms.job_id.hex()[:12]}"
    purpose = f"Purpose, as the buyer has declared it: {_said(spec.purpose)}" + (
        f" ({', '.join(map(_said, spec.purpose_codes))})" if spec.purpose_codes else ""
    )
    if spec.loss == OUTPUT:
        what = (
            "Sums that answer a question about several hospitals' patients, with noise: no model."
        )
    elif schema is None:
        what = "A model; its schema is not kept here, so that its inputs have no names."
    else:
        of = "pictures" if schema.picture else f"{len(schema.features)} columns"
        target = schema.target
        what = f"A model of **{_said(target.name)}** ({_said(target.words)}) from {of}."
    return f"{heading}\n\n{what} {purpose}."


def _how_good(spec: JobSpec, scored: Mapping[str, Mapping[str, float]], evaluation: object) -> str:
    if spec.loss == OUTPUT:
        return ""
    if not isinstance(evaluation, dict):
        return "## How good it is\n\nNo hospital has released a table of the final model's scores."
    rows = ["| | value | 95 % interval |", "|---|---|---|"]
    for key, (_, name) in METRICS.items():
        if key in scored:
            one = scored[key]
            rows.append(f"| {name} | {one['value']:.3f} | {one['low']:.3f} to {one['high']:.3f} |")
        elif key in evaluation:
            rows.append(f"| {name} | more noise than signal | |")
    return "\n".join(
        [
            "## How good it is",
            "",
            "From the hospitals' own tables of scores, noised for their patients' privacy, on the "
            "patients it was trained on. The intervals hold the noise; they do not say how few the "
            "patients are.",
            "",
            *rows,
        ]
    )


def _privacy(spec: JobSpec, lines: Sequence[Mapping[str, Any]]) -> str:
    spent = [one for line in lines if (one := _number(line.get("epsilon_job"))) is not None]
    units = sorted({str(line.get("unit")) for line in lines} & UNITS.keys())
    unit = " or ".join(units) or "patient or record, as each hospital says"
    delta = spec.plan.delta
    odds = f"one in {round(1 / delta):,}"
    cost = (
        f"epsilon {max(spent):.3f} at delta {delta:g}"
        if spent
        else f"what its report leaves out, at delta {delta:g}"
    )
    known = spent and max(spent) < MOST_EXPONENT
    factor = f"{math.exp(max(spent)):,.1f}" if known else "e to the power of epsilon"
    return (
        "## What it may give away\n\nTrained under differential privacy: at each hospital it cost "
        f"at most {cost}, for each {unit}. With or without any one of them, the chance of every "
        f"outcome of the whole job differs by at most a factor of {factor}, but for a remainder of "
        f"at most {odds} (delta). "
        "Epsilon counts all that left a hospital for this job: every step, loss and table of "
        "scores."
    )


UNITS = {"patient": "patients", "record": "records"}


def _hospitals(terms: JobTerms, spec: JobSpec, lines: Sequence[Mapping[str, Any]], hub: str) -> str:
    told = {line.get("dataset_id"): line for line in lines if type(line.get("dataset_id")) is int}
    rows = [
        "| dataset | hospital's key | counted (noised) | took part | epsilon |",
        "|---|---|---|---|---|",
    ]
    for one in terms.datasets:
        line = told.get(one.dataset_id, {})
        many = UNITS.get(str(line.get("unit")), "patients or records")
        worked = ("yes" if line["worked"] is True else "no") if "worked" in line else "not said"
        epsilon = _number(line.get("epsilon_job"))
        shown = "" if epsilon is None else f"{epsilon:.3f}"
        where = _said(_dataset(terms, one.dataset_id, hub))
        rows.append(
            f"| {where} | {one.node} | {spec.persons[one.dataset_id]} {many} | {worked} | {shown} |"
        )
    return "\n".join(
        [
            "## What it was trained on",
            "",
            f"{len(terms.datasets)} datasets of hospitals, whose records never left them; "
            f"rounds: {spec.rounds}, steps in each: {spec.local_steps}, loss: {_said(spec.loss)}.",
            "",
            *rows,
        ]
    )


def _columns(schema: Schema | None) -> str:
    if schema is None or schema.picture is not None:
        return ""
    rows = ["## Its columns", "", "| column | values | unit | if missing |", "|---|---|---|---|"]
    for feature in schema.features[:MOST_COLUMNS]:
        one = words.column(feature)
        levels = one.levels[:8]
        more = ", ..." if len(one.levels) > len(levels) else ""
        values = one.kind + (f": {', '.join(levels)}{more}" if levels else "")
        rows.append(
            f"| {_said(one.name)} | {_said(values)} | {_said(one.unit)} | {_said(one.missing)} |"
        )
    left = len(schema.features) - MOST_COLUMNS
    return "\n".join([*rows, *(["", f"And {left} more, in `schema.json`."] if left > 0 else [])])


def _loading(spec: JobSpec) -> str:
    use = (
        "sums = result.arrays  # what the figures are worked out from"
        if spec.loss == OUTPUT
        else "answers = result.predict(table)  # a DataFrame or a file: original columns by name"
    )
    return (
        "## How to use it\n\n```python\nfrom datahub import Result\n\n"
        f'result = Result.load("FOLDER")  # this one; its hashes are checked\n{use}\n```\n\n'
        "That hospitals signed for this model and report: `datahub model verify FOLDER`, from "
        "the chain alone."
    )


def _list(heading: str, sentences: Sequence[str]) -> str:
    return "\n".join([f"## {heading}", "", *(f"- {one}" for one in sentences)])


def _dataset(terms: JobTerms, dataset_id: int, hub: str) -> str:
    where = hub.rstrip("/") or f"eip155:{terms.chain_id}:{terms.market}"
    return f"{where}/datasets/{dataset_id}"


def _scored(evaluation: object) -> dict[str, dict[str, float]]:
    """The figures that are more than noise."""
    found: dict[str, dict[str, float]] = {}
    for key in METRICS:
        figure = evaluation.get(key) if isinstance(evaluation, dict) else None
        if not isinstance(figure, dict):
            continue
        ends = {end: _number(figure.get(end)) for end in ("value", "low", "high")}
        known = {end: value for end, value in ends.items() if value is not None}
        if len(known) == len(ends) and known["high"] - known["low"] <= MOST_WIDTH:
            found[key] = known
    return found


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if known and isinstance(value, int | float) else None


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line; as JSON, but for numbers without a point in them,
    which YAML 1.1 takes for text.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(name)}: {_yaml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6f}"
    quoted = json.dumps(value, ensure_ascii=False)
    return _HIDDEN.sub(lambda one: f"\\u{ord(one.group()):04x}", quoted)


def _said(text: str) -> str:
    """What somebody wrote, as Markdown that shows it: one line, no markup, no table's border."""
    flat = [c for c in " ".join(text.split()) if c.isprintable()]
    return "".join(
        html.escape(c) if c in "<>&" else f"\\{c}" if c in string.punctuation else c for c in flat
    )
