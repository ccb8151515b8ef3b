"""The Flower bundle carries metadata only, is the same everywhere, and Flower is the version we
know.
"""

import io
import zipfile
from importlib.metadata import version

from fl_client.node.bundle import build_bundle, bundle_hash


def test_bundle__contents__are_metadata_only() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]
        assert b"import" not in archive.read("README.md")
    assert len(build_bundle()) < 2000


def test_bundle__built_twice__is_the_same() -> None:
    build_bundle.cache_clear()
    first = bundle_hash()
    build_bundle.cache_clear()
    assert bundle_hash() == first


def test_flower__version__is_the_one_whose_private_parts_we_use() -> None:
    assert version("flwr") == "1.41.0"
