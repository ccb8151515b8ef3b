"""The guarantee, measured: bounded influence of one patient, noise of the promised size, equality
with Opacus.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import binom, chi2, norm
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_client.errors import GraphRefused
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.model.fit import check_loss
from fl_client.model.graph import GraphModel, load_model, parameters, predict
from fl_client.model.losses import LOSSES
from fl_client.model.weights import model_hash
from fl_client.privacy import compiling, evaluation, noise, training
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import (
    ENGINES,
    RoundResult,
    by_patient,
    chunks,
    score_table,
    train_round,
)

PLAN = PrivacyPlan(
    noise_multiplier=1.5,
    clip_norm=1.0,
    sampling_rate=1.0,
    steps=60,
    delta=1e-5,
    metric_noise_multiplier=20.0,
    metric_clip=2.0,
    metric_steps=10,
)
N, WIDTH = 24, 16
ALMOST = 1 + 1e-3  # noise.MARGIN, and the last bits of an honest graph in another slot


class Mixing(nn.Module):
    """What dp attacks look like: every output of a batch depends on its first row and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.mean(0) + 5 * x[0])


class HiddenUse(nn.Module):
    """A weight that is also used outside its module, where per-module hooks do not look."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.relu(self.layer(x)), 100 * self.layer.weight).sum(
            1, keepdim=True
        )


class Words(nn.Module):
    """An embedding of the input's whole parts, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x.long()).mean(1))


class Steps(nn.Module):
    """An LSTM over four steps of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(x.view(-1, 4, 4))[0][:, -1])


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


CNN = {"channels": 1, "size": 4}
MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "logistic_regression": (lambda: nn.Linear(WIDTH, 1), "binary_cross_entropy"),
    "linear_regression": (lambda: nn.Linear(WIDTH, 1), "squared_error"),
    "mlp": (lambda: build("mlp", WIDTH), "binary_cross_entropy"),
    "classes": (
        lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)),
        "cross_entropy",
    ),
    "cnn": (lambda: build("cnn", **CNN, classes=3), "cross_entropy"),
    "mixing": (Mixing, "binary_cross_entropy"),
    "hidden_use": (HiddenUse, "squared_error"),
    "embedding": (Words, "binary_cross_entropy"),
    "lstm": (Steps, "binary_cross_entropy"),
}


@pytest.fixture(scope="module")
def models() -> dict[str, GraphModel]:
    return {
        name: load_model(*export_model(_seeded(make), torch.zeros(1, WIDTH)))
        for name, (make, _) in MODULES.items()
    }


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every Gaussian draw of the round gives zeros; the standard deviations asked for are noted."""
    asked: list[float] = []

    def exact(total: np.ndarray, sensitivity: float, noise: float, _: SecureRandom) -> np.ndarray:
        asked.append(sensitivity * noise)
        return total

    def without(theta: Tensor, total: Tensor, words: Tensor, scale: Tensor) -> Tensor:
        asked.append(float(scale[0] * scale[1]))
        return theta.copy_(theta - total * scale[2])

    monkeypatch.setattr(training, "released", exact)
    monkeypatch.setattr(training, "_update", without)
    monkeypatch.setattr(training, "_compiled_update", lambda *_: without)
    return asked


def sample_gradients(model: GraphModel, x: Tensor, y: Tensor, loss: str) -> dict[str, Tensor]:
    """An oracle of our own: per-sample gradients [n, *parameter shape] by parameter key, zeros
    where not finite.
    """
    tensors = {key: parameter.detach() for key, parameter in model.named_parameters()}
    if len(y) == 0:
        return {key: tensor.new_zeros((0, *tensor.shape)) for key, tensor in tensors.items()}

    def of_one(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return LOSSES[loss](functional_call(model, values, (sample[None],))[0], target)

    gradients = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")(tensors, x, y)
    finite = torch.stack([g.reshape(len(y), -1).isfinite().all(1) for g in gradients.values()]).all(
        0
    )
    return {
        # where, not a product: 0 * NaN is NaN
        key: torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g))
        for key, g in gradients.items()
    }


