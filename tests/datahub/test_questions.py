"""Questions: understood or refused in a sentence, answered by the engine as counting would, and no
patient adds more than the clip.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from datahub.buyer import questions
from datahub.buyer.answers import table
from datahub.buyer.jobs import Job
from datahub.buyer.quoting import model_files
from datahub.errors import OrderRefused
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.data.sources import plain
from fl_client.data.tables import Records, load
from fl_client.model.graph import load_model, parameters
from fl_client.privacy import training
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import train_round
from fl_client.protocol import sha256_hex
from tests.conftest import spec

FEATURES: list[dict[str, Any]] = [
    {"name": "age", "centre": 55, "scale": 15, "unit": "a"},
    {"name": "sex", "kind": "yes/no", "centre": 0.25, "scale": 2},
    {"name": "kind", "categories": ["a", "b", "c"], "other": True, "missing": {"value": "b"}},
    {"name": "kind of ward", "categories": [1, 2.5]},
    {"name": "seen", "kind": "date", "centre": 3000, "scale": 900, "reference": "2000-01-01"},
]
TARGETS: dict[str, dict[str, Any]] = {
    "yes/no": {"name": "dead", "kind": "yes/no"},
    "above": {"name": "dead", "positive_above": 0.5},
    "classes": {"name": "stage", "kind": "classes", "levels": ["I", "II", "III"]},
    "number": {"name": "stay", "kind": "number", "low": 0, "high": 30, "unit": "d"},
    "several": {"name": "found", "kind": "several yes/no", "columns": ["nodule", "fluid"]},
    "time": {"name": "life", "kind": "time to event", "time": "days", "event": "died",
             "edges": [100, 200, 400], "unit": "d"},
}  # fmt: skip
N = 300


def schema(target: str = "yes/no") -> Schema:
    return Schema.from_dict({"features": FEATURES, "target": TARGETS[target]})


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A table of every column above, and its rows."""
    chance = np.random.default_rng(4)
    rows = [
        {
            "age": str(int(chance.integers(20, 95))),
            "sex": ("no", "yes")[chance.integers(2)],
            "kind": ("a", "b", "c", "zebra", "")[chance.integers(5)],
            "kind of ward": ("1", "2.5")[chance.integers(2)],
            "seen": f"20{chance.integers(10, 20)}-0{chance.integers(1, 10)}-11",
            "dead": str(chance.integers(2)),
            "stage": ("I", "II", "III")[chance.integers(3)],
            "stay": f"{chance.uniform(0, 35):.2f}",
            "nodule": ("no", "yes")[chance.integers(2)],
            "fluid": ("no", "yes")[chance.integers(2)],
            "days": str(int(chance.integers(0, 500))),
            "died": ("no", "yes")[chance.integers(2)],
        }
        for _ in range(N)
    ]
    path = tmp_path_factory.mktemp("patients") / "patients.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path, rows


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(theta, total, words, scale):
        return theta.copy_(theta - total * scale[2])

    monkeypatch.setattr(training, "_update", without)
    monkeypatch.setattr(training, "_compiled_update", lambda *_: without)


def asked(text: str, of: Schema, records: Records, sd: float = 0.0) -> dict[str, Any]:
    """The answer over one hospital, by the engine that a node runs."""
    question = questions.parse(text, of)
    model = load_model(*model_files(questions.model(question), None, of, OUTPUT))
    plan = PrivacyPlan(1.0, question.length, 1.0, 1, 1e-5, 1e4, 1.0, 1)
    x, y = records.inputs(OUTPUT)
    result = train_round(
        model, parameters(model), x, y, plan, steps=1, learning_rate=1.0, loss=OUTPUT,
        expected_persons=N, patients=records.patients,
    )  # fmt: skip
    return questions.answer(question, -N * result.arrays["weight"].astype(float).ravel(), sd)


def counts(answer: dict[str, Any]) -> dict[tuple[str, ...], float]:
    return {tuple(row["group"]): row["count"]["value"] or 0.0 for row in answer["rows"]}


# -- as counting would -----------------------------------------------------------------------------


