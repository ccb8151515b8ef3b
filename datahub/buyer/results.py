"""What a buyer has in the end: a model that takes tables of original columns, with everything that
says what it is. A saved result is used alone: no hub, no chain, no wallet.

>>> from datahub import Result  # doctest: +SKIP
>>> result = Result.load("result")  # doctest: +SKIP
>>> result.predict(dataframe)["malignant"]  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datahub.buyer import frames, outcomes
from datahub.buyer.frames import Doubt, Inputs, Table
from datahub.errors import HubError
from datahub.metadata import model_card
from datatokens.errors import TermsError
from datatokens.terms import JobTerms
from datatokens.wire import parse
from fl_client.data.schemas import OUTPUT, Schema
from fl_client.errors import NodeError
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.node.job_folder import write_whole
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.errors import ResultError

if TYPE_CHECKING:
    from datahub.buyer.estimator import Estimator
    from datahub.buyer.trained import Trained
    from fl_client.model.graph import GraphModel

MODEL, GRAPH, REPORT, TERMS, SCHEMA, CARD = (
    "model.safetensors",
    "graph.json",
    "report.json",
    "terms.json",
    "schema.json",
    "README.md",
)
HONEST = (
    "How far each column moved this model's own output for this record, from where it is when all "
    "inputs are zero (numbers at the centre that the schema names); by gradients along the line "
    "between (integrated gradients), which for a linear model is weight times input, exactly. It "
    "says what the model does, with the noise of its training in it; not what causes the outcome."
)


@dataclass(frozen=True)
class Explanation:
    """parts: output -> column -> [n], of an output before it becomes an answer (log odds, for the
    most part); start: output -> what it is when all inputs are zero; gap: the most by which start
    and parts of a record miss its output; words: what this is.
    """

    parts: Mapping[str, Mapping[str, np.ndarray]]
    start: Mapping[str, float]
    gap: float
    words: str = HONEST


@dataclass(frozen=True)
class Result:
    """Parameters (name -> float32), the model's graph, report, terms and schema (canonical JSON
    each); `schema_json` is empty where neither buyer nor hub had it any more. `hub` is where it was
    bought, for its card; "" where that is not known.

    That they belong together is checked whenever one is made: raises ResultError.
    """

    arrays: Mapping[str, np.ndarray]
    graph: bytes
    report: bytes
    terms: bytes
    schema_json: bytes = b""
    hub: str = ""

    def __post_init__(self) -> None:
        try:
            terms, report = JobTerms.from_json(self.terms), parse(self.report)
            spec = JobSpec.from_dict(terms.spec)
            said = {
                "the report is of another job": (report["job_id"], terms.job_id.hex()),
                "the model is not the one in the report": (
                    report["model_hash"],
                    model_hash(self.arrays).hex(),
                ),
                "the graph is not the one in the terms": (spec.graph_hash, sha256_hex(self.graph)),
                "the schema is not the one in the terms": (
                    spec.schema_hash,
                    sha256_hex(self.schema_json) if self.schema_json else spec.schema_hash,
                ),
            }
        except (TermsError, NodeError, KeyError, TypeError) as error:
            raise ResultError(f"the result is damaged: {str(error)[:300]}") from error
        for what, (one, other) in said.items():
            if one != other:
                raise ResultError(f"{what}: {str(one)[:12]}, not {other[:12]}")

    @classmethod
    def load(cls, folder: Path | str) -> Result:
        """A result that was saved, its hashes checked. That it is the one that hospitals attested,
        only the chain can say: `datahub job result JOB`. Raises ResultError.
        """
        folder = Path(folder)
        try:
            content = {name: (folder / name).read_bytes() for name in (MODEL, GRAPH, REPORT, TERMS)}
            kept = folder / SCHEMA
            schema = kept.read_bytes() if kept.exists() else b""
        except OSError as error:
            raise ResultError(
                f"{folder} holds no result: {Path(error.filename or '').name} cannot be read; "
                "write it again with: datahub job result JOB --out FOLDER"
            ) from error
        try:
            arrays = from_safetensors(content[MODEL])
        except NodeError as error:
            raise ResultError(f"{folder / MODEL}: {error}") from error
        return cls(arrays, content[GRAPH], content[REPORT], content[TERMS], schema)

    def save(self, folder: Path | str, license: str = model_card.LICENSE) -> list[str]:
        """Write it to `folder`, with a model card (metadata/model_card.py) under the license that
        you give it, by Hugging Face's name for it; the names of its files. A README.md that is
        there and is no model card of this kind stays as it is.
        """
        files = {
            MODEL: to_safetensors(self.arrays),
            GRAPH: self.graph,
            REPORT: self.report,
            TERMS: self.terms,
        } | ({SCHEMA: self.schema_json} if self.schema_json else {})
        if _free_for_a_card(Path(folder) / CARD):
            files[CARD] = self.card(license).encode()
        for name, content in files.items():
            write_whole(Path(folder) / name, content)
        return list(files)

    def card(self, license: str = model_card.LICENSE) -> str:
        """What it is and what it is not, as a model card."""
        terms, schema = JobTerms.from_json(self.terms), None
        with suppress(ResultError):  # a card without columns is better than no result
            schema = self.schema
        spec, report = JobSpec.from_dict(terms.spec), parse(self.report)
        return model_card.document(terms, spec, report, schema, self.hub, license)

    @cached_property
    def schema(self) -> Schema:
        """What the model takes and what it says. Raises ResultError where it is gone."""
        if not self.schema_json:
            raise ResultError("this result has no schema.json, so that its inputs are not known")
        try:
            return Schema.from_dict(parse(self.schema_json))
        except (TermsError, NodeError) as error:
            raise ResultError(f"the schema is damaged: {error}") from error

    @cached_property
    def loss(self) -> str:
        """What the model was trained by."""
        return JobSpec.from_dict(JobTerms.from_json(self.terms).spec).loss

    @cached_property
    def _model(self) -> GraphModel:
        from fl_client.model.graph import load_model  # torch, which nothing before this needs

        return load_model(self.graph, to_safetensors(self.arrays))

    def predict(self, table: Table | Path | str) -> dict[str, np.ndarray]:
        """Answer -> a number for each record, by the target: the probability of yes, of each class,
        of no event until each edge; a number in its own unit (outcomes.py names them). A DataFrame
        takes it as it is.

        `table` is a pandas or polars DataFrame, a dict of columns, a list of dicts, or the path of
        a table's file, with the schema's columns as they were measured, in any order. A record that
        lacks a column which the schema does not do without has NaN. Warns of that, and of columns
        that are not where the schema has them. Raises DatasetError naming column, record, value.
        """
        inputs = self._read(table)
        outputs = self.outputs(inputs.features)
        found = outcomes.answers(self.schema.target, self.loss, outputs)
        return {name: _spread(values, inputs) for name, values in found.items()}

    def inputs(self, table: Table | Path | str) -> np.ndarray:
        """The model's inputs [n, *inputs] of a table, for `to_torch` and ONNX; NaN for a record
        that lacks a column.
        """
        inputs = self._read(table)
        return _spread(inputs.features, inputs)

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """The model's own outputs [n, ...] of inputs: log odds and the like."""
        from fl_client.model.graph import predict

        return predict(self._model, inputs)

    def explain(self, table: Table | Path | str) -> Explanation:
        """Which column moved the outputs of each record how far; `words` says what that is."""
        from datahub.buyer.trained import parts

        inputs, schema = self._read(table), self.schema
        if schema.picture is not None:
            raise HubError("explain: a picture has no columns to name")
        moved, start = parts(self._model, inputs.features)
        names = outcomes.raw(schema.target, self.loss)
        outputs = self.outputs(inputs.features).reshape(len(inputs.features), len(names))
        sums = start + moved.sum(axis=2, dtype=np.float64)
        columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
        at = 0
        for feature in schema.features:
            here = moved[:, :, at : at + feature.width].sum(axis=2, dtype=np.float64)
            for i, name in enumerate(names):
                columns[name][feature.name] = _spread(here[:, i], inputs)
            at += feature.width
        gap = float(np.abs(sums - outputs).max(initial=0.0))
        return Explanation(columns, dict(zip(names, start.tolist(), strict=True)), gap)

    def to_torch(self) -> Trained:
        """The model as a torch module over [n, *inputs], as `inputs` gives them."""
        from datahub.buyer.trained import Trained

        return Trained(self._model)

    def to_onnx(self, path: Path | str) -> None:
        """Write the model as an ONNX file over [n, *inputs]; the schema travels in its metadata.
        Raises HubError without the extra `onnx`, GraphRefused where torch cannot write it.
        """
        from datahub.buyer.trained import to_onnx

        notes = {"schema": self.schema_json.decode(), "loss": self.loss}
        try:
            to_onnx(self._model, Path(path), notes)
        except ModuleNotFoundError as error:
            raise HubError(
                f"ONNX needs {error.name}: pip install 'datahub[onnx]' brings it"
            ) from error

    def to_sklearn(self) -> Estimator:
        """The model as scikit-learn has them, over tables of original columns."""
        from datahub.buyer.estimator import Estimator

        return Estimator(self)

    def _read(self, table: Table | Path | str) -> Inputs:
        schema = self.schema
        if self.loss == OUTPUT:
            raise HubError("this job asked for figures and trained nothing; see Job.answer")
        reading = frames.read_file if isinstance(table, str | Path) else frames.read
        inputs = reading(table, schema)
        lacking = [name for name in inputs.lacks if name]
        if lacking:
            warnings.warn(
                f"{len(lacking)} of {len(inputs.lacks)} records have no answer: they lack "
                f"{', '.join(dict.fromkeys(lacking))}, which the model does not do without",
                Doubt,
                stacklevel=3,
            )
        for doubt in frames.doubts(inputs, schema):
            warnings.warn(doubt, Doubt, stacklevel=3)
        return inputs


def _free_for_a_card(path: Path) -> bool:
    """Whether a model card may be written there: over nothing, or over an older one of ours."""
    try:
        with path.open("rb") as file:
            return model_card.MARK.encode() in file.read(4096)
    except FileNotFoundError:
        return True


def _spread(values: np.ndarray, inputs: Inputs) -> np.ndarray:
    """Values of the complete records, at their places among all of them."""
    complete = inputs.complete
    spread = np.full((len(complete), *values.shape[1:]), np.nan, dtype=values.dtype)
    spread[complete] = values
    return spread
