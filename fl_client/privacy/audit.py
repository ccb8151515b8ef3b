"""Is the epsilon real? One run of this very engine on made-up patients, and what an attacker learns
from its result.

One-run audit (Steinke, Nasr & Jagielski 2023, 2305.08846): of many canaries each is a patient or
not by a fair coin; the engine trains once; an attacker who knows everything but the coins and the
noise guesses them. More right guesses than an epsilon allows prove that epsilon wrong. Each
canary's gradient has a direction of its own, so that nothing hides it but the noise: the strongest
attack there is on a sum. The bound says nothing good of an engine; it can only convict it. No
patient is touched, so nothing is charged. Knows nothing of jobs or ledgers.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from fl_client.errors import PlanError
from fl_client.model.export import export_model
from fl_client.model.graph import load_model, parameters
from fl_client.privacy.accounting import epsilon
from fl_client.privacy.plan import Charge, PrivacyPlan
from fl_client.privacy.training import ENGINES, train_round

LOUD = 50.0  # a canary's feature: its gradient is far above any clip
STEP = 1e-6  # so small that no canary's gradient changes while it trains
# the attacker guesses every fifth coin, where it is surest: named before looking, as the bound
# demands
GUESSED = 5
MAX_CANARIES = 20_000


@dataclass(frozen=True)
class Audit:
    """What was claimed, and the most epsilon that the result disproves, with this confidence.

    guesses, right     coins guessed, and guessed right; half of them would be chance
    """

    epsilon_claimed: float
    epsilon_disproved: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int

    @property
    def convicted(self) -> bool:
        """Whether the claim is disproved."""
        return self.epsilon_disproved > self.epsilon_claimed


def disproved(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest epsilon under which so many right guesses are less likely than 1 - confidence; 0
    if none is.

    Steinke et al. 2023, theorem 5.2: for an (epsilon, delta)-DP run the right guesses are, up to
    delta, at most
    Binomial(guesses, e^epsilon / (1 + e^epsilon)).
    """

    def likely(eps: float) -> float:
        chance = 1 / (1 + np.exp(-eps))
        beta = float(binom.sf(right - 1, guesses, chance))
        if right == 0:
            return 1.0
        tail = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
        alpha = float((tail / np.arange(1, right + 1)).max())
        return min(1.0, beta + 2 * canaries * delta * alpha)

    if likely(0.0) > 1 - confidence:
        return 0.0
    low, high = 0.0, 40.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if likely(middle) > 1 - confidence else (middle, high)
    return low


def audit(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    canaries: int = 2000,
    records: int = 1,
    engine: str = "book-keeping",
    confidence: float = 0.95,
) -> Audit:
    """Train once on canaries with these terms and this engine. `records` of each canary tests
    patient-level privacy.

    Raises PlanError for a number out of range or another engine.
    """
    if not 10 <= canaries <= MAX_CANARIES:
        raise PlanError(f"canaries={canaries} must be from 10 to {MAX_CANARIES}")
    if engine not in ENGINES:
        raise PlanError(f"engine={engine!r} must be {' or '.join(ENGINES)}")
    plan = PrivacyPlan(noise_multiplier, 1.0, sampling_rate, steps, delta, 1e5, 1.0, 1)
    coins = np.array([secrets.randbits(1) for _ in range(canaries)], dtype=bool)
    there = np.flatnonzero(coins)
    features = np.zeros((len(there) * records, canaries), np.float32)
    features[np.arange(len(features)), np.repeat(there, records)] = LOUD
    layer = nn.Linear(canaries, 1, bias=False)
    nn.init.zeros_(layer.weight)
    model = load_model(*export_model(layer, torch.zeros(1, canaries)))
    result = train_round(
        model,
        parameters(model),
        features,
        np.zeros(len(features), np.float32),
        plan,
        steps=steps,
        learning_rate=STEP * sampling_rate * canaries,
        loss="binary_cross_entropy",
        expected_persons=canaries,
        patients=np.repeat(np.arange(len(there)), records) if records > 1 else None,
        records_per_patient=records,
        engine=engine,
    )
    scores = -result.arrays["weight"][0]  # a canary that is there pushes its own weight down
    order = np.argsort(scores, kind="stable")
    half = canaries // GUESSED // 2
    right = int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())
    return Audit(
        epsilon([Charge(noise_multiplier, sampling_rate, steps, "audit")], delta),
        disproved(canaries, 2 * half, right, delta, confidence),
        delta,
        confidence,
        canaries,
        2 * half,
        right,
    )