def people(n: int = N, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(9)
    return chance.normal(size=(n, WIDTH)).astype(np.float32), chance.integers(0, classes, n).astype(
        np.float32
    )


def one_round(
    model: GraphModel, x: np.ndarray, y: np.ndarray, loss: str, plan: PrivacyPlan = PLAN, **more
) -> RoundResult:
    given = {"steps": 1, "learning_rate": 1.0, "expected_persons": N, **more}
    return train_round(model, parameters(model), x, y, plan, loss=loss, **given)


def step_of(model: GraphModel, result: RoundResult, persons: int = N) -> np.ndarray:
    """The (noised) sum of clipped gradients that one step with learning rate 1 and q=1 took, as one
    vector.
    """
    start = parameters(model)
    return (
        np.concatenate([(start[k].astype(np.float64) - result.arrays[k]).ravel() for k in start])
        * persons
    )


# -- one patient's influence -----------------------------------------------------------------------

ADVERSARIES: dict[str, Callable[[np.ndarray, float], tuple[np.ndarray, float]]] = {
    "another patient": lambda x, y: (x[::-1], 1 - y),
    "50 times": lambda x, y: (50 * x, y),
    "50 times, flipped": lambda x, y: (-50 * x, 1 - y),
    "a million times": lambda x, y: (1e6 * x, 1 - y),
    "huge": lambda x, y: (np.full_like(x, 1e30), y),
    "largest float": lambda x, y: (np.full_like(x, 3.4e38), y),
    "zeros": lambda x, y: (np.zeros_like(x), y),
    "NaN": lambda x, y: (np.full_like(x, np.nan), y),
    "one NaN": lambda x, y: (np.where(np.arange(WIDTH) == 3, np.nan, x), y),
    "infinite": lambda x, y: (np.full_like(x, np.inf), y),
    "infinite both ways": lambda x, y: (np.where(x > 0, np.inf, -np.inf), y),
    "label NaN": lambda x, y: (x, math.nan),
    "label infinite": lambda x, y: (x, math.inf),
    "label of no class": lambda x, y: (x, 77.0),
    "label negative": lambda x, y: (x, -1.0),
    "label a million": lambda x, y: (x, 1e6),
}


@pytest.fixture
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine's name; "compiled" is the book-keeping one where a job is long."""
    if request.param == "compiled":
        monkeypatch.setattr(compiling, "pays_from", lambda *_: 0)
        monkeypatch.setattr(compiling, "_ENGINES", OrderedDict())
    return "book-keeping" if request.param == "compiled" else request.param


MODES = [*product(ENGINES, MODULES), ("compiled", "mlp"), ("compiled", "cnn")]


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize(("mode", "name"), MODES, indirect=["mode"])
def test_train_round__one_patient_replaced_added_or_removed__moves_the_sum_by_at_most_the_clip(
    models: dict, no_noise: list, mode: str, name: str, adversary: str
) -> None:
    model, loss = models[name], MODULES[name][1]
    x, y = people()
    evil_x, evil_y = x.copy(), y.copy()
    evil_x[5], evil_y[5] = ADVERSARIES[adversary](x[5], float(y[5]))
    honest = step_of(model, one_round(model, x, y, loss, engine=mode))
    replaced = step_of(model, one_round(model, evil_x, evil_y, loss, engine=mode))
    without = step_of(
        model, one_round(model, np.delete(x, 5, 0), np.delete(y, 5), loss, engine=mode)
    )
    for step in (honest, replaced, without):
        assert np.isfinite(step).all()
    assert np.linalg.norm(replaced - honest) <= 2 * PLAN.clip_norm * ALMOST
    assert np.linalg.norm(replaced - without) <= PLAN.clip_norm * ALMOST
    assert np.linalg.norm(honest - without) <= PLAN.clip_norm * ALMOST
    assert no_noise, "the noise must have been drawn and switched off, or this measures nothing"


@given(
    st.lists(st.floats(width=32), min_size=WIDTH, max_size=WIDTH),
    st.floats(width=32),
    st.floats(0.01, 100.0),
)
@settings(max_examples=60, deadline=None)
def test_sample_gradients__any_record_at_all__is_finite_and_clipped(
    values: list, label: float, clip: float
) -> None:
    model = _HYPOTHESIS_MODEL
    x, y = torch.tensor([values], dtype=torch.float32), torch.tensor([label], dtype=torch.float32)
    gradients = sample_gradients(model, x, y, "binary_cross_entropy")
    assert all(g.isfinite().all() for g in gradients.values())
    for key, parameter in model.named_parameters():
        parameter.grad_sample = gradients[key]
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
    )
    optimizer.clip_and_accumulate()
    total = torch.cat([p.summed_grad.reshape(-1).double() for p in model.parameters()])
    optimizer.zero_grad()
    assert total.norm() <= clip * ALMOST


