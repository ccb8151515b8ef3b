"""The committed artifacts: whole, of these sources, and (where Node is) exactly what the compiler
makes of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eth_utils.crypto import keccak

from datatokens import build

ROOM = Path(build.__file__).parent
NAMES = sorted(build.CONTRACTS)


def artifact(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ROOM / "artifacts" / f"{name}.json").read_text())
    return value


def errors_of_interface(name: str) -> set[str]:
    return set(
        re.findall(
            r"^\s*error (\w+)\(", (ROOM / "contracts/interfaces" / f"{name}.sol").read_text(), re.M
        )
    )


def errors_in_abi(name: str) -> set[str]:
    return {item["name"] for item in artifact(name)["abi"] if item["type"] == "error"}


@pytest.mark.parametrize("name", NAMES)
def test_artifact__each_contract__is_whole_and_deployable(name: str) -> None:
    item = artifact(name)
    assert set(item) == {
        "contract",
        "solc",
        "settings",
        "sourceHash",
        "abi",
        "bytecode",
        "deployedBytecode",
        "immutableReferences",
    }
    assert item["contract"] == name
    assert item["settings"] == build.SETTINGS
    code = bytes.fromhex(item["deployedBytecode"].removeprefix("0x"))
    assert 0 < len(code) <= build.MAX_CODE_BYTES
    assert len(item["bytecode"]) > len(item["deployedBytecode"])
    for place in item[
        "immutableReferences"
    ]:  # the compiler leaves zeros where the constructor will write
        assert code[place["start"] : place["start"] + place["length"]] == bytes(place["length"])


@pytest.mark.parametrize("name", NAMES)
def test_artifact__source_hash__is_of_the_sources_beside_it(name: str) -> None:
    assert artifact(name)["sourceHash"] == build.source_hash(), (
        "the contracts changed: run make contracts"
    )


def test_artifacts__folder__holds_nothing_else() -> None:
    assert sorted(path.stem for path in (ROOM / "artifacts").iterdir()) == NAMES


def test_abi__every_error_of_the_interfaces__can_be_decoded() -> None:
    escrow, pools, registry = (
        errors_of_interface(n) for n in ("IJobEscrow", "IRevenuePools", "IDatasetRegistry")
    )
    assert len(escrow) > 15
    assert len(pools) > 3
    assert len(registry) > 5
    assert escrow | pools <= errors_in_abi("Market")
    assert registry <= errors_in_abi("DatasetRegistry")


@pytest.mark.parametrize(
    "words",
    [
        "Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint64 worked,bytes32 "
        "outcomesHash)",
        "Rejection(bytes32 jobId,bytes32 reasonHash)",
        "ClaimTo(address account,address to,uint256 nonce,uint256 deadline,Share[] shares)"
        "Share(uint256 datasetId,uint64 epoch,uint64 weight)",
        "Share(uint256 datasetId,uint64 epoch,uint64 weight)",
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
    ],
)
def test_market__typed_words__are_in_its_code(words: str) -> None:
    assert keccak(text=words).hex() in artifact("Market")["deployedBytecode"]


@pytest.mark.parametrize(
    "words",
    [
        "NodeKeyConsent(uint256 hospitalId,address owner)",
        "SuperNode(bytes publicKey,uint256 serial)",
    ],
)
def test_node_registry__typed_words__are_in_its_code(words: str) -> None:
    assert keccak(text=words).hex() in artifact("NodeRegistry")["deployedBytecode"]


def test_package_lock__every_package__is_pinned_by_content_and_names_no_host() -> None:
    lock = json.loads((ROOM / "package-lock.json").read_text())
    package = json.loads((ROOM / "package.json").read_text())
    pins = package["dependencies"] | package["optionalDependencies"]
    assert (
        lock["packages"][""]["dependencies"] | lock["packages"][""]["optionalDependencies"] == pins
    )
    for name, version in pins.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    for path, entry in lock["packages"].items():
        if path:
            assert entry["integrity"].startswith("sha512-"), path
            assert "resolved" not in entry, path


def test_build__without_node__says_so(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "datatokens.build", "--check"],
        cwd=ROOM.parent,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr == "the contracts cannot be compiled: Node is not installed\n"


@pytest.mark.forge
def test_build_check__fresh_compilation__is_the_committed_bytes_and_one_changed_byte_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("node") is None or not (ROOM / "node_modules" / "solc").is_dir():
        pytest.skip("Node or npm's solc is not installed (make tools)")
    monkeypatch.setattr(sys, "argv", ["build", "--check"])
    fresh = build.compile_all()
    monkeypatch.setattr(build, "compile_all", lambda: fresh)
    assert build.main() == 0
    shutil.copytree(build.ARTIFACTS, tmp_path / "artifacts")
    monkeypatch.setattr(build, "ARTIFACTS", tmp_path / "artifacts")
    changed = tmp_path / "artifacts" / "Market.json"
    text = changed.read_text()
    changed.write_text(text.replace('"bytecode": "0x', '"bytecode": "0xfe'))
    assert changed.read_text() != text
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 1
    assert (
        capsys.readouterr().err
        == "committed artifacts differ from the sources: Market; run: make contracts\n"
    )
    monkeypatch.setattr(sys, "argv", ["build"])
    assert build.main() == 0
    assert changed.read_text() == text
