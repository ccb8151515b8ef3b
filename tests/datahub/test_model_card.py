"""The model card of a result: its YAML parses, its Markdown shows what strangers wrote and does not
obey it, and its figures are those of the report.
"""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from datahub.buyer.results import Result
from datahub.metadata import model_card
from datatokens.terms import JobTerms
from fl_client.data.features import Feature
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.data.targets import Target
from fl_client.protocol import JobSpec
from tests.conftest import spec, terms
from tests.datahub.made_results import AGE, SEX, result_of, schema_of
from tests.datahub.test_metadata import HOSTILE

HUB = "https://hub.example"
EVALUATION = {
    "accuracy": {"value": 0.907123, "low": 0.668, "high": 1.0},
    "auc": {"value": 0.5, "low": 0.0, "high": 1.0},
    "event_rate": {"value": 0.4, "low": 0.3, "high": 0.5},
    "calibration": [],
}


def line(dataset_id: int, **changes: Any) -> dict[str, Any]:
    """A hospital's line of a report."""
    said = {"dataset_id": dataset_id, "unit": "patient", "worked": True, "epsilon_job": 3.993}
    return said | changes


REPORT = {
    "evaluation": EVALUATION,
    "hospitals": [line(n) for n in (1, 2, 3)] + [line(4, worked=False)],
}


def card(
    schema: Schema | None = None,
    report: dict[str, Any] = REPORT,
    job: JobTerms | None = None,
    **more: Any,
) -> str:
    job = job or terms()
    return model_card.document(job, JobSpec.from_dict(job.spec), report, schema, **more)


def front_matter(text: str) -> dict[str, Any]:
    """What a program reads, up to the first line that ends it."""
    start, head, _ = text.split("---\n", 2)
    assert start == ""
    found: dict[str, Any] = yaml.safe_load(head)
    return found


