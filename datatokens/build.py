"""Compile the contracts with npm's solc-js into committed artifacts, or check that the committed ones match.

    python -m datatokens.build           writes datatokens/artifacts/*.json
    python -m datatokens.build --check   exits 1 if a committed artifact differs from a fresh compilation

Needs Node and `npm ci` in datatokens/ (make tools); users of the product need neither. Metadata is switched off, so
the bytecode does not depend on paths or machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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
    "TestUSD": "contracts/dev/TestUSD.sol",
}
SETTINGS: dict[str, Any] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 10_000},
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
    "viaIR": False,
}
MAX_CODE_BYTES = 24_576  # EIP-170


def _sources() -> dict[str, dict[str, str]]:
    """Every .sol file of ours and of OpenZeppelin that they import, keyed as solc names them."""
    found: dict[str, dict[str, str]] = {}
    waiting = [(path.relative_to(ROOM).as_posix(), path) for path in sorted((ROOM / "contracts").rglob("*.sol"))]
    while waiting:
        name, path = waiting.pop()
        if name in found:
            continue
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


def compile_all() -> dict[str, dict[str, Any]]:
    """Contract name -> artifact. Raises RuntimeError with the compiler's own words."""
    sources = _sources()
    outputs = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"]
    request = {
        "language": "Solidity",
        "sources": sources,
        "settings": {**SETTINGS, "outputSelection": {"*": {"*": outputs}}},
    }
    run = subprocess.run(
        ["node", "bin/solc", "--standard-json"],
        cwd=ROOM,
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    answer = json.loads(run.stdout[run.stdout.index(b"{") :])
    if errors := [e["formattedMessage"] for e in answer.get("errors", []) if e["severity"] == "error"]:
        raise RuntimeError("\n".join(errors))
    version = json.loads((ROOM / "node_modules" / "solc" / "package.json").read_text())["version"]
    ours = {name: value for name, value in sources.items() if name.startswith("contracts/")}
    source_hash = hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
    artifacts = {}
    for contract, source in CONTRACTS.items():
        output = answer["contracts"][source][contract]
        deployed = output["evm"]["deployedBytecode"]
        if len(deployed["object"]) // 2 > MAX_CODE_BYTES:
            raise RuntimeError(f"{contract} has {len(deployed['object']) // 2} bytes of code; {MAX_CODE_BYTES} are allowed")
        places = [p for group in deployed.get("immutableReferences", {}).values() for p in group]
        artifacts[contract] = {
            "contract": contract,
            "solc": version,
            "settings": SETTINGS,
            "sourceHash": source_hash,
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
    parser.add_argument("--check", action="store_true", help="compare with the committed artifacts, write nothing")
    check = parser.parse_args().check
    if not (ROOM / "node_modules" / "solc").is_dir():
        print("the Solidity compiler is not installed; run: make tools", file=sys.stderr)
        return 2
    try:
        artifacts = compile_all()
    except (RuntimeError, subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"contracts do not compile: {error}", file=sys.stderr)
        return 1
    different = []
    for name, artifact in artifacts.items():
        path = ARTIFACTS / f"{name}.json"
        if check:
            if not path.exists() or path.read_text() != _text(artifact):
                different.append(name)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(_text(artifact))
        print(f"{name}: {(len(artifact['deployedBytecode']) - 2) // 2} bytes of code")
    if different:
        print(f"committed artifacts differ from the sources: {', '.join(different)}; run: make contracts", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