def test_count__by_every_kind_of_column__is_as_counting_would(
    patients: tuple[Path, list[dict[str, str]]], no_noise: None
) -> None:
    path, rows = patients
    found = counts(asked("count by sex, age at 40 60 80", schema(), load(plain(path), schema())))
    bands = {"age below 40": (0, 40), "age 40 to 60": (40, 60), "age 60 to 80": (60, 80),
             "age 80 on": (80, 200)}  # fmt: skip
    for sex in ("no", "yes"):
        for band, (low, high) in bands.items():
            truth = sum(r["sex"] == sex and low <= int(r["age"]) < high for r in rows)
            assert found[(f"sex {sex}", band)] == pytest.approx(truth, abs=0.01)
    kinds = counts(asked("count by kind", schema(), load(plain(path), schema())))
    # what is missing stands as the schema says
    truth_of = {"a": ("a",), "b": ("b", ""), "c": ("c",), "any other": ("zebra",)}
    for level, said in truth_of.items():
        truth = sum(r["kind"] in said for r in rows)
        assert kinds[(f"kind {level}",)] == pytest.approx(truth, abs=0.01)
    wards = counts(asked("count by kind of ward", schema(), load(plain(path), schema())))
    for level in ("1", "2.5"):
        truth = sum(r["kind of ward"] == level for r in rows)
        assert wards[(f"kind of ward {level}",)] == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize(
    ("target", "column", "words"),
    [
        ("yes/no", "dead", {"dead no": "0", "dead yes": "1"}),
        ("above", "dead", {"dead up to 0.5": "0", "dead above 0.5": "1"}),
        ("classes", "stage", {f"stage {x}": x for x in ("I", "II", "III")}),
        ("several", "fluid", {"fluid no": "no", "fluid yes": "yes"}),
    ],
)
def test_count__by_the_target__is_as_counting_would(
    patients: tuple[Path, list[dict[str, str]]],
    no_noise: None,
    target: str,
    column: str,
    words: dict[str, str],
) -> None:
    path, rows = patients
    of = schema(target)
    found = counts(asked(f"count by {column}", of, load(plain(path), of)))
    for shown, said in words.items():
        truth = sum(r[column] == said for r in rows)
        assert found[(shown,)] == pytest.approx(truth, abs=0.01)


def test_mean_and_quantiles__are_those_of_the_range(
    patients: tuple[Path, list[dict[str, str]]], no_noise: None
) -> None:
    path, rows = patients
    of = schema("number")
    records = load(plain(path), of)
    answer = asked("mean of age from 30 to 80 by sex", of, records)
    for row, sex in zip(answer["rows"], ("no", "yes"), strict=True):
        ages = [min(80, max(30, int(r["age"]))) for r in rows if r["sex"] == sex]
        assert row["mean"]["value"] == pytest.approx(np.mean(ages), abs=0.01)
    (whole,) = asked("mean of stay", of, records)["rows"]
    stays = np.minimum([float(r["stay"]) for r in rows], 30)
    assert whole["mean"]["value"] == pytest.approx(stays.mean(), abs=0.01)
    (row,) = asked("quantiles of age from 0 to 100", of, records)["rows"]
    ages = np.array([int(r["age"]) for r in rows])
    for one in row["quantiles"]:
        assert one["value"] == pytest.approx(np.quantile(ages, one["part"]), abs=100 / 32)
    bars = counts(asked("histogram of age from 20 to 90", of, records))
    assert bars[("age 27 to 34",)] == pytest.approx(((ages >= 27) & (ages < 34)).sum(), abs=0.01)
    assert sum(bars.values()) == pytest.approx(N, abs=10)


def test_survival__is_kaplan_and_meiers(
    patients: tuple[Path, list[dict[str, str]]], no_noise: None
) -> None:
    path, rows = patients
    of = schema("time")
    answer = asked("survival by sex", of, load(plain(path), of))
    for row, sex in zip(answer["rows"], ("no", "yes"), strict=True):
        left, low = 1.0, 0
        for shown, high in zip(row["survival"], (100, 200, 400), strict=True):
            own = [(int(r["days"]), r["died"] == "yes") for r in rows if r["sex"] == sex]
            dead = sum(e and (low < t or low == 0) and t <= high for t, e in own)
            seen = sum(2 * t >= low + high and not (e and t <= high) for t, e in own)
            left *= 1 - dead / (dead + seen)
            low = high
            assert shown["value"] == pytest.approx(left, abs=1e-4)
            assert shown["until"] == f"{high} d"


