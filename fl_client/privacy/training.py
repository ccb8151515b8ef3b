"""One differentially private round on one hospital's records. Knows nothing of ledgers, messages
or money.

A patient, the unit of privacy, is one record or the mean of several: one gradient, clipped once.
Every patient is drawn with probability q, independently (true Poisson, empty batches included),
sits in a secret slot of a batch whose shape follows from the terms (slots.py), is clipped by a norm
that is bounded and not estimated (clipping.py), and noise of sigma * C is added on a grid
(noise.py). Sums are divided by constants of the job's terms, never by a function of the records.
DP-SGD: Abadi et al. 2016, 1607.00133.

Nothing that a patient's record holds decides what is executed: shapes, the number of batches and of
operations follow from the terms, and whatever fails between the charge and the reply counts as a
sum of zeros. Dropout masks alone come from torch's generator, seeded with 63 bits of the operating
system's: they go with the slot, and any mask keeps a patient's gradient below the clip.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fl_client.data.shards import Pictures
from fl_client.errors import GraphRefused
from fl_client.model.fit import check_loss
from fl_client.model.graph import GraphModel, parameters, with_parameters
from fl_client.model.losses import LOSSES, Loss
from fl_client.privacy import looks
from fl_client.privacy.clipping import most_patients
from fl_client.privacy.compiling import (
    KEEP,
    ClippedSums,
    book_keeping,
    compiled,
    frozen_of,
    traced,
)
from fl_client.privacy.gradients import RowGradients
from fl_client.privacy.hooks import Hooks
from fl_client.privacy.noise import SecureRandom, grid_scale, on_grid, released, words_for
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.slots import REFERENCE, needed, seated

log = logging.getLogger("datahub.node")

CHUNK_ELEMENTS = 64_000_000  # numbers of row gradients and activations held at once: 256 MB
WRITTEN_OPERATIONS = 30  # a number of a row's gradient, written and added, takes as long as so many
CHUNK_SECONDS = 1.0  # of a chunk's forward and backward pass: between two, work can be stopped
ON_GPU = 100  # times the speed of slots.REFERENCE
NOISE_BLOCK = 1 << 16  # noise values at once: they stay in the processor's cache


# (model, loss, slots, records of a patient, steps of the whole job) -> its clipped sums
ENGINES: dict[str, Callable[[GraphModel, Loss, int, int, int], ClippedSums]] = {
    "book-keeping": book_keeping,
    "hooks": Hooks,
}


class OnDisk:
    """Stands for a tensor [p + 1, K, *shape] of pictures: rows are read when they are asked for.
    The last is nobody's, and zeros; as many pictures are read whoever sits in a slot.
    """

    def __init__(self, pictures: Pictures, rows: np.ndarray, where: torch.device):
        self.pictures, self.rows, self.device = pictures, rows, where

    def to(self, where: torch.device) -> OnDisk:
        """The same, given out on another device."""
        return OnDisk(self.pictures, self.rows, where)

    def __getitem__(self, places: Tensor) -> Tensor:
        at = places.cpu().numpy()
        read = self.pictures[self.rows[at]]
        read[at == len(self.rows) - 1] = 0
        return torch.from_numpy(read).to(self.device)


class Patients(NamedTuple):
    """A table by patient, the last row nobody's: x [p + 1, K, *shape], y [p + 1, K, *target],
    weight [p + 1, K].

    A patient's weights add up to 1 over their records; nobody's are 0.
    """

    x: Tensor | OnDisk
    y: Tensor
    weight: Tensor

    @property
    def persons(self) -> int:
        """The true number of patients: it stays in the room."""
        return len(self.y) - 1

    def to(self, where: torch.device) -> Patients:
        """The same on another device."""
        return Patients(self.x.to(where), self.y.to(where), self.weight.to(where))

    def seated(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows x [S K, *shape], y [S K, *target], weight [S K], mask [S] of those at `places`."""
        x, y = self.x[places].flatten(0, 1), self.y[places].flatten(0, 1)
        return x, y, self.weight[places].flatten(), places < self.persons


