"""Once, an answer to a job told who is in the table: whether anybody has two records, whether the
true count is at a floor.
"""

from pathlib import Path

import pytest

from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.sources import plain
from fl_client.data.tables import load
from fl_client.data.targets import Target
from fl_client.node.admission import admit
from fl_client.protocol import Signed
from tests.clinic import GRAPH, WEIGHTS, Clinic, refusal

SCHEMA = Schema((Feature("a", 0, 1), Feature("b", 0, 1)), Target("y", 0))


@pytest.mark.parametrize("there", [False, True])
def test_load__one_patient_with_a_second_record__does_not_choose_the_path(
    tmp_path: Path, there: bool
) -> None:
    rows = [f"p{i},{i * 0.1},{(i * 7 % 13) * 0.1},{i % 2}" for i in range(60)]
    rows += ["victim,1,1,1", "victim,2,1,0"] if there else []
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["id,a,b,y", *rows]) + "\n")
    assert load(plain(table, "id"), SCHEMA).patients is not None


@pytest.mark.parametrize("patients", [39, 40])
def test_admit__floor_raised_to_the_true_count__answers_by_the_released_one(
    clinic: Clinic, patients: int
) -> None:
    """40 were released; whether 39 or 40 are there must not decide."""
    clinic.rewrite_table(patients)
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace("minimum_persons = 10", "minimum_persons = 40"))
    terms = clinic.paid()
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)
    toml.write_text(toml.read_text().replace("minimum_persons = 40", "minimum_persons = 41"))
    assert "under this hospital's floor of 41" in refusal(clinic, clinic.paid())
