"""A buyer's result as a job would have made it: any schema, any model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from datahub.buyer.results import Result
from datatokens.terms import canonical_json
from fl_client.data.schemas import Schema
from fl_client.model.export import export_model
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.protocol import sha256_hex
from tests.conftest import spec, terms

YES_NO = {"name": "ill", "kind": "yes/no"}
AGE = {"name": "age", "centre": 50, "scale": 10, "unit": "a"}
SEX = {"name": "sex", "categories": ["male", "female"]}


def schema_of(*features: dict[str, Any], target: dict[str, Any] = YES_NO) -> Schema:
    return Schema.from_dict({"features": list(features), "target": target})


def result_of(
    schema: Schema,
    module: nn.Module | None = None,
    loss: str = "",
    shape: tuple[int, ...] | None = None,
) -> Result:
    """What a buyer would have of a job that trained `module`: one linear layer of fixed weights
    where none is given.
    """
    loss = loss or next(iter(schema.losses))
    outputs = schema.losses[loss]
    if module is None:
        torch.manual_seed(1)
        module = nn.Linear(schema.width, outputs)
    graph, weights = export_model(module, torch.zeros(1, *(shape or schema.shape)))
    arrays = from_safetensors(weights)
    job_spec = spec(
        schema_hash=schema.hash, graph_hash=sha256_hex(graph), loss=loss, outputs=outputs
    )
    job_terms = terms(job_spec)
    report = {"job_id": job_terms.job_id.hex(), "model_hash": model_hash(arrays).hex()}
    return Result(
        arrays,
        graph,
        canonical_json(report),
        job_terms.to_json(),
        canonical_json(schema.as_dict()),
    )
