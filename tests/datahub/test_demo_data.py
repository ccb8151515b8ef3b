"""The demo's tables: honest splits, checked files, clear words where data is absent."""

from pathlib import Path

import pytest

from datahub.demo import data as demo_data
from datahub.errors import BadRequest
from fl_client.data.sources import plain
from fl_client.data.tables import load

HEART = Path(__file__).parents[3] / "shared" / "data" / "heart-disease"


def test_breast_cancer__four_sites_and_a_test_part__hold_every_patient_once(tmp_path: Path) -> None:
    data = demo_data.prepare("breast-cancer", None, tmp_path)
    sizes = [load(plain(site.table), data.schema).persons for site in data.sites]
    assert sum(sizes) + load(plain(data.test), data.schema).persons == 569
    assert len({load(plain(site.table), data.schema).patient_set for site in data.sites}) == 4


@pytest.mark.skipif(not HEART.exists(), reason="the heart disease files are not on this machine")
def test_heart__four_hospitals__are_flambys_split(tmp_path: Path) -> None:
    data = demo_data.prepare("heart-disease", HEART, tmp_path)
    sizes = [load(plain(site.table), data.schema).persons for site in data.sites]
    assert sizes == [199, 172, 30, 85]
    assert load(plain(data.test), data.schema).persons == 254
    assert data.schema.width == 13


def test_heart__folder_without_files__says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="DATA_DIR="):
        demo_data.prepare("heart-disease", tmp_path, tmp_path / "out")


def test_heart__changed_file__refused(tmp_path: Path) -> None:
    for key in demo_data.HEART_SHA256:
        (tmp_path / f"processed.{key}.data").write_text("1,2,3\n")
    with pytest.raises(BadRequest, match=r"processed.cleveland.data is not the published file"):
        demo_data.prepare("heart-disease", tmp_path, tmp_path / "out")


def test_prepare__unknown_name__lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="DATA=iris must be one of breast-cancer, heart-disease"):
        demo_data.prepare("iris", None, tmp_path)