def by_patient(
    features: np.ndarray | Pictures, targets: np.ndarray, patients: np.ndarray | None, records: int
) -> Patients:
    """The first `records` rows of each patient: features [n, *shape], targets [n, *target],
    patients [n] (numbers from 0; None: every row is somebody else's).

    A patient with fewer has the first one again with weight 0, so that nobody's gradient depends on
    a record that is not theirs.
    """
    n = len(targets)
    if patients is None:
        rows, there = np.arange(n)[:, None], np.ones((n, 1), dtype=bool)
        records = 1
    else:
        order = np.argsort(patients, kind="stable")
        _, start, count = np.unique(patients[order], return_index=True, return_counts=True)
        there = np.arange(records) < count[:, None]
        rows = order[np.where(there, start[:, None] + np.arange(records), start[:, None])]
    persons = len(rows)
    y = np.zeros((persons + 1, records, *targets.shape[1:]), np.float32)
    weight = np.zeros((persons + 1, records), np.float32)
    y[:persons] = targets[rows]
    weight[:persons] = there / np.maximum(1, there.sum(1, keepdims=True))
    if isinstance(features, np.ndarray):
        x = np.zeros((persons + 1, records, *features.shape[1:]), np.float32)
        x[:persons] = features[rows]
        given: Tensor | OnDisk = torch.from_numpy(x)
    else:
        nobody = np.zeros((1, records), rows.dtype)
        given = OnDisk(features, np.concatenate([rows, nobody]), torch.device("cpu"))
    return Patients(given, torch.from_numpy(y), torch.from_numpy(weight))


class Chunks(NamedTuple):
    """How a batch of `times * slots` slots is worked on: `times` times `slots`."""

    slots: int
    times: int


def chunks(model: GraphModel, slots: int, records: int, loss: Loss, engine: str) -> Chunks:
    """Chunks for a batch of at least `slots`, by memory, by work and by the proof of clipping.py.
    From the terms alone.
    """
    of_rows = RowGradients(model, loss, records)
    # Opacus makes a gradient for each row of what is frozen, too
    held = of_rows.held if engine != "hooks" else sum(p.numel() for p in model.parameters())
    at_once = CHUNK_ELEMENTS // (records * (3 * model.elements + held))
    soon = int(CHUNK_SECONDS * speed() / (records * row_operations(model, of_rows)))
    most = max(1, min(slots, at_once, soon, most_patients(of_rows.positions)))
    times = math.ceil(slots / most)
    return Chunks(math.ceil(slots / times), times)


def row_operations(model: GraphModel, of_rows: RowGradients) -> int:
    """Multiplications and additions of one row's gradient: forward, backward by inputs and by
    weights, and what writing it takes.
    """
    return max(1, 3 * model.work + WRITTEN_OPERATIONS * of_rows.written)


@dataclass(frozen=True)
class RoundResult:
    """New parameters, the noised mean loss of the incoming model, and where it ran."""

    arrays: dict[str, np.ndarray]
    loss_mean: float
    device: str


def train_round(
    model: GraphModel,
    arrays: Mapping[str, np.ndarray],
    features: np.ndarray | Pictures,
    targets: np.ndarray,
    plan: PrivacyPlan,
    *,
    steps: int,
    learning_rate: float,
    loss: str,
    expected_persons: int,
    patients: np.ndarray | None = None,
    records_per_patient: int = 1,
    engine: str = "book-keeping",
) -> RoundResult:
    """`steps` DP-SGD steps from `arrays` on features [n, ...] and targets [n, ...] (numbers of the
    loss, losses.py); releases parameters and one loss.

    Both are private: the parameters by `steps` mechanisms (plan.noise_multiplier,
    plan.sampling_rate), the loss by one (plan.metric_noise_multiplier, rate 1). The loss is the
    mean
    over patients of the incoming model's. `patients` [n] says whose record each is (numbers from
    0);
    None: everyone has one. A patient's first `records_per_patient` records count as their mean, in
    gradients and losses. `expected_persons` is the released count, a constant. `engine` is a name
    in
    ENGINES. `model` stays as it is. Raises GraphRefused if arrays, features or loss do not fit the
    model; nothing that the records hold makes it raise.
    """
    check_loss(model, loss)
    wanted = (*features.shape[:1], *LOSSES[loss].target(model.output_shape))
    if tuple(features.shape[1:]) != model.input_shape or targets.shape != wanted:
        raise GraphRefused(
            f"features {features.shape} and targets {targets.shape} must be [n, "
            f"*{model.input_shape}] and {list(wanted)} with n of the same"
        )
    where = device()
    model = with_parameters(model, arrays).to(where)
    table = by_patient(features, targets, patients, records_per_patient)
    table = table.to(where)
    random = SecureRandom()
    loss_mean = _noised_loss(model, table, plan, loss, expected_persons, random)
    model.train()
    # Dropout draws from torch's global generator, whose state at start is a known constant: with
    # known masks that move by one row when a patient is added, the sum would have no bounded
    # sensitivity.
    with (
        torch.random.fork_rng(devices=[where] if where.type == "cuda" else []),
        torch.no_grad(),
        deterministic(),
    ):
        torch.manual_seed(secrets.randbits(63))
        slots, records = needed(expected_persons, plan.sampling_rate), table.y.shape[1]
        work = chunks(model, slots, records, LOSSES[loss], engine)
        run = ENGINES[engine](model, LOSSES[loss], work.slots, records, plan.steps)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
        frozen = frozen_of(model)
        # a float divisor of the terms: q times the released count, as Opacus divides for
        # loss_reduction="mean"
        rate = learning_rate / (plan.sampling_rate * expected_persons)
        clip = torch.tensor(plan.clip_norm, dtype=torch.float32, device=where)
        scale = _scale(float(clip), plan.noise_multiplier, len(theta), rate, where)
        for _ in range(steps):
            seats = seated(random, table.persons, plan.sampling_rate, work.slots * work.times)
            places = torch.from_numpy(seats).to(where)
            step(run, theta, frozen, table, places, clip, random, scale)
        _put_back(model, theta)
    return RoundResult(parameters(model), loss_mean, str(where))


