"""A column measured before its table is listed: one bounded vector of each patient, noise of the
stated size, and a charge that is there before anything is drawn and stays with the patients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from datahub.cli import app
from datatokens.chain.rpc_server import accounts
from fl_client.data.sources import Source, plain
from fl_client.data.tables import Records
from fl_client.errors import BudgetExceeded, DatasetError, LedgerError, PlanError
from fl_client.node import config, measuring
from fl_client.node.config import NodeConfig
from fl_client.node.listing import Listing, list_dataset
from fl_client.node.measuring import SENSITIVITY, contributions, measure
from fl_client.node.served import open_ledger
from fl_client.node.versions import withdraw_patient
from fl_client.privacy.accounting import epsilon, gaussian_noise
from fl_client.privacy.plan import Charge
from tests.clinic import SCHEMA, Clinic

OWNER = accounts()[1]


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    network = {
        "chain_id": 31337,
        "registry": "0x" + "11" * 20,
        "market": "0x" + "22" * 20,
        "payment_token": "0x" + "33" * 20,
        "superlink": "127.0.0.1:1",
        "ca_certificate": "",
    }
    folder = tmp_path / "node"
    urls = {"hub": "http://127.0.0.1:1", "chain": "http://127.0.0.1:1"}
    return config.create(folder, name="H", **urls, network=network)


def table(path: Path, values: np.ndarray, each: int = 1) -> Source:
    rows = [f"p{i // each},{x},0,{i % 2}" for i, x in enumerate(values)]
    path.write_text("\n".join(["who,a,b,y", *rows]) + "\n")
    return plain(path, "who")


def asked(node: NodeConfig, source: Source, cost: float = 1.0, **changes: Any) -> Any:
    usual = {"low": 0.0, "high": 100.0, "lifetime_epsilon": 8.0, "delta": 1e-5}
    return measure(node, source, "a", epsilon=cost, **(usual | changes))


def spent(node: NodeConfig) -> list[float]:
    ledger, _ = open_ledger(node.folder)
    return [ledger.epsilon_spent(name) for name in ledger.datasets()]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10, width=32)), min_size=1, max_size=40)
)
def test_contributions__of_whatever_records__one_bounded_vector_of_each_patient(
    lines: list[tuple[int, float]],
) -> None:
    whose = np.unique([who for who, _ in lines], return_inverse=True)[1]
    x = np.array([[value] for _, value in lines], dtype=np.float32)
    found = contributions(Records(x, np.zeros(len(x)), 0, whose))
    assert found.shape == (len(np.unique(whose)), 3)
    assert (np.linalg.norm(found, axis=1) <= SENSITIVITY * (1 + 1e-12)).all()
    without = contributions(
        Records(x[whose != 0], np.zeros(1), 0, whose[whose != 0] - 1)
        if (whose != 0).any()
        else Records(np.zeros((0, 1)), np.zeros(0), 0)
    )
    assert found[1:] == pytest.approx(without), "nobody's vector depends on who else is there"


def test_measure__many_patients_and_much_epsilon__is_near_the_truth(
    node: NodeConfig, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).normal(40, 8, size=3000)
    found = asked(node, table(tmp_path / "t.csv", values))
    assert found.centre.low < found.centre.value < found.centre.high
    assert found.centre.value == pytest.approx(40, abs=2)
    assert found.scale.value == pytest.approx(8, abs=4) and not found.vague


def test_measure__records_of_one_patient__are_averaged_and_bounds_are_kept(
    node: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(measuring, "released", lambda total, *_: seen.append(total) or total)
    values = np.array([0.0, 100.0, 1e9, -1e9] + [50.0] * 36)  # of 20 patients, two each
    asked(node, table(tmp_path / "t.csv", values, each=2))
    assert seen[0] == pytest.approx([20, 0, 0]), "1e9 counts as 100, -1e9 as 0"


@pytest.mark.parametrize(
    ("persons", "mean", "spread", "cost"),
    [
        (800, 0.0, 0.4, 1.0),
        (100, -0.2, 0.19, 2.0),  # the noise is as wide as the spread
        (300, -0.5, 0.12, 2.0),
        (5000, -0.2275, 0.19, 2.0),  # narrower than the digits that are said
        (50_000, -0.2275, 0.19, 2.0),
    ],
)
def test_intervals__hold_the_figures_without_noise_in_95_of_100(
    persons: int, mean: float, spread: float, cost: float
) -> None:
    z = np.random.default_rng(2).normal(mean, spread, size=persons).clip(-1, 1)
    total = np.array([len(z), z.sum(), (z * z).sum()])
    sd = gaussian_noise(cost, 1e-5) * SENSITIVITY
    random = np.random.default_rng(3)
    held = np.zeros(2)
    for _ in range(300):
        figures = measuring._figures(total + sd * random.standard_normal(3), sd, 60, 260)
        truth = 160 + 100 * z.mean(), 100 * z.std()
        held += [one.low <= true <= one.high for one, true in zip(figures, truth, strict=True)]
        assert all(one.low <= one.value <= one.high for one in figures)
    assert (held / 300 >= 0.92).all(), held


def test_intervals__perhaps_nobody_is_there__are_all_that_can_be() -> None:
    centre, scale = measuring._figures(np.array([3.0, 2.0, 9.0]), 5.0, 60, 260)
    assert (centre.low, centre.high, scale.low, scale.high) == (60, 260, 0, 100)


def test_measure__noise_is_what_the_charge_says(
    node: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[float, float]] = []
    real = measuring.released

    def released(total: Any, sensitivity: float, noise: float, random: Any) -> Any:
        used.append((sensitivity, noise))
        return real(total, sensitivity, noise, random)

    monkeypatch.setattr(measuring, "released", released)
    asked(node, table(tmp_path / "t.csv", np.full(50, 40.0)), cost=0.5)
    ledger, _ = open_ledger(node.folder)
    (name,) = ledger.datasets()
    (charged,) = ledger.history(name)
    assert used == [(SENSITIVITY, charged.noise_multiplier)]
    assert (charged.sampling_rate, charged.steps) == (1.0, 1)
    assert 0.49 < epsilon([Charge(charged.noise_multiplier, 1.0, 1, "it")], 1e-5) <= 0.5


def test_measure__listed_afterwards__its_charge_counts_in_the_datasets_lifetime(
    clinic: Clinic, hub_calls: list, tmp_path: Path
) -> None:
    node = config.read(clinic.folder)
    source = table(tmp_path / "t.csv", np.random.default_rng(1).normal(40, 8, 60), each=2)
    found = asked(node, source, cost=2.0)
    listing = Listing("T", "", 5, 5000, 6.0, 1e-5, records_per_patient=2)
    entry = list_dataset(node, OWNER[1], source, SCHEMA, listing, [(OWNER[0], 1)])
    ledger, _ = open_ledger(node.folder)
    whole = ledger.epsilon_spent(entry.name)
    assert whole > found.epsilon_spent > 1.9, "the noised count comes on top"
    assert [charge.what for charge in ledger.history(entry.name)] == ["released count"]
    left = ledger.epsilon_left(entry.name)
    assert left < 5.4, "of a lifetime of 6, 2 and a count are gone for these patients"
    with pytest.raises(BudgetExceeded):
        ledger.charge(entry.name, Charge(gaussian_noise(5.4, 1e-5), 1.0, 1, "a job"))


def test_measure__a_patient_has_withdrawn_from_the_dataset__takes_no_part(
    clinic: Clinic, hub_calls: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "t.csv", np.full(30, 40.0))
    listing = Listing("T", "", 5, 5000, 6.0, 1e-5)
    list_dataset(config.read(clinic.folder), OWNER[1], source, SCHEMA, listing, [(OWNER[0], 1)])
    withdraw_patient(config.read(clinic.folder), "p3")
    seen: list[np.ndarray] = []
    monkeypatch.setattr(measuring, "released", lambda total, *_: seen.append(total) or total)
    asked(config.read(clinic.folder), source, lifetime_epsilon=6.0)
    assert seen[0][0] == 29


def test_measure__more_than_the_lifetime_leaves__refused_before_anything_is_drawn(
    node: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "t.csv", np.full(50, 40.0))
    asked(node, source, cost=2.0, lifetime_epsilon=3.0)
    before = spent(node)

    def drawn(*_: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr(measuring, "SecureRandom", drawn)
    with pytest.raises(BudgetExceeded, match=r"measuring a needs epsilon="):
        asked(node, source, cost=2.0, lifetime_epsilon=3.0)
    with pytest.raises(LedgerError, match="may fall, never rise"):
        asked(node, source, cost=2.0, lifetime_epsilon=9.0)
    assert spent(node) == before


def test_measure__killed_between_charge_and_output__is_charged_and_says_nothing(
    node: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    source = table(tmp_path / "t.csv", np.full(50, 40.0))
    with monkeypatch.context() as patched:
        patched.setattr(measuring, "released", killed)
        with pytest.raises(KeyboardInterrupt):
            asked(node, source)
    (first,) = spent(node)
    assert first > 0.9
    asked(node, source)
    assert spent(node)[0] > 1.3 * first, "and asking again costs again"


def test_measure__another_column_or_a_lacking_value__is_the_same_patients(
    node: NodeConfig, tmp_path: Path
) -> None:
    source = table(tmp_path / "t.csv", np.full(50, 40.0))
    asked(node, source)
    (first,) = spent(node)
    assert source.file is not None
    text = source.file.read_text().replace("p0,40.0,0", "p0,,0")
    source.file.write_text(text)  # p0 lacks it now
    asked(node, source)
    assert max(spent(node)) > 1.3 * first


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"low": 5.0, "high": 5.0}, DatasetError, "low=5 must be less than high=5"),
        ({"high": float("inf")}, DatasetError, "high=inf must be a finite number"),
        ({"low": -1e308, "high": 1e308}, DatasetError, "high - low=inf must be a finite number"),
        ({"cost": 0.0}, PlanError, "epsilon=0.0 must be above 0 and at most 100"),
        ({"delta": 0.5}, PlanError, "delta=0.5 must be above 0 and at most 0.01"),
        ({"cost": 1e-9}, PlanError, "epsilon=1e-09 is too small"),
        ({"lifetime_epsilon": -1.0}, LedgerError, "epsilon=-1.0 must be above 0"),
    ],
)
def test_measure__out_of_range__is_a_sentence_and_charges_nothing(
    node: NodeConfig, tmp_path: Path, changes: dict[str, Any], error: type, said: str
) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        asked(node, table(tmp_path / "t.csv", np.full(50, 40.0)), **changes)
    assert not any(spent(node))


def test_measure__few_patients__refused_or_said_to_be_noise(
    node: NodeConfig, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="under the floor of 10"):
        asked(node, table(tmp_path / "few.csv", np.full(9, 40.0)))
    assert spent(node) == []
    words = ["node", "measure", str(node.folder), "a", "--low", "0", "--high", "100"]
    words += ["--epsilon", "0.1", "--patient-column", "who", "--file"]
    words.append(str(table(tmp_path / "t.csv", np.full(20, 40.0)).file))
    said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "95 % interval" in said and "more noise than signal" in said
    assert "of 8 at delta 1e-05 is spent" in said
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["vague"] is True and found["epsilon_spent"] > 0.1
    assert set(found["centre"]) == {"value", "low", "high"}