def test_patients_with_several_records__count_once(
    patients: tuple[Path, list[dict[str, str]]], no_noise: None
) -> None:
    path, _ = patients
    records = load(plain(path), schema())
    whose = np.arange(N) // 3
    several = Records(records.features, records.targets, 0, patients=whose)
    question = questions.parse("count", schema())
    model = load_model(*model_files(questions.model(question), None, schema(), OUTPUT))
    plan = PrivacyPlan(1.0, 1.0, 1.0, 1, 1e-5, 1e4, 1.0, 1)
    x, y = several.inputs(OUTPUT)
    result = train_round(
        model, parameters(model), x, y, plan, steps=1, learning_rate=1.0, loss=OUTPUT,
        expected_persons=N, patients=whose, records_per_patient=3,
    )  # fmt: skip
    assert -N * float(result.arrays["weight"].sum()) == pytest.approx(N / 3, abs=0.01)


# -- nobody counts more than the clip --------------------------------------------------------------

ASKED = {
    "count by sex, age at 40 60": "yes/no",
    "mean of age by kind": "classes",
    "quantiles of age": "number",
    "survival by sex": "time",
    "count by stage, kind of ward": "classes",
    "histogram of stay": "number",
}


@pytest.mark.parametrize("text", ASKED)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_sums__any_inputs_that_a_table_can_give__are_at_most_the_clip_long(
    text: str, data: st.DataObject
) -> None:
    """The clip changes nothing for a patient, so that the sums have no bias."""
    of = schema(ASKED[text])
    question = questions.parse(text, of)
    inputs: list[float] = []
    for feature in of.features:
        usual = st.floats(-1e6, 1e6) if feature.kind in ("number", "date") else None
        levels = st.sampled_from(feature.categories or ("no", "yes"))
        inputs += feature.inputs(data.draw(levels if usual is None else usual))
    values: dict[str, st.SearchStrategy[Any]] = {
        "yes/no": st.tuples(st.sampled_from(["no", "yes"])),
        "classes": st.tuples(st.sampled_from(["I", "II", "III"])),
        "number": st.tuples(st.floats(-100, 100)),
        "time to event": st.tuples(st.floats(0, 1000), st.sampled_from(["no", "yes"])),
    }
    inputs += of.target.numbers(data.draw(values[of.target.kind]))
    x = torch.tensor([inputs])
    module = questions.model(question)
    module(x).backward()
    assert float(module.weight.grad.norm()) <= question.length * (1 + 1e-6)


def test_model__the_same_question__is_the_same_graph() -> None:
    one, other = (
        model_files(questions.model(questions.parse(text, schema())), None, schema(), OUTPUT)
        for text in ("count by sex, age at 40 60", "  Count  by  SEX, age at 40 60.0 ")
    )
    assert one == other


# -- noise and small cells -------------------------------------------------------------------------


def test_answer__with_noise__intervals_hold_the_truth_and_small_cells_are_no_figures() -> None:
    of, chance, sd = schema("time"), np.random.default_rng(8), 4.0
    question = questions.parse("count by sex, kind", of)
    truth = np.array([200.0, 3, 0, 40, 90, 12, 500, 70])
    held = shown = 0
    for _ in range(300):
        answer = questions.answer(question, truth + sd * chance.normal(size=8), sd)
        for row, true in zip(answer["rows"], truth, strict=True):
            count = row["count"]
            assert count["value"] is None or count["value"] >= questions.SMALL
            if true > 30:
                shown += 1
                held += count["low"] <= true <= count["high"]
    assert 0.93 < held / shown < 0.97
    mean = questions.parse("mean of age from 0 to 100", of)
    inside = [
        questions.answer(mean, np.array([400, 240]) + sd * chance.normal(size=2), sd)["rows"][0]
        for _ in range(300)
    ]
    assert 0.91 < np.mean([r["mean"]["low"] <= 60 <= r["mean"]["high"] for r in inside]) < 0.99
    few = questions.answer(mean, np.array([9.0, 5.0]), 0.1)["rows"][0]
    assert few["mean"] is None and few["count"]["value"] is None
    curve = questions.parse("survival", of)
    deaths, risk = np.array([40.0, 30, 60]), np.array([400.0, 300, 200])
    true_curve = np.cumprod(1 - deaths / risk)
    held = 0
    for _ in range(300):
        noised = np.concatenate([deaths, risk]) + sd * chance.normal(size=6)
        (row,) = questions.answer(curve, noised, sd)["rows"]
        held += sum(
            one["low"] <= true <= one["high"]
            for one, true in zip(row["survival"], true_curve, strict=True)
        )
    assert 0.92 < held / 900 < 0.98