def device() -> torch.device:
    """Where this machine trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def speed() -> float:
    """Multiplications and additions a second that this machine is taken to do."""
    return REFERENCE * (ON_GPU if device().type == "cuda" else 1)


@contextmanager
def deterministic() -> Iterator[None]:
    """No kernels of a GPU that add in an order of their own, which would not keep others' rows
    alike, and none that take 19 bits for float32 (TF32), which no compiler would agree with.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _scale(clip: float, noise: float, size: int, rate: float, device: torch.device) -> Tensor:
    """What a step's noise is scaled by: grid step, sd in grid steps, learning rate; float64 [3]."""
    return torch.tensor([*grid_scale(clip, noise, size), rate], dtype=torch.float64, device=device)


def step(
    run: ClippedSums,
    theta: Tensor,
    frozen: list[Tensor],
    table: Patients,
    places: Tensor,
    clip: Tensor,
    random: SecureRandom,
    scale: Tensor,
) -> None:
    """theta -= rate * (clipped sum over those at `places` + noise, on the grid), in place.

    `places` has a multiple of run.slots entries; an empty batch adds its noise alone. Chunks are
    added in float64. `scale` is `_scale(...)`.
    """
    total = _or_nothing(
        lambda: clipped_total(run, theta, frozen, table, places, clip), _zeros_like(theta)
    )
    whole = len(theta) <= NOISE_BLOCK  # views of a small model would take as long as its noise
    blocks = (
        [(theta, total)]
        if whole
        else zip(torch.split(theta, NOISE_BLOCK), torch.split(total, NOISE_BLOCK), strict=True)
    )
    for part, summed in blocks:
        words = random.words(words_for(len(part))).to(theta.device)
        update = _compiled_update(len(part), theta.device) if run.compiled else _update
        update(part, summed, words, scale)


def _zeros_like(theta: Tensor) -> Tensor:
    return torch.zeros(len(theta), dtype=torch.float64, device=theta.device)


def clipped_total(
    run: ClippedSums,
    theta: Tensor,
    frozen: list[Tensor],
    table: Patients,
    places: Tensor,
    clip: Tensor,
) -> Tensor:
    """Sum, float64 [P], of the clipped gradients of everybody at `places`, chunk by chunk."""
    total = _zeros_like(theta)
    for piece in torch.split(places, run.slots):
        total += without_failing(
            lambda seats: run.sum(theta, frozen, *table.seated(seats), clip), piece, table.persons
        )
    return total


def without_failing(work: Callable[[Tensor], Tensor], places: Tensor, nobody: int) -> Tensor:
    """work(places), without the patients with whom it fails: their slots are empty.

    No operation is known that fails by value. If one did, zeros for everybody would be an answer
    about the one patient; so that patient alone counts as nothing, as one whose gradient is not
    finite does. Raises what `work` raises if it fails with nobody there.
    """
    try:
        return work(places)
    except Exception:  # any kind, out of memory included
        log.exception("a sum over patients failed; those with whom it does count as nothing")
    left = places.clone()
    left[_failing(work, places, nobody, (places < nobody).nonzero().flatten())] = nobody
    return work(left)


def _failing(
    work: Callable[[Tensor], Tensor], places: Tensor, nobody: int, slots: Tensor
) -> Tensor:
    """Those of `slots` whose patients make `work` fail, each alone or in a half of them."""
    alone = torch.full_like(places, nobody)
    alone[slots] = places[slots]
    try:
        work(alone)
    except Exception:  # noqa: BLE001 - any kind; it was logged when all were there
        if len(slots) <= 1:
            return slots
        half = len(slots) // 2
        parts = slots[:half], slots[half:]
        return torch.cat([_failing(work, places, nobody, part) for part in parts])
    return slots[:0]


def _or_nothing(work: Callable[[], Tensor], nothing: Tensor) -> Tensor:
    """What `work` gives, or `nothing` where it fails, whoever is there (`without_failing` has left
    out those who make it). Between the charge and the reply there is no exception. The hospital's
    own log has it.
    """
    try:
        return work()
    except Exception:  # any kind, out of memory included, must look alike from outside
        log.exception("a sum over patients failed and counts as zeros; its noise is released")
        return nothing


