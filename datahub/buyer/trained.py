"""A trained graph in its buyer's hands: a torch module over many records, an ONNX file, what of an
input moved an output. Knows nothing of schemas, tables or jobs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from fl_client.errors import GraphRefused
from fl_client.model.graph import PREDICT_ELEMENTS, GraphModel, parameters, with_parameters

STEPS = 32  # points on the line from the centre to a record


class Trained(nn.Module):
    """A graph over many records: [n, *inputs] -> [n, ...]. It can be trained further."""

    def __init__(self, model: GraphModel):
        super().__init__()
        self.of_one = with_parameters(model, parameters(model))  # its own, to be trained
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of each record, which no other record has a part in."""
        outputs: Tensor = vmap(lambda one: self.of_one(one[None])[0], randomness="different")(
            inputs
        )
        return outputs


def to_onnx(model: GraphModel, path: Path, notes: Mapping[str, str]) -> None:
    """Write the graph as ONNX, over any number of records, with `notes` as its metadata. Raises
    GraphRefused where torch cannot say it in ONNX; ImportError without the extra `onnx`.
    """
    import logging
    import warnings

    import onnxscript  # noqa: F401  # what torch's exporter needs: say so before it begins

    many = torch.export.Dim("records")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists what is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter about torch's own trees
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            program = torch.onnx.export(
                Trained(model),
                (torch.zeros(2, *model.input_shape),),
                input_names=["inputs"],
                output_names=["outputs"],
                dynamo=True,
                dynamic_shapes=({0: many},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise GraphRefused(f"torch cannot write this model as ONNX: {first[:300]}") from error
    assert program is not None
    program.model.metadata_props.update(notes)
    program.save(str(path))


def parts(model: GraphModel, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each input moved each output from where it is for an input of zeros: [n, outputs,
    *inputs], and those outputs [outputs].

    Gradients along the straight line from zeros to a record, times its inputs (integrated
    gradients, Sundararajan et al. 2017, 1703.01365, by the midpoint rule): of a linear model that
    is weight times input, exactly; of others the parts of a record add up to its output less that
    of zeros, as well as STEPS points can say it.
    """
    quiet = copy.copy(model).eval()

    def of_one(sample: Tensor) -> Tensor:
        output: Tensor = quiet(sample[None])[0].reshape(-1)
        return output

    steps = (torch.arange(STEPS, dtype=torch.float32) + 0.5) / STEPS

    def of_record(sample: Tensor) -> Tensor:
        shape = (STEPS, *[1] * sample.dim())
        slopes: Tensor = vmap(jacrev(of_one))(steps.reshape(shape) * sample)
        return slopes.mean(0) * sample

    batch = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
    at_once = max(1, PREDICT_ELEMENTS // (STEPS * max(1, model.elements)))
    with torch.no_grad():
        start = of_one(torch.zeros(model.input_shape))
        found = [vmap(of_record)(some) for some in torch.split(batch, at_once) if len(some)]
    width = (len(start), *model.input_shape)
    moved = torch.cat(found).numpy() if found else np.zeros((0, *width), dtype=np.float32)
    return moved, start.numpy()
