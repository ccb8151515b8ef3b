"""Compile the contracts with npm's solc-js into committed artifacts, or check that the committed
ones match.

    python -m datatokens.build           writes datatokens/artifacts/*.json
    python -m datatokens.build --check   exits 1 if a committed artifact differs from a fresh
    compilation,
                                         2 if the compiler is not installed

Needs Node and `npm ci` in datatokens/ (make tools); users of the product need neither. Metadata is
switched off, so the bytecode does not depend on paths or machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOM = Path(__file__).parent
ARTIFACTS = ROOM / "artifacts"
CONTRACTS = {
    "DatasetRegistry": "contracts/DatasetRegistry.sol",
    "Datatoken": "contracts/Datatoken.sol",
    "Market": "contracts/Market.sol",
    "NodeRegistry": "contracts/NodeRegistry.sol",
    "Storefront": "contracts/Storefront.sol",
    "TestUSD": "contracts/dev/TestUSD.sol",
}
SETTINGS: dict[str, Any] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 200},
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
    "viaIR": True,
}
MAX_CODE_BYTES = 24_576  # EIP-170


def _sources() -> dict[str, dict[str, str]]:
    """Every .sol file of ours and of OpenZeppelin that they import, keyed as solc names them."""
    found: dict[str, dict[str, str]] = {}
    waiting = [
        (path.relative_to(ROOM).as_posix(), path)
        for path in sorted((ROOM / "contracts").rglob("*.sol"))
    ]
    while waiting:
        name, path = waiting.pop()
        if name in found:
            continue
        if not path.exists():
            raise RuntimeError(f"{name} is imported but not there; run: make tools")
        text = path.read_text()
        found[name] = {"content": text}
        for line in text.splitlines():
            if not (line.startswith("import") or line.startswith("} from ")) or '"' not in line:
                continue
            target = line.split('"')[1]
            if target.startswith("@"):
                waiting.append((target, ROOM / "node_modules" / target))
            else:
                resolved = (path.parent / target).resolve()
                base = ROOM / "node_modules" if name.startswith("@") else ROOM
                waiting.append((resolved.relative_to(base.resolve()).as_posix(), resolved))
    return dict(sorted(found.items()))


def source_hash() -> str:
    """SHA-256 over every .sol file of ours (name and text), hexadecimal; needs no compiler."""
    texts = {
        p.relative_to(ROOM).as_posix(): p.read_text()
        for p in sorted((ROOM / "contracts").rglob("*.sol"))
    }
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def compile_all() -> dict[str, dict[str, Any]]:
    """Contract name -> artifact. Raises RuntimeError with the compiler's own words."""
    sources = _sources()
    outputs = [
        "abi",
        "evm.bytecode.object",
        "evm.deployedBytecode.object",
        "evm.deployedBytecode.immutableReferences",
    ]
    request = {
        "language": "Solidity",
        "sources": sources,
        "settings": {**SETTINGS, "outputSelection": {"*": {"*": outputs}}},
    }
    command = ["node", "bin/solc", "--standard-json"]
    run = subprocess.run(
        command, cwd=ROOM, input=json.dumps(request).encode(), capture_output=True, check=False
    )
    if run.returncode != 0:
        raise RuntimeError(
            f"the compiler ended with {run.returncode}: "
            f"{run.stderr.decode(errors='replace').strip()}"
        )
    answer = json.loads(run.stdout[run.stdout.index(b"{") :])
    if errors := [
        e["formattedMessage"] for e in answer.get("errors", []) if e["severity"] == "error"
    ]:
        raise RuntimeError("\n".join(errors))
    version = json.loads((ROOM / "node_modules" / "solc" / "package.json").read_text())["version"]
    sources_now = source_hash()
    artifacts = {}
    for contract, source in CONTRACTS.items():
        output = answer["contracts"][source][contract]
        deployed = output["evm"]["deployedBytecode"]
        size = len(deployed["object"]) // 2
        if size > MAX_CODE_BYTES:
            raise RuntimeError(f"{contract} has {size} bytes of code; {MAX_CODE_BYTES} are allowed")
        places = [p for group in deployed.get("immutableReferences", {}).values() for p in group]
        artifacts[contract] = {
            "contract": contract,
            "solc": version,
            "settings": SETTINGS,
            "sourceHash": sources_now,
            "abi": output["abi"],
            "bytecode": "0x" + output["evm"]["bytecode"]["object"],
            "deployedBytecode": "0x" + deployed["object"],
            "immutableReferences": sorted(places, key=lambda p: p["start"]),
        }
    return artifacts


def _text(artifact: dict[str, Any]) -> str:
    return json.dumps(artifact, indent=1) + "\n"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Compile the contracts")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed artifacts, write nothing"
    )
    check = parser.parse_args().check
    if shutil.which("node") is None:
        parser.exit(2, "the contracts cannot be compiled: Node is not installed\n")
    if not (ROOM / "node_modules" / "solc").is_dir():
        parser.exit(
            2,
            "the contracts cannot be compiled: the Solidity compiler is not installed; run: make "
            "tools\n",
        )
    try:
        artifacts = compile_all()
    except RuntimeError as error:
        parser.exit(1, f"the contracts do not compile: {error}\n")
    different = []
    for name, artifact in artifacts.items():
        path = ARTIFACTS / f"{name}.json"
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(_text(artifact))
        elif not path.exists() or path.read_text() != _text(artifact):
            different.append(name)
        sys.stdout.write(f"{name}: {(len(artifact['deployedBytecode']) - 2) // 2} bytes of code\n")
    if different:
        names = ", ".join(different)
        parser.exit(
            1, f"committed artifacts differ from the sources: {names}; run: make contracts\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
