"""What a hostile model file costs a node before it is refused: time and memory of every file in the
tests' corpus.

    python -m tests.benchmarks.hostile [--quick] [--json FILE]

Each file is loaded in a process of its own, with the node's libraries already there; memory is how
far that process's peak rises. Keys: files, refused (the part), seconds.max, megabytes.max, and the
same by name for the five slowest and the five largest. Beside them `honest.seconds` and
`honest.megabytes`: a file that is accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fl_client.errors import GraphRefused
from fl_client.model.graph import load_model
from tests.fl_client.test_graph import LINEAR, WEIGHTS, hostile_files, to_safetensors

HONEST = (json.dumps(LINEAR).encode(), to_safetensors(WEIGHTS))


def cost(graph: bytes, weights: bytes) -> tuple[bool, float, float]:
    """(refused, seconds, megabytes that the peak rose by) of loading in a child. A child that dies
    counts as not refused.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        try:
            load_model(graph, weights)
            refused = False
        except GraphRefused:
            refused = True
        seconds = time.perf_counter() - started
        rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(write_end, f"{int(refused)} {seconds} {rise}".encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().split()
    os.waitpid(pid, 0)
    return (
        (said[0] == b"1", float(said[1]), float(said[2]))
        if said
        else (False, float("inf"), float("inf"))
    )


def corpus(quick: bool) -> Iterator[tuple[str, bytes, bytes]]:
    """(name, graph, weights)."""
    for i, (name, graph, weights) in enumerate(hostile_files()):
        if not quick or i % 8 == 0:
            yield name, graph, weights


def main() -> None:
    """Print the slowest and the largest, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="every eighth file")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    load_model(*HONEST)  # what is loaded once is no file's fault
    found = {name: cost(graph, weights) for name, graph, weights in corpus(given.quick)}
    _, honest_seconds, honest_megabytes = cost(*HONEST)
    figures: dict[str, float] = {
        "files": len(found),
        "refused": sum(refused for refused, _, _ in found.values()) / len(found),
        "seconds.max": max(seconds for _, seconds, _ in found.values()),
        "megabytes.max": max(rise for _, _, rise in found.values()),
        "honest.seconds": honest_seconds,
        "honest.megabytes": honest_megabytes,
    }
    slowest = sorted(found, key=lambda name: -found[name][1])[:5]
    largest = sorted(found, key=lambda name: -found[name][2])[:5]
    table = Table("file", "refused", "seconds", "megabytes", box=None, pad_edge=False)
    for name in dict.fromkeys([*slowest, *largest]):
        refused, seconds, rise = found[name]
        table.add_row(name, "yes" if refused else "NO", f"{seconds:.3f}", f"{rise:.0f}")
        figures |= {
            f"seconds.{name.replace(' ', '_')}": seconds,
            f"megabytes.{name.replace(' ', '_')}": rise,
        }
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{len(found)} hostile files, {figures['refused']:.0%} refused; at most "
        f"{figures['seconds.max']:.3f} s and "
        f"{figures['megabytes.max']:.0f} MB each (an honest file: {honest_seconds:.3f} s, "
        f"{honest_megabytes:.0f} MB)"
    )
    if given.json:
        given.json.write_text(
            json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=1) + "\n"
        )
    sys.exit(0 if figures["refused"] == 1 else 1)


if __name__ == "__main__":
    main()