_HYPOTHESIS_MODEL = load_model(*export_model(build("mlp", WIDTH), torch.zeros(1, WIDTH)))


@pytest.mark.parametrize("name", MODULES)
def test_sample_gradients__one_record_changed__leaves_every_other_gradient_bit_for_bit(
    models: dict, name: str
) -> None:
    model, loss = models[name], MODULES[name][1]
    x, y = map(torch.from_numpy, people())
    before = sample_gradients(model, x, y, loss)
    for evil in (50 * x[0], torch.full((WIDTH,), torch.nan)):
        changed = x.clone()
        changed[0] = evil
        after = sample_gradients(model, changed, y, loss)
        for key, gradients in before.items():
            assert torch.equal(after[key][1:], gradients[1:])


# -- several records of one patient ----------------------------------------------------------------


def _visits() -> np.ndarray:
    """Whose record each of N is: eight patients with one to six records, not in order."""
    return np.random.default_rng(4).permutation(np.repeat(np.arange(8), [1, 2, 6, 1, 3, 5, 2, 4]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "squared_error"])
def test_train_round__several_records__one_clipped_mean_per_patient(
    loss: str, engine: str, no_noise: list
) -> None:
    (x, y), whose = people(), _visits()
    model = load_model(*export_model(build("mlp", WIDTH), torch.zeros(1, WIDTH)))
    result = one_round(
        model,
        x,
        y,
        loss,
        replace(PLAN, clip_norm=0.3),
        patients=whose,
        records_per_patient=6,
        engine=engine,
    )
    each = sample_gradients(model, torch.from_numpy(x), torch.from_numpy(y), loss)
    flat = torch.cat([g.reshape(N, -1) for g in each.values()], 1)
    means = torch.stack([flat[torch.from_numpy(whose == p)].mean(0) for p in range(8)])
    expected = (means * (0.3 / means.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0).numpy()
    np.testing.assert_allclose(step_of(model, result), expected, atol=2e-5)
    assert result.loss_mean * N < 8 * PLAN.metric_clip + 1e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("which", [0, 2])
def test_train_round__all_records_of_one_patient_replaced__moves_by_at_most_twice_the_clip(
    name: str, which: int, engine: str, no_noise: list
) -> None:
    (x, y), whose = people(), _visits()
    model = load_model(*export_model(build("mlp", WIDTH), torch.zeros(1, WIDTH)))
    before = one_round(
        model, x, y, "binary_cross_entropy", patients=whose, records_per_patient=6, engine=engine
    )
    for i in np.flatnonzero(whose == which):
        x[i], y[i] = ADVERSARIES[name](x[i], y[i])
    after = one_round(
        model, x, y, "binary_cross_entropy", patients=whose, records_per_patient=6, engine=engine
    )
    moved = np.linalg.norm(step_of(model, before) - step_of(model, after))
    assert moved <= 2 * PLAN.clip_norm * ALMOST
    assert abs(before.loss_mean - after.loss_mean) * N <= PLAN.metric_clip * ALMOST
    gone = whose != which
    without = one_round(
        model,
        x[gone],
        y[gone],
        "binary_cross_entropy",
        patients=whose[gone],
        records_per_patient=6,
        engine=engine,
    )
    assert (
        np.linalg.norm(step_of(model, before) - step_of(model, without)) <= PLAN.clip_norm * ALMOST
    )


def test_by_patient__more_records_than_count__weights_of_each_patient_sum_to_one() -> None:
    whose = np.concatenate([np.zeros(13, int), np.ones(2, int)])
    x, y = np.arange(15, dtype=np.float32)[:, None], np.zeros(15, np.float32)
    table = by_patient(x, y, whose, 4)
    assert table.persons == 2 and table.x.shape == (3, 4, 1) and table.y.shape == (3, 4)
    assert table.weight.sum(1).tolist() == [1.0, 1.0, 0.0]
    assert table.x[0].flatten().tolist() == [0.0, 1.0, 2.0, 3.0], "the first ones"
    assert set(table.x[1].flatten().tolist()) == {13.0, 14.0}, "nobody else's records"
    assert (table.weight[1, 2:] == 0).all() and (table.x[2] == 0).all()


@pytest.mark.parametrize("records", [1, 5])
def test_by_patient__nobody__has_the_shape_of_somebody(records: int) -> None:
    empty = np.zeros((0, WIDTH), np.float32), np.zeros(0, np.float32), np.zeros(0, int)
    table = by_patient(*empty, records)
    assert table.persons == 0 and table.x.shape == (1, records, WIDTH)


# -- noise -----------------------------------------------------------------------------------------


def _wide() -> GraphModel:
    return load_model(*export_model(build("logistic_regression", 20_000), torch.zeros(1, 20_000)))


def _assert_std(values: np.ndarray, sd: float) -> None:
    """A chi-square test of the variance that an honest run fails once in 10^7 times, and a normal
    one of the mean.
    """
    n = values.size
    low, high = chi2.ppf([5e-8, 1 - 5e-8], n)
    assert low < float((values**2).sum() / sd**2) < high
    assert abs(values.mean()) < norm.ppf(1 - 5e-8) * sd / math.sqrt(n)


@pytest.mark.parametrize("mode", [*ENGINES, "compiled"], indirect=True)
@pytest.mark.parametrize(
    ("sigma", "clip", "rate"), [(0.3, 1.0, 1.0), (1.5, 0.5, 0.1), (8.0, 3.0, 1e-6)]
)
def test_train_round__nobody_there__adds_noise_of_exactly_sigma_times_clip(
    mode: str, sigma: float, clip: float, rate: float
) -> None:
    model = _wide()
    plan = replace(PLAN, noise_multiplier=sigma, clip_norm=clip, sampling_rate=rate)
    empty = np.zeros((0, 20_000), np.float32), np.zeros(0, np.float32)
    result = one_round(model, *empty, "binary_cross_entropy", plan, engine=mode)
    _assert_std(step_of(model, result) * rate, sigma * clip)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_train_round__more_or_fewer_people__noise_and_divisor_stay_the_same(
    n: int, no_noise: list
) -> None:
    model = _wide()
    x, y = np.zeros((n, 20_000), np.float32), np.ones(n, np.float32)
    result = one_round(
        model, x, y, "binary_cross_entropy", replace(PLAN, sampling_rate=0.5), expected_persons=64
    )
    of_loss, of_step = no_noise
    assert of_loss == PLAN.metric_noise_multiplier * PLAN.metric_clip
    sd = PLAN.noise_multiplier * PLAN.clip_norm
    assert sd < of_step < sd * (1 + 2 * noise.MARGIN), "the sensitivity's margin and no more"
    # zero features leave the bias's gradient of -1/2 each; it is divided by 0.5 * 64 whatever n is
    drawn = result.arrays["bias"][0] * 32 / 0.5
    assert drawn == pytest.approx(round(drawn), abs=1e-3)
    assert 0 <= drawn <= n


def test_train_round__several_steps__each_adds_its_own_noise() -> None:
    model = _wide()
    empty = np.zeros((0, 20_000), np.float32), np.zeros(0, np.float32)
    result = one_round(model, *empty, "binary_cross_entropy", steps=9)
    _assert_std(step_of(model, result), PLAN.noise_multiplier * math.sqrt(9))


def test_train_round__with_people__adds_the_noise_on_top_of_their_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _wide()
    x = np.random.default_rng(2).normal(size=(30, 20_000)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float32)
    noised = step_of(model, one_round(model, x, y, "binary_cross_entropy"))
    again = step_of(model, one_round(model, x, y, "binary_cross_entropy"))
    _assert_std((noised - again) / math.sqrt(2), PLAN.noise_multiplier * PLAN.clip_norm)
    monkeypatch.setattr(noise, "gaussian", lambda words: torch.zeros(len(words)))
    exact = step_of(model, one_round(model, x, y, "binary_cross_entropy"))
    _assert_std(noised - exact, PLAN.noise_multiplier * PLAN.clip_norm)


def test_train_round__torch_seeded_by_the_caller__draws_other_noise_and_leaves_the_seed_alone(
    models: dict,
) -> None:
    model = models["mlp"]
    hashes = set()
    for _ in range(3):
        torch.manual_seed(0)
        hashes.add(model_hash(one_round(model, *people(), "binary_cross_entropy").arrays))
        after = torch.random.get_rng_state()
        torch.manual_seed(0)
        assert torch.equal(torch.random.get_rng_state(), after)
    assert len(hashes) == 3


def test_train_round__dropout__masks_do_not_follow_from_torchs_constant_seed(
    no_noise: list,
) -> None:
    module = nn.Sequential(nn.Linear(WIDTH, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    model = load_model(*export_model(_seeded(lambda: module), torch.zeros(1, WIDTH)))
    hashes = set()
    for _ in range(3):
        torch.manual_seed(0)
        hashes.add(model_hash(one_round(model, *people(), "binary_cross_entropy").arrays))
    assert len(hashes) == 3, "with the gradient noise off, only the masks can make the difference"


def test_sample_gradients__dropout__every_patient_has_a_mask_of_their_own() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1))
    model = load_model(*export_model(module, torch.zeros(1, WIDTH)))
    same = torch.ones(8, WIDTH)
    gradients = sample_gradients(model.train(), same, torch.zeros(8), "binary_cross_entropy")
    weight = next(g for g in gradients.values() if g.dim() == 3)
    assert len({tuple((row != 0).reshape(-1).tolist()) for row in weight}) > 4


# -- sampling --------------------------------------------------------------------------------------


def test_drawn__rate_one__is_everybody_every_time() -> None:
    random = SecureRandom()
    batches = [random.drawn(50, 1.0) for _ in range(7)]
    assert len(batches) == 7
    assert all(batch.tolist() == list(range(50)) for batch in batches)


def test_drawn__rate_below_one__draws_each_patient_independently() -> None:
    n, rate, steps = 40, 0.3, 2000
    drawn = np.zeros((steps, n))
    random = SecureRandom()
    for row in drawn:
        row[random.drawn(n, rate)] = 1
    low, high = binom.ppf([1e-9, 1 - 1e-9], steps, rate)
    assert ((low <= drawn.sum(0)) & (drawn.sum(0) <= high)).all(), "every patient at the rate"
    sizes = drawn.sum(1)
    dispersion = ((sizes - n * rate) ** 2).sum() / (n * rate * (1 - rate))
    assert chi2.ppf(1e-9, steps) < dispersion < chi2.ppf(1 - 1e-9, steps), (
        "binomial sizes: not shuffled, not fixed"
    )
    pairs = drawn.T @ drawn
    together = pairs[np.triu_indices(n, 1)]
    low, high = binom.ppf([1e-9, 1 - 1e-9], steps, rate**2)
    assert ((low <= together) & (together <= high)).all(), "no two patients tied together"


def test_drawn__nobody__is_empty_batches_and_two_runs_differ() -> None:
    random = SecureRandom()
    assert [len(random.drawn(0, 0.5)) for _ in range(3)] == [0, 0, 0]
    assert len({tuple(SecureRandom().drawn(100, 0.5).tolist()) for _ in range(3)}) == 3


# -- equality with Opacus's own engine -------------------------------------------------------------

WITH_HOOKS = (
    "logistic_regression",
    "linear_regression",
    "mlp",
    "classes",
    "cnn",
)  # hooks get the other two wrong


def _batch_loss(loss: str, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, y.long())
    if loss == "squared_error":
        return nn.functional.mse_loss(outputs[:, 0], y)
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", WITH_HOOKS)
def test_sample_gradients__equal_opacus_hooks(models: dict, name: str) -> None:
    make, loss = MODULES[name]
    x, y = map(torch.from_numpy, people(classes=3 if loss == "cross_entropy" else 2))
    hooked = GradSampleModule(_seeded(make), loss_reduction="mean")
    _batch_loss(loss, hooked(x), y).backward()
    ours = sample_gradients(models[name], x, y, loss)
    keys = dict(zip(models[name].parameter_names, ours.values(), strict=True))
    for parameter_name, parameter in hooked._module.named_parameters():
        torch.testing.assert_close(
            keys[parameter_name], parameter.grad_sample, rtol=1e-3, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", WITH_HOOKS)
@pytest.mark.parametrize("clip", [0.05, 1.0, 1e4])
def test_train_round__noise_off__equals_five_steps_of_opacus(
    models: dict, no_noise: list, name: str, clip: float
) -> None:
    make, loss = MODULES[name]
    x, y = people(classes=3 if loss == "cross_entropy" else 2)
    hooked = GradSampleModule(_seeded(make), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=0.05),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=N,
        loss_reduction="mean",
    )
    for _ in range(5):
        optimizer.zero_grad()
        _batch_loss(loss, hooked(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    ours = one_round(
        models[name], x, y, loss, replace(PLAN, clip_norm=clip), steps=5, learning_rate=0.05
    )
    for parameter_name, parameter in hooked._module.named_parameters():
        expected = parameter.detach().numpy()
        np.testing.assert_allclose(ours.arrays[parameter_name], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_train_round__in_many_small_chunks__is_the_same_step(
    models: dict, no_noise: list, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, loss = models[name], MODULES[name][1]
    whole = one_round(model, *people(), loss, steps=3)
    one_patient = sum(p.numel() for p in model.parameters()) + 3 * model.elements
    for room in (1, 5 * one_patient):  # one by one, and some at a time
        monkeypatch.setattr(training, "CHUNK_ELEMENTS", room)
        pieces = one_round(model, *people(), loss, steps=3)
        assert pieces.loss_mean == pytest.approx(whole.loss_mean, rel=1e-5)
        for key, array in whole.arrays.items():
            np.testing.assert_allclose(pieces.arrays[key], array, rtol=1e-4, atol=1e-6)


def test_train_round__chunks__add_the_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _wide()
    monkeypatch.setattr(training, "CHUNK_ELEMENTS", 1)
    x, y = np.zeros((5, 20_000), np.float32), np.ones(5, np.float32)  # only the bias has a gradient
    step = step_of(model, one_round(model, x, y, "binary_cross_entropy"))
    weights = step[:20_000] if parameters(model).keys() == {"weight", "bias"} else step[1:]
    _assert_std(weights[1:], PLAN.noise_multiplier)


# -- the loss metric -------------------------------------------------------------------------------


def test_loss_mean__noise_off__is_the_mean_clipped_loss_of_the_incoming_model(
    models: dict, no_noise: list
) -> None:
    x, y = people()
    x[3] *= 50  # beyond the clip
    result = one_round(models["mlp"], x, y, "binary_cross_entropy", learning_rate=100.0)
    outputs = torch.from_numpy(predict(models["mlp"], x))[:, 0]
    losses = nn.functional.binary_cross_entropy_with_logits(
        outputs, torch.from_numpy(y), reduction="none"
    )
    assert result.loss_mean == pytest.approx(
        float(losses.clamp(0, PLAN.metric_clip).mean()), rel=1e-5
    )


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("name", MODULES)
def test_loss_mean__one_patient_added__moves_the_sum_by_at_most_the_clip(
    models: dict, no_noise: list, name: str, adversary: str
) -> None:
    model, loss = models[name], MODULES[name][1]
    x, y = people()
    without = one_round(model, x, y, loss).loss_mean * N
    evil_x, evil_y = ADVERSARIES[adversary](x[5], float(y[5]))
    with_one = one_round(
        model,
        np.vstack([x, evil_x]).astype(np.float32),
        np.append(y, evil_y).astype(np.float32),
        loss,
    )
    assert math.isfinite(with_one.loss_mean)
    assert -1e-6 <= with_one.loss_mean * N - without <= PLAN.metric_clip * ALMOST


def test_loss_mean__not_a_number__counts_as_the_clip(models: dict, no_noise: list) -> None:
    nobody = one_round(
        models["mlp"],
        np.zeros((0, WIDTH), np.float32),
        np.zeros(0, np.float32),
        "binary_cross_entropy",
    )
    assert nobody.loss_mean == 0.0
    one = np.full((1, WIDTH), np.nan, np.float32), np.zeros(1, np.float32)
    assert one_round(models["mlp"], *one, "binary_cross_entropy").loss_mean * N == pytest.approx(
        PLAN.metric_clip
    )


def test_loss_mean__many_releases__has_noise_of_the_promised_size(models: dict) -> None:
    model, source = models["logistic_regression"], SecureRandom()
    nobody = by_patient(np.zeros((0, WIDTH)), np.zeros(0), None, 1)
    released = [
        training._noised_loss(model, nobody, PLAN, "binary_cross_entropy", N, source)
        for _ in range(3000)
    ]
    _assert_std(np.array(released) * N, PLAN.metric_noise_multiplier * PLAN.metric_clip)


# -- the table of scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [None, _visits()])
def test_score_table__noise_off__has_one_unit_for_each_patient(
    models: dict, no_noise: list, patients: np.ndarray | None
) -> None:
    model, (x, y) = models["mlp"], people()
    records = 1 if patients is None else 6
    table = score_table(
        model, parameters(model), x, y, PLAN, loss="binary_cross_entropy", expected_persons=N,
        patients=patients, records_per_patient=records,
    )  # fmt: skip
    unit = evaluation.IN_GROUP + evaluation.IN_FINE
    assert sum(table) == pytest.approx((N if patients is None else 8) * unit)
    assert no_noise == [PLAN.score_noise_multiplier]


# -- nothing that a record holds decides what happens ----------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_train_round__engine_fails_on_the_records__releases_noise_as_if_nobody_were_there(
    models: dict, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> object:
        raise IndexError("index 7 is out of range for patient Miller")

    monkeypatch.setattr(training, "clipped_total", broken)
    model = _wide()
    x, y = np.ones((N, 20_000), np.float32), np.ones(N, np.float32)
    result = one_round(model, x, y, "binary_cross_entropy", engine=engine)
    _assert_std(step_of(model, result), PLAN.noise_multiplier * PLAN.clip_norm)
    assert "counts as zeros" in caplog.text


@pytest.mark.parametrize("victims", [(), (5,), (0, 7, 23), tuple(range(N))])
def test_clipped_total__records_that_make_the_engine_fail__count_as_nothing_and_others_stay(
    models: dict, victims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that one patient raises must not become an answer about that patient."""
    model, (x, y) = models["mlp"], people()
    run = ENGINES["book-keeping"](model, LOSSES["binary_cross_entropy"], 10, 1, 1)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    places = torch.from_numpy(SecureRandom().order(30))
    places[places >= N] = N
    table, clip = by_patient(x, y, None, 1), torch.tensor(1.0)
    there = torch.isin(places, torch.tensor(victims, dtype=torch.int64))
    without = training.clipped_total(run, theta, [], table, torch.where(there, N, places), clip)
    honest = type(run).sum

    def fails(self: object, theta: Tensor, frozen: list, rows: Tensor, *more: Tensor) -> Tensor:
        for victim in victims:
            if (rows == table.x[victim]).all(1).any():
                raise IndexError("out of range")
        return honest(self, theta, frozen, rows, *more)

    monkeypatch.setattr(type(run), "sum", fails)
    assert torch.equal(training.clipped_total(run, theta, [], table, places, clip), without)


def test_chunks__any_model_and_size__hold_the_batch_and_are_all_alike(models: dict) -> None:
    for model in models.values():
        for slots in (1, 7, 1000, 100_000):
            for records in (1, 5):
                loss = LOSSES["squared_error"]
                found = chunks(model, slots, records, loss, "book-keeping")
                assert slots <= found.slots * found.times < slots + found.times


# -- what goes in and out --------------------------------------------------------------------------


def test_train_round__any_job__leaves_the_model_that_it_was_given(models: dict) -> None:
    before = model_hash(parameters(models["mlp"]))
    result = one_round(models["mlp"], *people(), "binary_cross_entropy", steps=3)
    assert model_hash(parameters(models["mlp"])) == before != model_hash(result.arrays)
    assert {a.dtype for a in result.arrays.values()} == {np.dtype(np.float32)}
    assert result.device in ("cpu", "cuda")


def test_train_round__enough_patients__learns() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(2000, 4)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) > 0).astype(np.float32)
    model = load_model(*export_model(build("logistic_regression", 4), torch.zeros(1, 4)))
    for rate in (1.0, 0.2):
        plan = replace(PLAN, sampling_rate=rate)
        result = one_round(
            model, x, y, "binary_cross_entropy", plan, steps=40, expected_persons=2000
        )
        weights = {k: torch.from_numpy(v) for k, v in result.arrays.items()}
        right = ((x @ weights["weight"].numpy()[0] + weights["bias"].numpy() > 0) == y).mean()
        assert right > 0.93


@pytest.mark.parametrize(
    ("name", "loss", "sentence"),
    [
        (
            "mlp",
            "hinge",
            "loss='hinge' must be one of binary_cross_entropy, cross_entropy, squared_error, ",
        ),
        ("mlp", "cross_entropy", "2 to 64 numbers in a row for cross_entropy"),
        ("classes", "binary_cross_entropy", "must be one number for binary_cross_entropy"),
        ("cnn", "squared_error", "must be one number for squared_error"),
    ],
)
def test_check_loss__does_not_fit_the_model__refuses_before_anything_is_computed(
    models: dict, name: str, loss: str, sentence: str
) -> None:
    with pytest.raises(GraphRefused, match=sentence):
        check_loss(models[name], loss)
    with pytest.raises(GraphRefused, match=sentence):
        one_round(models[name], *people(), loss)


def test_check_loss__every_loss__fits_some_model(models: dict) -> None:
    assert {loss for _, loss in MODULES.values()} <= set(LOSSES)
    for name, (_, loss) in MODULES.items():
        check_loss(models[name], loss)


@pytest.mark.parametrize(
    ("x_shape", "y_shape"), [((5, WIDTH + 1), (5,)), ((5, WIDTH), (4,)), ((5, WIDTH), (5, 1))]
)
def test_train_round__rows_do_not_fit_the_model__refuses(
    models: dict, x_shape: tuple, y_shape: tuple
) -> None:
    with pytest.raises(GraphRefused, match=r"features .* and targets .* must be"):
        one_round(
            models["mlp"],
            np.zeros(x_shape, np.float32),
            np.zeros(y_shape, np.float32),
            "binary_cross_entropy",
        )