def coverage_of(
    question: questions.Question, sums: np.ndarray, sd: float, name: str, truth: list[float]
) -> np.ndarray:
    """How many of 400 answers' intervals hold each of `truth`, of 1."""
    chance = np.random.default_rng(2)
    held = np.zeros(len(truth))
    for _ in range(400):
        noised = sums + sd * chance.normal(size=len(sums))
        (row,) = questions.answer(question, noised, sd)["rows"]
        ends = [(one["low"], one["high"]) for one in row[name]]
        held += [low <= t <= high for (low, high), t in zip(ends, truth, strict=True)]
    return held / 400


@pytest.mark.parametrize(("persons", "intervals", "hazard"), [(5000, 60, 0.005), (300, 5, 0.1)])
def test_survival__many_intervals_with_few_events__has_no_bias(
    persons: int, intervals: int, hazard: float
) -> None:
    """Events that were cut at 0 would add up: of 60 intervals, 25 % of those at the end held."""
    edges = [float(i + 1) for i in range(intervals)]
    of = Schema.from_dict({"features": FEATURES, "target": TARGETS["time"] | {"edges": edges}})
    question = questions.parse("survival", of)
    at_risk = persons * (1 - 2 * hazard) ** np.arange(intervals)  # half of who leaves is censored
    truth = (1 - hazard) ** np.arange(1, intervals + 1)
    sums = np.concatenate([hazard * at_risk, at_risk])
    sd = 2 * question.length * 2.0 if persons < 1000 else 4 * question.length * math.sqrt(10)
    held = coverage_of(question, sums, sd, "survival", truth.tolist())
    assert held.mean() > 0.93 and held.min() > 0.88, held
    exact = questions.answer(question, sums, 1e-9)["rows"][0]["survival"]
    assert [one["value"] for one in exact] == pytest.approx(truth)


@pytest.mark.parametrize("part", [0.5001, 0.505, 0.49])
def test_quantiles__nobody_between_two_lumps__intervals_hold_them(part: float) -> None:
    """Many edges with the same count: some edge would be surely beyond by luck (85 % held)."""
    question = questions.parse("quantiles of age from 0 to 96", schema())
    cells = np.zeros(34)
    cells[4], cells[30] = 2000 * part, 2000 * (1 - part)
    edges = np.linspace(0, 96, 33)
    truth = [edges[3] + 1 if q <= part else edges[29] + 1 for q in questions.QUANTILES]
    held = coverage_of(question, cells, 20.0, "quantiles", truth)
    assert held.min() > 0.94, held


def test_table__every_kind_of_answer__has_a_line_for_each_cell() -> None:
    of = schema("time")
    for text, size in (("count by sex", 2), ("quantiles of age by sex", 68), ("survival", 6)):
        question = questions.parse(text, of)
        answer = json.loads(json.dumps(questions.answer(question, np.full(size, 50.0), 1.0)))
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table(answer))
        lines = console.export_text().strip().split("\n")
        assert len(lines) == 1 + len(answer["rows"])
        assert ("at risk at first (95 %)" in lines[0]) == (text == "survival")


# -- refused in a sentence -------------------------------------------------------------------------

WRONG = {
    "": "must begin with count, histogram, mean, quantiles or survival",
    "median of age": "must begin with",
    "count sex": "must go on as by COLUMN",
    "count by": "must go on as by COLUMN",
    "count by weight": "does not begin with a column of the schema: age, sex, kind",
    "count by sex,": "does not begin with a column",
    "count by sex sex": "is not understood after",
    "count by sex, sex": "a column is named twice",
    "count by sex at 3": "sex has levels, and no edges",
    "count by age at 60 40": "each must be above the last",
    "count by age at 40 x": "is not understood after",
    "mean of sex": "sex has levels: ask count by sex",
    "mean of age from 80 to 20": "the second must be above the first",
    "mean of age from 0 to 1000": "1000 cannot be told from others",
    "histogram of age from -100 to 90": "cannot be told from others",
    "count by age at 40 300": "age: 300 cannot be told from others",
    "mean age": "must go on as mean of COLUMN",
    "survival": "is yes/no, not a time to event",
    "count by age at 40-50": "'at 40-50' is not understood after",
    "count by age at 1e400": "age: inf cannot be told from others: the schema cuts it to -95 and",
    "count by age at 40 206": "age: 206 cannot be told from others",
    "mean of age from -1e308 to 100": "cannot be told from others",
    "quantiles of age from 0 to 1e999": "inf cannot be told from others",
    "count by age at " + " ".join(f"{i / 25:g}" for i in range(5000)): "too much at once",
    "count by age at 1 2, seen at " + " ".join(map(str, range(3000))): "4096 cells",
}


