"""The search finds nothing in the engine as it is, and a planted fault at once."""

from unittest.mock import patch

import numpy as np
import pytest

from fl_client.model.graph import load_model
from fl_client.model.weights import to_safetensors
from fl_client.privacy import adversary, clipping, compiling
from fl_client.privacy.adversary import (
    FAMILIES,
    FORWARD,
    GENES,
    SHAPE_GENES,
    control_flow,
    coupled_places,
    propose,
    search,
    survey,
    tables,
)
from fl_client.privacy.noise import MARGIN

CLIPPED = 1 / (1 + MARGIN)


@pytest.mark.parametrize("family", FAMILIES)
def test_search__engine_as_it_is__finds_the_clip_and_no_more(family: str) -> None:
    found = search(family, seconds=60.0, most=8, graphs=1)
    assert found.attack is not None and found.tried == 8
    assert found.ratio == pytest.approx(CLIPPED, abs=1e-6) or family == "rounding"
    assert found.ratio <= 1


@pytest.mark.parametrize("name", FORWARD)
def test_search__losses_and_scores__move_by_one_patient(name: str) -> None:
    found = search("rounding", seconds=60.0, most=6, graphs=1, measure=FORWARD[name])
    assert found.attack is not None and found.ratio <= 1


def test_search__norm_without_its_bound__is_found() -> None:
    plain = clipping._factors

    def by_gram_alone(patients, facts, left, right):
        squared, total = plain(patients, facts, left, right)
        return squared * 0.5, total

    adversary.engine_for.cache_clear()
    compiling._ENGINES.clear()
    try:
        with patch.dict(clipping.RULES, {"factors": by_gram_alone}):
            found = search("linear", seconds=60.0, most=12, graphs=2, until=1.0)
    finally:
        adversary.engine_for.cache_clear()
        compiling._ENGINES.clear()
    assert found.ratio == pytest.approx(2**0.5 * CLIPPED, rel=1e-6)


def test_search__code_path_by_the_data__is_found() -> None:
    def grouped(features, targets, patients, records):
        return by_patient(features, targets, patients, len(targets) // 4)

    by_patient = adversary.by_patient
    with patch("fl_client.privacy.training.by_patient", grouped):
        found = search("linear", seconds=0.0, most=2, graphs=2, measure=control_flow)
    assert found.ratio == 2.0


def test_propose__same_numbers__same_attack_that_a_buyer_could_send() -> None:
    rng = np.random.default_rng(1)
    genes = rng.random(SHAPE_GENES), rng.random(GENES)
    one, other = propose("tied", *genes), propose("tied", *genes)
    assert one.graph == other.graph
    assert all(np.array_equal(one.arrays[k], other.arrays[k]) for k in one.arrays)
    model = load_model(one.graph, to_safetensors(one.arrays))
    assert model.output_shape == () and model.frozen_names


def test_coupled_places__with_and_without_the_last__others_sit_in_the_same_slots() -> None:
    attack = propose("bias", np.full(SHAPE_GENES, 0.3), np.full(GENES, 0.3))
    with_one, without = tables(attack)
    seats, fewer = coupled_places(attack, attack.slots)
    others = seats < without.persons
    assert np.array_equal(seats[others], fewer[others]) and others.sum() == without.persons
    assert (seats == with_one.persons - 1).sum() == 1 and (fewer[~others] == without.persons).all()
    assert np.array_equal(with_one.x[:-2].numpy(), without.x[:-1].numpy())


def test_survey__fall_back_engine__every_family_at_most_1() -> None:
    found = survey("hooks", 0.0, graphs=1)
    assert max(found.values()) <= 1
    assert {"linear.hooks", "losses.forward", "scores.forward", "control_flow.hooks"} <= set(found)
    assert "dropout.hooks" not in found
