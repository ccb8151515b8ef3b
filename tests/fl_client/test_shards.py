"""Pictures on disk: what is written comes back by every way of asking, whole or not at all."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datatokens.terms import canonical_json
from fl_client.data import shards as module
from fl_client.data.pictures import PictureRules
from fl_client.data.shards import Shards, write_shards
from fl_client.errors import DatasetError
from fl_client.privacy.training import by_patient

RULES = PictureRules(3, (4, 5))
XRAYS = Path(__file__).parents[3] / "shared/data/pneumoniamnist/pneumoniamnist_dev.npz"


def made_up(count: int, rules: PictureRules = RULES) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *rules.shape), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures in each shard."""
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * 60 + 59)


def scaled(pictures: np.ndarray) -> np.ndarray:
    return (pictures / 255 - 0.5) / 0.5


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_write_shards__any_number__comes_back(tmp_path: Path, count: int) -> None:
    pictures = made_up(count)
    written = write_shards(tmp_path / "shards", iter(pictures), RULES)
    read = Shards(tmp_path / "shards")
    for shards in (written, read):
        assert shards.shape == (count, 3, 4, 5) and len(shards) == count and shards.ndim == 4
        assert shards.dtype == np.float32 == shards[:].dtype and shards.rules == RULES
        assert np.abs(shards[:] - scaled(pictures)).max() < 1e-7
        shards.check()
    mapped = [np.load(path, mmap_mode="r") for path in sorted((tmp_path / "shards").glob("*.npy"))]
    assert all(len(part) <= 4 for part in mapped) and len(mapped) == -(-count // 4)
    assert (np.concatenate(mapped) == pictures).all()


def test_scale__black_and_white__are_exactly_minus_one_and_one(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    read = write_shards(tmp_path / "shards", levels, PictureRules(1, (1, 1)))[:].ravel()
    assert read[0] == -1 and read[255] == 1 and (np.diff(read) > 0).all()


@pytest.mark.usefixtures("small")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_rows__by_every_way_of_asking__as_of_an_array(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "shards").exists():
        write_shards(tmp_path / "shards", made_up(11), RULES)
    shards = Shards(tmp_path / "shards")
    array = shards[:]
    number, edge = st.integers(-11, 10), st.none() | st.integers(-15, 15)
    rows: Any = data.draw(
        st.one_of(
            number,
            st.lists(number),
            st.lists(number, max_size=20).map(lambda x: np.array(x, np.int64)),
            st.lists(st.integers(0, 10), min_size=1).map(lambda x: np.array(x, np.uint8)),
            st.lists(number, min_size=6, max_size=6).map(lambda x: np.reshape(x, (2, 3))),
            st.lists(st.booleans(), min_size=11, max_size=11).map(np.array),
            st.builds(slice, edge, edge, st.sampled_from([None, 1, 2, -1, -3])),
        )
    )
    expected = array[np.array(rows, np.int64) if isinstance(rows, list) else rows]
    assert shards[rows].shape == expected.shape and (shards[rows] == expected).all()


@pytest.mark.parametrize(
    "rows", [11, -12, [0, 11], 1.0, [0.5], "1", None, (1, 2, "a"), np.ones(10, bool), np.True_]
)
def test_rows__that_are_none__are_an_index_error(tmp_path: Path, rows: Any) -> None:
    shards = write_shards(tmp_path / "shards", made_up(11), RULES)
    with pytest.raises((IndexError, ValueError)):
        shards[rows]


def test_shards__in_place_of_a_feature_matrix__give_the_same_patients(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", made_up(11), RULES)
    patients = np.array([0, 1, 0, 2, 2, 2, 3, 1, 0, 4, 4])
    targets = np.arange(11, dtype=np.float32)
    ours = by_patient(shards, targets, patients, 2)
    theirs = by_patient(shards[:], targets, patients, 2)
    everybody = torch.arange(6)  # five, and nobody
    for a, b in zip(ours.seated(everybody), theirs.seated(everybody), strict=True):
        assert torch.equal(a, b)


def test_sha256__is_of_rules_and_pixels__whatever_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = made_up(11)
    one = write_shards(tmp_path / "one", pictures, RULES)
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    many = write_shards(tmp_path / "many", pictures, RULES)
    content = canonical_json(RULES.as_dict()) + b"\n" + pictures.tobytes()
    assert one.sha256 == many.sha256 == hashlib.sha256(content).hexdigest()
    assert len(list((tmp_path / "many").glob("*.npy"))) == 11
    other = write_shards(tmp_path / "other", pictures, PictureRules(3, (4, 5), (-0.5, 4e2), "pad"))
    fewer = write_shards(tmp_path / "fewer", pictures[:-1], RULES)
    assert len({one.sha256, other.sha256, fewer.sha256}) == 3


def test_write_shards__is_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_shards(tmp_path / "new" / "shards", made_up(2), RULES)
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "shards"
    assert (
        stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "pictures-00000.npy"]


def test_write_shards__source_fails__leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from made_up(5)
        raise RuntimeError("the owner pressed a key")

    with pytest.raises(RuntimeError, match="pressed"):
        write_shards(tmp_path / "shards", failing(), RULES)
    assert not list(tmp_path.iterdir())


def test_write_shards__was_killed_before__what_it_left_is_taken_away(tmp_path: Path) -> None:
    left = [tmp_path / f".shards.{number}" for number in (os.getpid(), 99_999_999)]
    kept = [tmp_path / ".shards.1", tmp_path / ".shards.mine", tmp_path / ".other.99999999"]
    for folder in [*left, *kept]:
        folder.mkdir()
        (folder / "pictures-00000.npy").write_bytes(b"pixels")
    write_shards(tmp_path / "shards", made_up(2), RULES)
    assert not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in kept)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([], "at least one"),
        ([np.zeros((3, 4, 5), np.float32)], r"picture 0 is float32 \[3, 4, 5\]"),
        ([np.zeros((3, 4, 5), np.uint8), np.zeros((3, 5, 4), np.uint8)], "picture 1 is uint8"),
    ],
)
def test_write_shards__other_pictures__are_refused_and_leave_nothing(
    tmp_path: Path, pictures: list[np.ndarray], said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        write_shards(tmp_path / "shards", pictures, RULES)
    assert not list(tmp_path.iterdir())


def test_write_shards__folder_is_there__is_refused_and_kept(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "shards", made_up(5), RULES)
    with pytest.raises(DatasetError, match="is there already"):
        write_shards(tmp_path / "shards", made_up(6), RULES)
    first.check()
    assert len(Shards(tmp_path / "shards")) == 5


def test_write_shards__nowhere_to_write__is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_shards(tmp_path / "file" / "shards", made_up(1), RULES)


@pytest.mark.usefixtures("small")
def test_shards__damaged__are_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    written = write_shards(folder, made_up(11), RULES)
    second = folder / "pictures-00001.npy"
    whole = second.read_bytes()

    second.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: has 495 bytes of 496"):
        Shards(folder)
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: is shorter than it was"):
        written[:]
    assert written[:4].shape == (4, 3, 4, 5)

    second.write_bytes(whole.replace(b"(4, 3, 4, 5)", b"(4, 3, 5, 4)"))
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: is not the shard of 4 pictures"):
        Shards(folder)

    second.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: its pixels are not those"):
        Shards(folder).check()

    second.unlink()
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: cannot be read: No such file"):
        Shards(folder)
    with pytest.raises(DatasetError, match=r"pictures-00001.npy: cannot be read: No such file"):
        written[:]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index | {"version": 2},
        lambda index: index | {"shards": []},
        lambda index: index | {"shards": [{"pictures": -1, "sha256": "0" * 64}]},
        lambda index: index | {"shards": 7},
        lambda index: index | {"sha256": "x"},
        lambda index: index | {"rules": {}},
        lambda index: [index],
        lambda index: {},
    ],
)
def test_index__damaged__is_said(tmp_path: Path, change: Any) -> None:
    write_shards(tmp_path / "shards", made_up(2), RULES)
    path = tmp_path / "shards" / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DatasetError, match=r"index.json: is no index of pictures"):
        Shards(tmp_path / "shards")


def test_index__of_other_pixels__is_found_by_check(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", made_up(2), RULES)
    path = tmp_path / "shards" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(DatasetError, match="its sha256 is not that of the pictures"):
        Shards(tmp_path / "shards").check()


def test_index__none__is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"index.json: cannot be read"):
        Shards(tmp_path / "shards")
    (tmp_path / "index.json").write_bytes(b"\xff{")
    with pytest.raises(DatasetError, match=r"index.json: is no index"):
        Shards(tmp_path)


@pytest.mark.skipif(not XRAYS.exists(), reason="chest X-rays are not here (../shared/data)")
def test_chest_xrays__come_back(tmp_path: Path) -> None:
    xrays = np.load(XRAYS)["train_images"][:, None]
    shards = write_shards(tmp_path / "shards", xrays, PictureRules(1, (28, 28)))
    rows = np.random.default_rng(0).permutation(len(xrays))[:256]
    assert np.abs(shards[rows] - scaled(xrays[rows])).max() < 1e-7
