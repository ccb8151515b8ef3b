"""A result is used alone: from its folder, on tables of original columns, in other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datahub.buyer.results import Result
from datahub.errors import HubError
from datatokens.terms import canonical_json
from fl_client.data.schemas import OUTPUT
from fl_client.errors import DatasetError
from fl_client.model.families import build
from fl_server.errors import ResultError
from tests.datahub.made_results import AGE, SEX, YES_NO, result_of, schema_of

STAGE = {"name": "stage", "kind": "classes", "levels": ["I", "II", "III"]}
SCORE = {"name": "score", "kind": "classes", "levels": [0, 1, 2.5]}
STAY = {"name": "stay", "kind": "number", "low": 10, "high": 30, "unit": "d"}
FOUND = {"name": "found", "kind": "several yes/no", "columns": ["nodule", "fluid"]}
LIFE = {
    "name": "life",
    "kind": "time to event",
    "time": "days",
    "event": "died",
    "edges": [365, 730],
    "unit": "d",
}
ABOVE = {"name": "num", "positive_above": 0}
TABLE: dict[str, list[Any]] = {
    "sex": ["female", "male", "male", "female"],
    "extra": ["a", "b", "c", "d"],
    "age": [60, 41.5, 50, 37],
}


def linear(result: Result) -> np.ndarray:
    """The outputs of TABLE by hand: the schema's own arithmetic, weights times inputs."""
    x = np.array(
        [[(a - 50) / 10, s == "female"] for a, s in zip(TABLE["age"], TABLE["sex"], strict=True)]
    )
    return np.asarray(x @ result.arrays["weight"].astype(np.float64).T + result.arrays["bias"])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True))


def named(names: tuple[str, ...], columns: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, columns, strict=True))


@pytest.mark.parametrize(
    ("target", "loss", "answers"),
    [
        (YES_NO, "", lambda x: {"ill": sigmoid(x)[:, 0]}),
        (ABOVE, "", lambda x: {"num": sigmoid(x)[:, 0]}),
        (YES_NO, "cross_entropy", lambda x: {"ill": softmax(x)[:, 1]}),
        (YES_NO, "squared_error", lambda x: {"ill": np.clip(x[:, 0], 0, 1)}),
        (STAGE, "", lambda x: named(("I", "II", "III"), softmax(x).T)),
        (SCORE, "", lambda x: named(("0", "1", "2.5"), softmax(x).T)),
        (STAY, "", lambda x: {"stay": 10 + 20 * np.clip(x[:, 0], 0, 1)}),
        (FOUND, "", lambda x: named(("nodule", "fluid"), sigmoid(x).T)),
        (
            LIFE,
            "",
            lambda x: {
                "no died until 365 d": 1 - sigmoid(x)[:, 0],
                "no died until 730 d": (1 - sigmoid(x)).prod(axis=1),
            },
        ),
    ],
)
def test_predict__every_target__answers_in_its_own_words_and_units(
    target: dict[str, Any], loss: str, answers: Any
) -> None:
    result = result_of(schema_of(AGE, SEX, target=target), loss=loss)
    found, wanted = result.predict(TABLE), answers(linear(result))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, abs=1e-6)
    backwards = result.predict({name: TABLE[name] for name in reversed(TABLE)})
    assert all(np.array_equal(found[name], backwards[name]) for name in found)
    assert all(len(values) == 0 for values in result.predict({"age": [], "sex": []}).values())


def test_predict__outputs_of_any_size__are_probabilities() -> None:
    for target in (YES_NO, STAGE, LIFE):
        result = result_of(schema_of(AGE, SEX, target=target))
        huge = replace_arrays(result, 1e30)
        for values in huge.predict(TABLE).values():
            assert np.isfinite(values).all() and ((values >= 0) & (values <= 1)).all()


