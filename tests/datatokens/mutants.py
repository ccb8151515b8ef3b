"""Mutation test of the contracts: take away each check and each write in turn, and see that a test
notices.

    python -m tests.datatokens.mutants [--only JobEscrow.sol] [--list] [--json FILE]

Compiling takes minutes and running the tests seconds, so all mutants are compiled at once: every
place is put behind a switch, `block.coinbase != address(k)`, and forge is then run once per mutant
with another coinbase (Untch, Offutt and Harrold 1993, mutant schemata). What is mutated: every `if
(...) revert`, every modifier that checks who calls, every call of a private check, and every write
to storage or payment that stands on a line of its own. Exit status 1 if one survives that is not in
EQUIVALENT, each with the reason why no test can tell it from the original.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).parents[2]
BANK = ROOT / "datatokens"
NOTHING = 0xFFFF  # a coinbase that switches no mutant on
FIRST = 0x1000
# code size is not what is tested here, and the switches are many bytes
LEFT_OUT = "test_market__constants__areWhatThePageSays"
PROFILE = """
[profile.mutants]
via_ir = true
optimizer_runs = 1

[profile.mutants.fuzz]
runs = 64

[profile.mutants.invariant]
runs = 12
depth = 64
"""
# names of storage, and of functions that move money or count; each write or call on a line of its
# own is a mutant
WRITES = re.compile(
    r"^(?P<indent> +)(?P<line>(?:delete |\+\+)?"
    r"(?:_records|_services|_roles|_chosenMarket|_budgets|_knownToken|allowedToken|listing|storefront"
    r"|record\.|service\.|budget\.|_pools|_standings|credit\[|_lists|list\.|before\.|_disputers|withdrawn|taken\["
    r"|_jobs|_disputes|held\.|pausedUntil|_keys|_bindings|bound\.|old\.|_uris|_metadata|_offers|_ownership"
    r"|_dispensed|_limits|fees|_fees|orders|_orders|_expiry|dispensed|limits|publishFee|_publishFees"
    r"|_payBack|_credit\(|_creditPool|_settlePool|_returnVouchers|_count\w+\(|_noteBps|_drop|_shareBond|_pull|_goLive"
    r"|_check\w+\(|_only\w+\(|_known\w*\(|_burn|_store\()[^;{}]*;)$",
    re.MULTILINE,
)
MODIFIER = re.compile(
    r"^    modifier (?P<name>\w+)\((?P<params>[^)]*)\) \{\n(?P<body>(?:(?!\n    \}).)*?)\n        "
    r"_;\n    \}",
    re.MULTILINE | re.DOTALL,
)
STATEMENT = re.compile(
    r"delete |\+\+|_\w+\(|[^=;]*[^=!<>]=[^=]"
)  # and not a piece of an expression
GUARD = "ReentrancyGuardTransient.sol"

EQUIVALENT: dict[str, str] = {
    "without revert ClaimsExceedCredits": "the sum tree already keeps all claims of an epoch below "
    "its credits",
}


@dataclass(frozen=True)
class Mutant:
    """One place: its number, `File.sol:line what`, and the words that are taken away."""

    number: int
    name: str


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError("a bracket is not closed")


def _conditions(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end) of the condition inside `if (...)` of each `if (...) revert ...`, with the
    error's name.
    """
    for found in re.finditer(r"\bif \(", text):
        start = found.end() - 1
        end = _closing(text, start)
        after = re.match(r"\)\s*(?:\{\s*)?(?://[^\n]*\n\s*)?revert (?:\w+\.)?(\w+)", text[end:])
        if after:
            yield start + 1, end, after[1]


def mutate(name: str, text: str, first: int) -> tuple[str, list[Mutant]]:
    """The source with a switch at every place, and the mutants, numbered from `first`."""
    edits: list[tuple[int, int, str]] = []
    mutants: list[Mutant] = []

    def add(position: int, what: str) -> str:
        number = first + len(mutants)
        mutants.append(Mutant(number, f"{name}:{text.count(chr(10), 0, position) + 1} {what}"))
        return f"block.coinbase != address(uint160({number:#x}))"

    spans = [(m.start(), m.end()) for m in MODIFIER.finditer(text)]
    twins: list[str] = []
    for modifier in MODIFIER.finditer(text):
        params = modifier["params"]
        twin = f"{modifier['name']}Unless"
        both = "uint256 off" + (f", {params}" if params else "")
        twins.append(
            f"    modifier {twin}({both}) "
            f"{{\n        if (block.coinbase != address(uint160(off))) {{\n"
            f"{modifier['body']}\n        }}\n        _;\n    }}\n"
        )
        uses = re.finditer(
            rf"(?<=[ \n]){modifier['name']}(?:\((?P<args>[^)]*)\))?(?=[ \n]*(?:returns|\{{))", text
        )
        for use in uses:
            if any(a <= use.start() < b for a, b in spans):
                continue
            add(use.start(), f"without {modifier['name']}")
            args = f", {use['args']}" if use["args"] else ""
            edits.append((use.start(), use.end(), f"{twin}({mutants[-1].number:#x}{args})"))
    for start, end, error in _conditions(text):
        if any(a <= start < b for a, b in spans):
            continue
        switch = add(start, f"without revert {error}")
        edits.append((start, end, f"{switch} && ({text[start:end]})"))
    for write in WRITES.finditer(text):
        if not STATEMENT.match(write["line"]):
            continue
        switch = add(write.start("line"), f"without {' '.join(write['line'].split())}")
        edits.append(
            (write.start("line"), write.end("line"), f"if ({switch}) {{ {write['line']} }}")
        )
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    if twins:
        at = MODIFIER.search(text)
        assert at is not None
        text = text[: at.start()] + "\n".join(twins) + "\n" + text[at.start() :]
    return re.sub(r"\bpure\b", "view", text), mutants  # a switch looks at the block


