"""The built-in families are the same on every machine, pass every check of a node, and give what
they say.
"""

import numpy as np
import pytest
import torch

from fl_client.errors import GraphRefused
from fl_client.model.export import export_model
from fl_client.model.families import FAMILIES, build
from fl_client.model.graph import load_model, parameters, predict
from fl_client.model.weights import model_hash

EXAMPLES = [
    ("logistic_regression", (13,), {}, 13, 1),
    ("mlp", (13,), {}, 13, 1),
    ("mlp", (13,), {"hidden": (8, 8)}, 13, 1),
    ("cnn", (1, 8, 1), {}, 64, 1),
    ("cnn", (3, 9, 4), {}, 243, 4),
    ("scattering", (1, 8, 1), {}, 64, 1),
    ("scattering", (2, 11, 3), {}, 242, 3),
]


@pytest.mark.parametrize(("name", "sizes", "more", "width", "outputs"), EXAMPLES)
def test_build__every_family__is_loaded_by_a_node_and_gives_its_outputs(
    name: str, sizes: tuple, more: dict, width: int, outputs: int
) -> None:
    module = build(name, *sizes, **more)
    model = load_model(*export_model(module, torch.zeros(1, width)))
    assert (model.input_shape, model.output_shape) == ((width,), (outputs,))
    rows = np.random.default_rng(1).normal(size=(5, width)).astype(np.float32)
    expected = module.eval()(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(predict(model, rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "sizes", "more", "width", "outputs"), EXAMPLES)
def test_build__twice__gives_the_same_model_and_leaves_the_callers_randomness_alone(
    name: str, sizes: tuple, more: dict, width: int, outputs: int
) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, second = (
        model_hash(
            parameters(
                load_model(*export_model(build(name, *sizes, **more), torch.zeros(1, width)))
            )
        )
        for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_build__every_family__is_among_the_examples_above() -> None:
    assert {name for name, *_ in EXAMPLES} == set(FAMILIES)


def test_logistic_regression__fresh__starts_at_zero() -> None:
    assert all(not p.any() for p in build("logistic_regression", 3).parameters())


@pytest.mark.parametrize(
    ("name", "sizes", "more", "sentence"),
    [
        (
            "resnet",
            (3,),
            {},
            "model='resnet' must be one of logistic_regression, mlp, cnn, scattering",
        ),
        ("mlp", (0,), {}, "whole numbers above 0"),
        ("mlp", (True,), {}, "whole numbers above 0"),
        ("mlp", (3,), {"hidden": (4, -1)}, "whole numbers above 0"),
        ("mlp", (3.0,), {}, "whole numbers above 0"),
        ("cnn", (3,), {}, "missing 2 required"),
        ("cnn", (1, 3, 1), {}, "at least 4 pixels"),
        ("scattering", (1, 7, 1), {}, "at least 8 pixels"),
    ],
)
def test_build__unknown_or_impossible__refuses_in_a_sentence(
    name: str, sizes: tuple, more: dict, sentence: str
) -> None:
    with pytest.raises(GraphRefused, match=sentence):
        build(name, *sizes, **more)


@pytest.mark.parametrize("size", [8, 9, 12, 28, 31])
def test_scattering__any_size__only_the_head_is_trained_and_a_flat_picture_has_no_waves(
    size: int,
) -> None:
    module = build("scattering", 1, size, 2)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained == ["4.weight", "4.bias"]
    waves = module[1](torch.ones(1, 1, size, size))[0]
    middle = waves[:, waves.shape[1] // 2, waves.shape[2] // 2]
    assert middle[0] > 0.5 and (size < 28 or middle[1:].abs().max() < 1e-5), middle


@pytest.mark.parametrize("name", ["plus", "cross"])
def test_scattering__stripes__answer_in_their_own_direction(name: str) -> None:
    # stripes whose brightness changes from left to right (plus) or from top to bottom (cross)
    along = torch.sin(torch.arange(28.0) * 0.75 * torch.pi)
    picture = along[None, :].expand(28, 28) if name == "plus" else along[:, None].expand(28, 28)
    waves = build("scattering", 1, 28, 1)[1](picture.reshape(1, 1, 28, 28))[0, 1:9, 3, 3]
    assert int(waves.argmax()) == (0 if name == "plus" else 4)