def replace_arrays(result: Result, times: float) -> Result:
    """The same job's result with larger weights."""
    from fl_client.model.weights import model_hash

    arrays = {name: array * np.float32(times) for name, array in result.arrays.items()}
    report = json.loads(result.report) | {"model_hash": model_hash(arrays).hex()}
    return replace(result, arrays=arrays, report=canonical_json(report))


def test_predict__a_record_without_a_value__has_no_answer_and_a_warning_says_so() -> None:
    result = result_of(schema_of(AGE, SEX))
    with pytest.warns(UserWarning, match="2 of 4 records have no answer: they lack age, sex,"):
        found = result.predict({"age": [None, 60, 50, 40], "sex": ["male", "male", "", "female"]})
    assert np.isnan(found["ill"]).tolist() == [True, False, True, False]
    with pytest.warns(UserWarning, match="they lack age"):
        inputs = result.inputs({"age": [60, None], "sex": ["male", "male"]})
    assert inputs[0].tolist() == [1.0, 0.0] and np.isnan(inputs[1]).all()
    with (
        pytest.warns(UserWarning),
        pytest.raises(HubError, match=r"1 records have no answer.*the first is record 1"),
    ):
        result.to_sklearn().predict({"age": [60, None], "sex": ["male", "male"]})


def test_predict__a_scaled_column__is_named_in_a_warning() -> None:
    result = result_of(schema_of(AGE, SEX))
    with pytest.warns(UserWarning, match=r"column age: 4 of 4 values \(100%\) are not from 10"):
        result.predict(TABLE | {"age": [1, -1, 0.5, 0]})