def _update(theta: Tensor, total: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    return theta.copy_(theta - on_grid(total, words, scale) * scale[2])


@lru_cache(maxsize=KEEP)
def _compiled_update(size: int, device: torch.device) -> Callable[..., Tensor]:
    numbers = torch.zeros(size, device=device)
    words = SecureRandom().words(words_for(size)).to(device)
    scale = torch.ones(3, dtype=torch.float64, device=device)
    arguments = (numbers, numbers.double(), words, scale)
    graph = traced(_update, arguments)
    faster = compiled([(graph, arguments)])
    return faster[0] if faster else graph


def _put_back(model: GraphModel, theta: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(theta[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


# -- numbers about the model: every patient once, in slots as well ---------------------------------


def _of_everybody(
    model: GraphModel,
    table: Patients,
    expected_persons: int,
    random: SecureRandom,
    work: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    nothing: Tensor,
) -> Tensor:
    """Sum over chunks of work(outputs [S K, ...], y [S K], weight [S K], mask [S]), float64.

    Outputs are the model's without dropout. Shapes follow from the terms.
    """
    records = table.y.shape[1]
    slots = needed(expected_persons, 1.0)
    at_once = max(1, min(slots, CHUNK_ELEMENTS // (records * 3 * model.elements)))
    count = math.ceil(slots / at_once)
    size = math.ceil(slots / count)
    of_rows = vmap(lambda sample: model(sample[None])[0])

    def of_piece(places: Tensor) -> Tensor:
        x, y, weight, mask = table.seated(places)
        return work(of_rows(x), y, weight, mask)

    def everybody() -> Tensor:
        total = nothing.clone()
        seats = torch.from_numpy(seated(random, table.persons, 1.0, size * count))
        for piece in torch.split(seats.to(table.x.device), size):
            total += without_failing(of_piece, piece, table.persons)
        return total

    model.eval()
    with torch.no_grad(), deterministic():
        return _or_nothing(everybody, nothing)


def _noised_loss(
    model: GraphModel,
    table: Patients,
    plan: PrivacyPlan,
    loss: str,
    expected_persons: int,
    random: SecureRandom,
) -> float:
    """`loss_sum` at metric_clip + noise of sd metric_noise_multiplier * metric_clip, over the
    count.
    """
    total = loss_sum(model, table, plan.metric_clip, loss, expected_persons, random)
    noised = released(total.cpu().numpy(), plan.metric_clip, plan.metric_noise_multiplier, random)
    return float(noised[0] / expected_persons)


def loss_sum(
    model: GraphModel,
    table: Patients,
    clip: float,
    loss: str,
    expected_persons: int,
    random: SecureRandom,
) -> Tensor:
    """Sum, float64 [1], of the patients' losses clipped to [0, clip]: private, not to leave."""
    of_rows = vmap(LOSSES[loss])

    def clipped(outputs: Tensor, y: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        each = (of_rows(outputs, y).double() * weight.double()).view(len(mask), -1).sum(1)
        each = torch.where(each.isfinite(), each, clip).clamp(0.0, clip)
        return torch.where(mask, each, 0.0).sum()[None]

    nothing = torch.zeros(1, dtype=torch.float64, device=table.x.device)
    return _of_everybody(model, table, expected_persons, random, clipped, nothing)


def score_table(
    model: GraphModel,
    arrays: Mapping[str, np.ndarray],
    features: np.ndarray | Pictures,
    targets: np.ndarray,
    plan: PrivacyPlan,
    *,
    loss: str,
    expected_persons: int,
    patients: np.ndarray | None = None,
    records_per_patient: int = 1,
) -> list[float]:
    """The noised table of the model's scores (looks.py), of plan.score_noise_multiplier;
    arguments as `train_round`. What may leave.
    """
    model = with_parameters(model, arrays)
    table = by_patient(features, targets, patients, records_per_patient)
    random = SecureRandom()
    total = score_sum(model, table, loss, expected_persons, random)
    if not len(total):
        return []
    return [float(n) for n in released(total.numpy(), 1.0, plan.score_noise_multiplier, random)]


def score_sum(
    model: GraphModel, table: Patients, loss: str, expected_persons: int, random: SecureRandom
) -> Tensor:
    """The exact table of scores, float64 [cells]: private, not to leave."""

    def counts(outputs: Tensor, y: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        part = weight.numpy().astype(np.float64)
        return torch.from_numpy(looks.table(loss, outputs.numpy(), y.numpy(), part))

    cells = looks.cells(loss, math.prod(model.output_shape))
    nothing = torch.zeros(cells, dtype=torch.float64)
    return _of_everybody(model, table, expected_persons, random, counts, nothing)
