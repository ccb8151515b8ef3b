"""Schemas and manifests: public documents, refused in words, with hashes that do not move."""

import pytest

from fl_client.data.manifests import Manifest, check_cohort
from fl_client.data.schemas import Feature, Schema, Target
from fl_client.errors import DatasetError

SCHEMA = Schema((Feature("age", 50, 10), Feature("pain", 0.25, 0.5, (1, 2, 3))), Target("ill", 0))


def test_check_cohort__under_the_floor__refused() -> None:
    check_cohort(10, 10)
    with pytest.raises(DatasetError, match="persons=9 is under the floor of 10"):
        check_cohort(9, 10)
    with pytest.raises(DatasetError, match="floor of 10"):
        check_cohort(9, 1)  # an owner cannot lower the platform's floor


@pytest.mark.parametrize(
    "broken", [{}, {"features": [], "target": {"name": "x", "positive_above": 0}}, None, []]
)
def test_schema__broken__refused(broken: object) -> None:
    with pytest.raises(DatasetError):
        Schema.from_dict(broken)


def test_manifest__round_trip__keeps_its_hash() -> None:
    manifest = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA)
    again = Manifest.from_dict(manifest.as_dict())
    assert again == manifest and again.hash == manifest.hash


def test_manifest__minimum_under_the_platforms_floor__refused() -> None:
    manifest = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict() | {
        "minimum_persons": 5
    }
    with pytest.raises(DatasetError, match="minimum_persons=5"):
        Manifest.from_dict(manifest)


def test_manifest__published_before_there_was_a_constant__keeps_its_hash() -> None:
    old = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict()
    del old["records_per_patient"]
    old = old | {"version": 1, "unit": "patient"}
    again = Manifest.from_dict(old)
    assert (again.records_per_patient, again.as_dict()) == (4, old)
    assert Manifest.from_dict(old | {"unit": "record"}).records_per_patient == 1


@pytest.mark.parametrize(
    ("unit", "records", "said"),
    [
        ("patient", 0, "from 1 to 64 where the unit is a patient"),
        ("patient", 65, "from 1 to 64 where the unit is a patient"),
        ("record", 2, "from 1 to 1 where the unit is a record"),
        ("patient", True, "records_per_patient=True"),
        ("patient", "4", "records_per_patient='4'"),
    ],
)
def test_manifest__records_per_patient_out_of_range__refused(
    unit: str, records: object, said: str
) -> None:
    given = Manifest("H", "N", "D", 100, 10, 8.0, 1e-5, SCHEMA).as_dict()
    with pytest.raises(DatasetError, match=said):
        Manifest.from_dict(given | {"unit": unit, "records_per_patient": records})