def test_predict__the_path_of_a_file__is_the_same(tmp_path: Path) -> None:
    result = result_of(schema_of(AGE, SEX))
    lines = ["sex,age", *(f"{s},{a}" for s, a in zip(TABLE["sex"], TABLE["age"], strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = result.predict(tmp_path / "t.csv")["ill"]
    assert np.array_equal(found, result.predict(str(tmp_path / "t.csv"))["ill"])
    assert np.array_equal(found, result.predict(TABLE)["ill"])
    (tmp_path / "t.csv").write_text("sex,age\nmale,old\n")
    with pytest.raises(DatasetError, match=r"t.csv line 2: age='old' is not a number"):
        result.predict(tmp_path / "t.csv")


def test_predict__a_job_that_asked_for_figures__has_no_model_to_use() -> None:
    schema = schema_of(AGE, SEX)
    asked = result_of(schema, nn.Linear(3, 1), OUTPUT, shape=schema.inputs(OUTPUT))
    with pytest.raises(HubError, match="asked for figures and trained nothing"):
        asked.predict(TABLE)


# -- folders ---------------------------------------------------------------------------------------


def test_load__what_was_saved__is_used_alone(tmp_path: Path) -> None:
    result = result_of(schema_of(AGE, SEX), build("mlp", 2))
    names = result.save(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    again = Result.load(tmp_path)
    assert again.schema == result.schema and again.loss == "binary_cross_entropy"
    assert np.array_equal(again.predict(TABLE)["ill"], result.predict(TABLE)["ill"])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("schema.json", lambda raw: raw.replace(b"50", b"60"), "schema is not the one in the"),
        ("schema.json", lambda raw: raw.replace(b'"male",', b""), "schema is not the one in the"),
        ("graph.json", lambda raw: raw + b" ", "graph is not the one in the terms"),
        ("model.safetensors", lambda raw: raw[:-1] + b"\1", "model is not the one in the report"),
        ("model.safetensors", lambda raw: b"\x80\x04pickle", "never opened"),
        ("terms.json", lambda raw: raw.replace(b"research", b"resale!!"), "of another job"),
        ("terms.json", lambda raw: b"{}", "damaged"),
        ("report.json", lambda raw: b"[]", "damaged"),
        ("report.json", lambda raw: b"{", "damaged"),
        ("report.json", None, "holds no result: report.json cannot be read; write it again with"),
    ],
)
def test_load__a_folder_that_was_changed__is_refused_in_a_sentence(
    tmp_path: Path, name: str, change: Any, said: str
) -> None:
    result_of(schema_of(AGE, SEX)).save(tmp_path)
    path = tmp_path / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ResultError, match=said) as refused:
        Result.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_load__without_a_schema__says_that_it_cannot_be_used_on_tables(tmp_path: Path) -> None:
    """Of jobs from before schemas were kept, whose datasets have another one by now."""
    result_of(schema_of(AGE, SEX)).save(tmp_path)
    (tmp_path / "schema.json").unlink()
    result = Result.load(tmp_path)
    assert result.outputs(np.zeros((1, 2))).shape == (1, 1)
    with pytest.raises(ResultError, match=r"has no schema\.json"):
        result.predict(TABLE)


def test_the_sdk__imported_loaded_and_asked_for_its_schema__no_torch(tmp_path: Path) -> None:
    result_of(schema_of(AGE, SEX)).save(tmp_path)
    script = f"""
import sys
from datahub import Market, Result
result = Result.load({str(tmp_path)!r})
result.schema.names, result.inputs({{"age": [50], "sex": ["male"]}})
heavy = {{"torch", "opacus", "flwr", "fastapi", "pandas", "polars", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
result.predict({{"age": [50], "sex": ["male"]}})
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# -- other libraries -------------------------------------------------------------------------------


def test_to_torch__over_many_records__is_predict_and_can_be_trained() -> None:
    result = result_of(schema_of(AGE, SEX), build("mlp", 2))
    module = result.to_torch()
    inputs = torch.from_numpy(result.inputs(TABLE))
    chance = torch.sigmoid(module(inputs)).detach().numpy()[:, 0]
    assert chance == pytest.approx(result.predict(TABLE)["ill"], abs=1e-6)
    module(inputs).sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in module.parameters())


@pytest.mark.parametrize("target", [YES_NO, STAGE, LIFE])
def test_to_onnx__over_any_number_of_records__is_the_same_to_1e_5(
    tmp_path: Path, target: dict[str, Any]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    schema = schema_of(AGE, SEX, target=target)
    result = result_of(schema, build("mlp", 2, outputs=next(iter(schema.losses.values()))))
    result.to_onnx(tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for inputs in (result.inputs(TABLE), np.zeros((1, 2), np.float32), np.ones((9, 2), np.float32)):
        (found,) = session.run(["outputs"], {"inputs": inputs})
        assert found == pytest.approx(result.outputs(inputs), abs=1e-5)
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["schema"]) == schema.as_dict() and notes["loss"] == result.loss


def test_to_onnx__without_the_extra__says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(HubError, match=r"ONNX needs onnxscript: pip install 'datahub\[onnx\]'"):
        result_of(schema_of(AGE, SEX)).to_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("target", "classes", "truth"),
    [
        (YES_NO, [0, 1], [1, 0, 0, 1]),
        (STAGE, ["I", "II", "III"], ["I", "III", "II", "I"]),
        (SCORE, [0, 1, 2.5], [0, 2.5, 1, 0]),
        (FOUND, ["nodule", "fluid"], [[1, 0], [0, 1], [1, 1], [0, 0]]),
    ],
)
def test_to_sklearn__a_classifier__works_in_its_metrics(
    target: dict[str, Any], classes: list[Any], truth: list[Any]
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    result = result_of(schema_of(AGE, SEX, target=target))
    model = result.to_sklearn()
    chance, said = model.predict_proba(TABLE), model.predict(TABLE)
    assert model.classes_.tolist() == classes and chance.shape == (4, len(classes))
    assert list(model.feature_names_in_) == ["age", "sex"]
    if target is FOUND:
        assert said.tolist() == (chance > 0.5).astype(int).tolist()
        assert 0 <= metrics.f1_score(truth, said, average="macro") <= 1
        return
    assert chance.sum(axis=1) == pytest.approx(1)
    assert said.tolist() == [classes[i] for i in chance.argmax(axis=1)]
    named = truth if target is not SCORE else list(map(str, truth))
    if target is not SCORE:
        loss = metrics.log_loss(named, chance, labels=model.classes_)
        assert metrics.get_scorer("neg_log_loss")(model, TABLE_FRAME, named) == -loss
        accurate = metrics.get_scorer("accuracy")(model, TABLE_FRAME, named)
        assert accurate == np.mean(said == np.array(truth))
    if target is YES_NO:
        by_hand = metrics.roc_auc_score(truth, result.predict(TABLE)["ill"])
        assert metrics.get_scorer("roc_auc")(model, TABLE_FRAME, truth) == by_hand


TABLE_FRAME = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]


def test_to_sklearn__a_number__is_a_regressor_and_survival_is_none() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    model = result_of(schema_of(AGE, SEX, target=STAY)).to_sklearn()
    error = metrics.get_scorer("neg_mean_absolute_error")(model, TABLE_FRAME, [15, 20, 25, 30])
    assert error == -np.abs(model.predict(TABLE) - [15, 20, 25, 30]).mean()
    with pytest.raises(HubError, match="which has no classes"):
        model.predict_proba(TABLE)
    with pytest.raises(HubError, match="order another job"):
        model.fit(TABLE, [1, 2, 3, 4])
    with pytest.raises(HubError, match="knows no time to event"):
        result_of(schema_of(AGE, SEX, target=LIFE)).to_sklearn()


# -- explanations ----------------------------------------------------------------------------------


def test_explain__a_linear_model__is_weight_times_input_by_original_column() -> None:
    levels = {"name": "site", "categories": ["a", "b", "c"], "other": True}
    age = AGE | {"missing": {"value": 70}}
    result = result_of(schema_of(levels, age, target=STAGE))
    table = {"age": [60, None, 45], "site": ["b", "a", "zzz"]}
    found, weights = result.explain(table), result.arrays["weight"]
    assert list(found.parts) == ["score of I", "score of II", "score of III"]
    for i, name in enumerate(found.parts):
        w = weights[i]  # b, c, another, age, age is missing
        assert found.parts[name]["site"] == pytest.approx([w[0], 0, w[2]], abs=1e-6)
        ages = [w[3], 2 * w[3] + w[4], -0.5 * w[3]]
        assert found.parts[name]["age"] == pytest.approx(ages, abs=1e-6)
        assert found.start[name] == pytest.approx(result.arrays["bias"][i])
    assert found.gap < 1e-5 and "not what causes the outcome" in found.words


@pytest.mark.parametrize(
    ("target", "outputs"),
    [
        (YES_NO, ["log odds of ill"]),
        (STAY, ["stay, as a part of its range"]),
        (FOUND, ["log odds of nodule", "log odds of fluid"]),
        (LIFE, ["log odds of died from 0 to 365 d", "log odds of died from 365 to 730 d"]),
    ],
)
def test_explain__a_network__its_parts_add_up_to_its_output(
    target: dict[str, Any], outputs: list[str]
) -> None:
    schema = schema_of(AGE, SEX, target=target)
    result = result_of(schema, build("mlp", 2, outputs=len(outputs)))
    found = result.explain(TABLE)
    assert list(found.parts) == outputs
    given = result.outputs(result.inputs(TABLE)).reshape(4, -1)
    for i, name in enumerate(outputs):
        total = found.start[name] + sum(found.parts[name].values())
        assert np.abs(total - given[:, i]).max() <= found.gap + 1e-9 < 1e-3


def test_explain__a_record_without_a_value__has_no_parts() -> None:
    with pytest.warns(UserWarning, match="they lack age"):
        found = result_of(schema_of(AGE, SEX)).explain({"age": [60, None], "sex": ["male"] * 2})
    assert np.isnan(found.parts["log odds of ill"]["age"]).tolist() == [False, True]