class Shown(HTMLParser):
    """The elements and the text of a card as a browser shows it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        body = text.split("---\n", 2)[2]
        self.feed(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_card__a_settled_job__says_what_a_program_looks_for() -> None:
    found = front_matter(card(schema_of(AGE, SEX), hub=HUB + "/"))
    assert found["license"] == "unknown" and found["library_name"] == "datahub"
    assert sorted(found["datasets"]) == [f"{HUB}/datasets/{n}" for n in (1, 2, 3, 4)]
    assert found["pipeline_tag"] == "tabular-classification"
    assert found["tags"][-1] == "binary_cross_entropy" and "federated-learning" in found["tags"]
    assert found["metrics"] == ["accuracy"], "an AUC of 0 to 1 is no figure"
    (index,) = found["model-index"]
    (result,) = index["results"]
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.907123)
    assert "95 % interval 0.668 to 1.000" in metric["name"]
    assert result["dataset"]["type"] in found["datasets"]
    assert front_matter(card(license="cc-by-4.0"))["license"] == "cc-by-4.0"


def test_card__a_settled_job__says_in_words_what_it_is_and_is_not() -> None:
    text = Shown(card(schema_of(AGE, SEX), hub=HUB)).text
    for sentence in (
        "A model of ill (yes or no) from 2 columns.",
        "at each hospital it cost at most epsilon 3.993 at delta 1e-05, for each patient",
        "by at most a factor of 54.2, but for a remainder of at most one in 100,000 (delta)",
        "4 datasets of hospitals, whose records never left them; rounds: 3, steps in each: 1",
        "40 patients",
        "more noise than signal",
        "0.668 to 1.000",
        'result = Result.load("FOLDER")',
        "What it must not be used for",
        "it is no medical device",
        "The figures above come from the patients that it was trained on",
        "Purpose, as the buyer has declared it: research",
    ):
        assert sentence in text, sentence


def test_card__no_hub_known__names_datasets_by_the_market_on_its_chain() -> None:
    job = terms()
    names = front_matter(card())["datasets"]
    assert names[0] == f"eip155:31337:{job.market}/datasets/{job.datasets[0].dataset_id}"


def test_card__a_question__is_no_model() -> None:
    schema = schema_of(AGE, SEX)
    text = card(schema, {"evaluation": None, "hospitals": []}, terms(spec(loss=OUTPUT)))
    assert "no model" in text and "How good it is" not in text and "result.arrays" in text


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ({"name": "y", "kind": "number", "low": 0, "high": 9}, "tabular-regression"),
        ({"name": "y", "kind": "classes", "levels": ["a", "b", "c"]}, "tabular-classification"),
        ({"name": "y", "kind": "time to event", "time": "t", "event": "e", "edges": [1]}, None),
    ],
)
def test_card__by_target__has_the_task_of_it(target: dict[str, Any], task: str | None) -> None:
    assert front_matter(card(schema_of(AGE, target=target))).get("pipeline_tag") == task


def test_card__hostile_text__ends_neither_yaml_nor_markdown() -> None:
    schema = Schema(
        (
            Feature(HOSTILE, 1, 2, unit="`|` |"),
            Feature("# [x](javascript:y)", categories=("</table><script>", "\n\n```\n---\n")),
        ),
        Target("![i](https://evil.example/i.png) www.evil.example", None),
    )
    purpose = ("---\nlicense: mit\n" + HOSTILE)[:200]
    report = {"evaluation": EVALUATION, "hospitals": [line(1, unit=HOSTILE, device=HOSTILE)]}
    text = card(
        schema, report, terms(spec(purpose=purpose)), hub=f"{HUB}/{HOSTILE}", license=HOSTILE
    )
    found = front_matter(text)
    assert found["license"] == HOSTILE and set(found) <= {
        *("license library_name tags datasets metrics pipeline_tag model-index".split())
    }
    assert all(one.startswith(f"{HUB}/{HOSTILE}/datasets/") for one in found["datasets"])
    shown = Shown(text)
    assert not shown.tags & {"script", "img", "a", "iframe"}
    assert '<script>alert("x")</script>' in shown.text and "</table><script>" in shown.text
    assert "\x1b" not in text.split("---\n", 2)[2] and "\u202e" not in text
    plain = card(schema_of(AGE, SEX), report, hub=HUB)
    assert shown.text.count("What it must not be used for") == 1
    assert Shown(plain).tags == shown.tags, "the same elements as without it"


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"evaluation": "none", "hospitals": "none"},
        {"evaluation": {"accuracy": None, "auc": {"value": "1"}}, "hospitals": [None, 3, {}]},
        {"evaluation": {"accuracy": []}, "hospitals": [{"dataset_id": [1], "unit": []}]},
        {"hospitals": [line(1, epsilon_job=None, worked="yes"), line(2, epsilon_job="3")]},
        {"hospitals": [line(1, epsilon_job=1e300), line(2, epsilon_job=1e9)]},
    ],
    ids=str,
)
def test_card__a_report_that_lacks_or_garbles_figures__leaves_them_out(
    report: dict[str, Any],
) -> None:
    text = card(schema_of(AGE), report)
    assert "metrics" in front_matter(text) and not front_matter(text)["metrics"]
    assert "model-index" not in front_matter(text) and "None" not in text and "nan" not in text


def test_save__card_and_result__are_of_one_job(tmp_path: Path) -> None:
    result = replace(result_of(schema_of(AGE, SEX)), hub=HUB)
    names = result.save(tmp_path, license="cc-by-nc-4.0")
    assert "README.md" in names
    text = (tmp_path / "README.md").read_text()
    job = JobTerms.from_json(result.terms)
    assert job.job_id.hex()[:12] in text and f"{HUB}/datasets/1" in front_matter(text)["datasets"]
    assert front_matter(text)["license"] == "cc-by-nc-4.0"
    again = Result.load(tmp_path)
    again.save(tmp_path)
    assert front_matter((tmp_path / "README.md").read_text())["license"] == "unknown"


def test_save__a_readme_that_somebody_wrote__stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    names = result_of(schema_of(AGE, SEX)).save(tmp_path)
    assert "README.md" not in names and "model.safetensors" in names
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_save__without_a_schema__has_a_card_without_columns(tmp_path: Path) -> None:
    replace(result_of(schema_of(AGE, SEX)), schema_json=b"").save(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "its schema is not kept here" in text and "Its columns" not in text
