"""Once, everyday acts gave the same patients a fresh lifetime budget: listing again, another
schema, one consent withdrawn; and record jobs counted at face value for patients with several.
"""

from pathlib import Path

import pytest

from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.errors import BudgetExceeded, LedgerError
from fl_client.privacy.accounting import epsilon, lifetime_epsilon
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge

SECRET = b"s" * 32
A = Schema((Feature("a", 0, 1), Feature("b", 0, 1)), Target("y", 0))
OTHER = {
    "centre moved": Schema((Feature("a", 0, 1.0000002), Feature("b", 0, 1)), Target("y", 0)),
    "one feature less": Schema((Feature("a", 0, 1),), Target("y", 0)),
}
JOB = [Charge(2.5, 1.0, 1, "training")]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def table(tmp_path: Path, patients: int = 60, each: int = 1, without: int = 0) -> Path:
    rows = [
        f"{i // each},{i * 0.1},{(i * 7 % 13) * 0.1},{i % 2}"
        for i in range(without * each, patients * each)
    ]
    path = tmp_path / f"{patients}-{each}-{without}.csv"
    path.write_text("\n".join(["id,a,b,y", *rows]) + "\n")
    return path


def listed(ledger: Ledger, name: str, path: Path, schema: Schema, column: str) -> None:
    ledger.open_dataset(name, 3.0, 1e-5)
    members = load(plain(path, column), schema, SECRET).members
    assert members is not None
    ledger.set_members(name, members)


def spend(ledger: Ledger, name: str) -> None:
    ledger.reserve(name, f"job {name}", JOB)
    ledger.begin_round(f"job {name}", 1, b"h", JOB)


def test_listing_again__with_a_higher_limit__is_refused_and_the_first_stands(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.open_dataset("1", 1.0, 1e-5)
    for limit, delta in ((100.0, 1e-5), (1.0, 1e-2)):
        with pytest.raises(LedgerError, match="may fall, never rise"):
            ledger.open_dataset("1", limit, delta)
    assert (ledger.budget("1").epsilon, ledger.budget("1").delta) == (1.0, 1e-5)
    # a second listing of the same file with a higher limit raises nobody's
    path = table(tmp_path)
    ledger.set_members("1", load(plain(path, "id"), A, SECRET).members)
    ledger.open_dataset("2", 100.0, 1e-2)
    ledger.set_members("2", load(plain(path, "id"), A, SECRET).members)
    with pytest.raises(BudgetExceeded, match="of another dataset with some of the same patients"):
        ledger.reserve("2", "job", [Charge(1.0, 1.0, 20, "training")])


@pytest.mark.parametrize("column", ["", "id"])
@pytest.mark.parametrize("act", [*OTHER, "one patient withdrawn", "the same again"])
def test_everyday_act__on_the_same_patients__is_the_same_lifetime(
    ledger: Ledger, tmp_path: Path, act: str, column: str
) -> None:
    listed(ledger, "1", table(tmp_path), A, column)
    spend(ledger, "1")
    path = table(tmp_path, without=1 if act == "one patient withdrawn" else 0)
    listed(ledger, "2", path, OTHER.get(act, A), column)
    assert ledger.epsilon_spent("2") == ledger.epsilon_spent("1") > 1.5
    with pytest.raises(BudgetExceeded):
        ledger.reserve("2", "another", [Charge(1.8, 1.0, 1, "training")])


@pytest.mark.parametrize("records_first", [False, True])
def test_one_file_listed_both_ways__a_record_job_costs_a_patient_all_their_records(
    ledger: Ledger, tmp_path: Path, records_first: bool
) -> None:
    path = table(tmp_path, patients=6, each=10)
    ways = [("records", ""), ("patients", "id")]
    for name, column in ways if records_first else ways[::-1]:
        listed(ledger, name, path, A, column)
    small = [Charge(40.0, 1.0, 1, "training")]
    ledger.reserve("records", "job", small)
    ledger.begin_round("job", 1, b"h", small)
    order = ledger.budget("patients").order
    worst = lifetime_epsilon([Charge(4.0, 1.0, 1, "t")], 1e-5, order)
    assert ledger.epsilon_spent("patients") == ledger.epsilon_spent("records") == worst
    assert worst > epsilon([Charge(4.0, 1.0, 1, "t")], 1e-5), "sensitivity 10, as it truly is"
    with pytest.raises(BudgetExceeded):
        ledger.reserve("records", "face value", [Charge(15.0, 1.0, 1, "training")])