def prepare(folder: Path, only: str | None) -> list[Mutant]:
    """A copy of what forge needs, with the switches in."""
    for part in ("contracts", "bin"):
        shutil.copytree(BANK / part, folder / "datatokens" / part)
    shutil.copytree(ROOT / "tests" / "datatokens", folder / "tests" / "datatokens")
    (folder / "datatokens" / "node_modules").symlink_to((BANK / "node_modules").resolve())
    (folder / "datatokens" / "foundry.toml").write_text(
        (BANK / "foundry.toml").read_text() + PROFILE
    )
    # the library's reentrancy guard counts as one of our checks: a copy of it can be switched off
    library = BANK / "node_modules" / "@openzeppelin" / "contracts" / "utils"
    guard = (library / GUARD).read_text().replace('"./', '"@openzeppelin/contracts/utils/')
    (folder / "datatokens" / "contracts" / GUARD).write_text(guard)
    for path in (folder / "datatokens" / "contracts").glob("*.sol"):
        path.write_text(
            path.read_text().replace(f"@openzeppelin/contracts/utils/{GUARD}", f"./{GUARD}")
        )
    mutants: list[Mutant] = []
    for path in sorted((folder / "datatokens" / "contracts").glob("*.sol")):
        if only in (None, path.name):
            source, more = mutate(path.name, path.read_text(), FIRST + len(mutants))
            path.write_text(source)
            mutants += more
    return mutants


def _forge(folder: Path, coinbase: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    (binary,) = (BANK / "node_modules" / "@foundry-rs").glob("forge-*/bin/forge")
    command = [
        str(binary),
        "test",
        "--fail-fast",
        "--block-coinbase",
        f"0x{coinbase:040x}",
        "--no-match-test",
        LEFT_OUT,
        *arguments,
    ]
    environment = os.environ | {"FOUNDRY_PROFILE": "mutants", "FOUNDRY_FUZZ_SEED": "0x1"}
    return subprocess.run(
        command, cwd=folder / "datatokens", env=environment, capture_output=True, text=True
    )


def killer(folder: Path, mutant: Mutant) -> str | None:
    """The first test that fails under this mutant; None if all pass. Invariants, which take
    longest, come last.
    """
    for stateful in ("--no-match-contract", "--match-contract"):
        done = _forge(folder, mutant.number, stateful, "Invariant")
        if done.returncode:
            said = done.stdout + done.stderr
            failed = re.search(r"\[FAIL.*?\] (\w+)\(", said) or re.search(
                r'"invariant":"(\w+)"', said
            )
            if failed is None:
                raise RuntimeError(f"forge failed without a failing test: {said[-1000:]}")
            return failed[1]
    return None


def main() -> None:
    """Run every mutant; print who killed it, and who lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one file of contracts/")
    parser.add_argument("--list", action="store_true", help="name the mutants, run nothing")
    parser.add_argument("--json", type=Path, help="file to write {mutant: killing test or null} to")
    given = parser.parse_args()
    console, started = Console(width=160), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mutants = prepare(folder, given.only)
        if given.list:
            console.print(
                "\n".join(f"{m.number:#x} {m.name}" for m in mutants), highlight=False, markup=False
            )
            return
        console.print(f"{len(mutants)} mutants; compiling them together takes some minutes")
        whole = _forge(folder, NOTHING)
        if whole.returncode:
            sys.exit(
                "the tests fail with no mutant switched "
                f"on:\n{whole.stdout[-3000:]}\n{whole.stderr[-3000:]}"
            )
        console.print(
            "compiled, and the tests pass with none switched on, after "
            f"{time.monotonic() - started:.0f} s"
        )
        killed: dict[str, str | None] = {}
        with ThreadPoolExecutor(2) as pool, Progress(console=console) as progress:
            task = progress.add_task("mutants", total=len(mutants))
            for mutant, test in zip(
                mutants, pool.map(lambda m: killer(folder, m), mutants), strict=True
            ):
                killed[mutant.name] = test
                progress.advance(task)
                console.print(
                    f"{test or 'SURVIVES':<90} {mutant.name}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    if given.json:
        given.json.write_text(json.dumps(killed, indent=2) + "\n")
    alive = [
        m
        for m, test in killed.items()
        if test is None and not any(m.endswith(e) for e in EQUIVALENT)
    ]
    console.print(
        f"{len(killed) - len(alive)} of {len(killed)} killed or equivalent, "
        f"{time.monotonic() - started:.0f} s"
    )
    if alive:
        sys.exit(f"{len(alive)} mutants survive: " + "; ".join(alive))


if __name__ == "__main__":
    main()
