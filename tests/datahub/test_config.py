"""hub.toml: everything that is wrong is said at once."""

from pathlib import Path

import pytest

from datahub import config
from datahub.errors import ConfigError

GOOD = {
    "chain": "http://127.0.0.1:8545",
    "chain_id": 31337,
    "registry": "0x" + "1" * 40,
    "market": "0x" + "2" * 40,
    "payment_token": "0x" + "3" * 40,
    "superlink": "127.0.0.1:9092",
    "superlink_folder": "somewhere",
    "database": "sqlite://",
    "fee_bps": 250,
}


def test_write__good_values__read_back(tmp_path: Path) -> None:
    assert config.write(tmp_path, **GOOD).fee_bps == 250


def test_read__several_mistakes__all_in_one_sentence(tmp_path: Path) -> None:
    wrong = GOOD | {"fee_bps": 9000, "market": "0x12", "surprise": 1}
    del wrong["chain"]
    with pytest.raises(ConfigError) as refused:
        config.write(tmp_path, **wrong)
    for part in ("fee_bps=9000", "market='0x12'", "surprise is unknown", "chain is missing"):
        assert part in str(refused.value)


def test_read__no_file__says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="datahub hub init"):
        config.read(tmp_path)