@pytest.mark.parametrize("text", WRONG)
def test_parse__what_is_not_understood__is_a_sentence(text: str) -> None:
    with pytest.raises(OrderRefused, match=WRONG[text]):
        questions.parse(text, schema())


def test_parse__beyond_the_targets_range__is_a_sentence() -> None:
    for text in ("mean of stay from 0 to 60", "count by stay at 10 40"):
        with pytest.raises(OrderRefused, match="the schema cuts it to 0 and 30"):
            questions.parse(text, schema("number"))
    questions.parse("count by stay at 0 30, age at -95 205", schema("number"))


def test_parse__names_that_differ_in_case__are_told_apart_or_asked_about() -> None:
    """Once, the first of them was counted, whichever was named."""
    twins = [{"name": name, "centre": 0, "scale": 1} for name in ("hb", "Hb", "hb level")]
    of = Schema.from_dict({"features": twins, "target": TARGETS["yes/no"]})
    at = {name: questions.parse(f"count by {name}", of).by[0][0].at for name in ("hb", "Hb")}
    assert at == {"hb": 0, "Hb": 1}
    assert questions.parse("count by HB LEVEL", of).by[0][0].at == 2
    with pytest.raises(OrderRefused, match="write the column as it is: hb or Hb"):
        questions.parse("count by HB", of)


def test_parse__levels_that_the_schema_cuts_or_a_scale_without_end__is_a_sentence() -> None:
    """Once, a yes was cut to 10 and counted as a no; and edges of NaN were paid for."""
    odd = [
        {"name": "sex", "kind": "yes/no", "centre": 0, "scale": 0.01},
        {"name": "far", "centre": 1e308, "scale": 1e308},
    ]
    of = Schema.from_dict({"features": odd, "target": TARGETS["yes/no"]})
    for text in ("count by sex", "count by far", "histogram of far"):
        with pytest.raises(OrderRefused, match="cannot be told from others"):
            questions.parse(text, of)


def test_count__by_a_number_that_is_the_target__has_edges_within_its_range() -> None:
    groups = [group for (group,) in questions.parse("count by stay", schema("number")).groups]
    assert groups == ["stay below 7.5", "stay 7.5 to 15", "stay 15 to 22.5", "stay 22.5 on"]


def test_job_answer__other_counts_in_the_report__is_scaled_by_the_terms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, sums were multiplied by what the hub writes as `persons`, which no hospital signs."""
    of, text = schema(), "count by sex"
    graph, _ = model_files(questions.model(questions.parse(text, of)), None, of, OUTPUT)
    job_spec = spec(
        persons={1: 300, 2: 100}, loss=OUTPUT, schema_hash=of.hash, graph_hash=sha256_hex(graph)
    )
    terms = SimpleNamespace(spec=job_spec.as_dict(), datasets=[SimpleNamespace(dataset_id=1)])
    weight = np.array([[-0.25, -0.75]], np.float32)  # 100 and 300 of 400
    for said in (400, 4_000_000, "many"):
        lines = [{"dataset_id": i, "worked": True, "persons": said} for i in (1, 2)]
        report = json.dumps({"hospitals": lines}).encode()
        result = SimpleNamespace(report=report, arrays={"weight": weight}, schema=of)
        monkeypatch.setattr(Job, "terms", terms)
        monkeypatch.setattr(Job, "result", lambda _, found=result: found)
        nobody: Any = None
        answer = Job(nobody, "ab" * 32).answer(text)
        found = [row["count"]["value"] for row in answer["rows"]]
        assert found == pytest.approx([100.0, 300.0])


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_parse__any_text__is_a_question_or_a_sentence(text: str) -> None:
    try:
        questions.parse("count by " + text, schema())
        questions.parse(text, schema())
    except OrderRefused as error:
        assert "\n" not in str(error)
