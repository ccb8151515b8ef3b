"""node.toml: everything that is wrong, at once, in words."""

from pathlib import Path

import pytest

from fl_client.errors import ConfigError
from fl_client.node import config, entries

NETWORK = {
    "chain_id": 31337,
    "registry": "0x" + "1" * 40,
    "market": "0x" + "2" * 40,
    "payment_token": "0x" + "3" * 40,
    "superlink": "127.0.0.1:1",
    "ca_certificate": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "node"
    config.create(made, name="Clinic", hub="http://h", chain="http://c", network=NETWORK)
    return made


def test_read__misspelt_key__is_named_with_the_nearest_right_one(folder: Path) -> None:
    toml = folder / "node.toml"
    toml.write_text(
        toml.read_text()
        .replace("engine =", "enigne =")
        .replace("minimum_persons", "minimum_person")
        .replace("arbiters", "arbitres")
    )
    with pytest.raises(ConfigError) as refused:
        config.read(folder)
    said = str(refused.value)
    assert "enigne is unknown, the nearest known one is engine" in said
    for wrong, right in (("minimum_person", "minimum_persons"), ("arbitres", "arbiters")):
        assert f"policy.{wrong} is unknown, the nearest known one is policy.{right}" in said


def test_read__dataset_whose_column_does_not_go_with_its_unit__is_left_out_in_words(
    folder: Path,
) -> None:
    from fl_client.data.features import Feature
    from fl_client.data.manifests import Manifest
    from fl_client.data.schemas import Schema
    from fl_client.data.sources import plain
    from fl_client.data.targets import Target

    schema = Schema((Feature("a", 0, 1),), Target("y", 0))
    manifest = Manifest("Clinic", "T", "", 40, 10, 3.0, 1e-5, schema)
    entries.write(folder, entries.DatasetEntry(1, plain(folder / "t.csv", "who"), manifest))
    found = config.read(folder)
    assert found.datasets == ()
    assert (
        "that tell patients apart, who, do not go with the published unit 'record'"
        in found.unusable["1.json"]
    )
