"""Pictures as shards beside the plain way, one PNG file per picture opened with Pillow for each
batch: pictures per second written, read in random batches of 256, and memory while reading.

    python -m tests.benchmarks.pictures [--quick] [--json FILE]

Made-up pictures of 224 x 224, smooth with some grain, so that PNG has something to pack. Both ways
give the same float32 numbers. A pass over all pictures is read by a process of its own, whose
largest resident memory is taken; what it holds before it reads is told beside it. Files that were
just written are mostly in the system's cache: 100,000 take 5 GB as shards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIDE = 224
BATCH = 256
SAME = 64  # batches of this many pictures are compared


def made_up(count: int) -> Iterator[np.ndarray]:
    """uint8 [1, 224, 224], all different."""
    random = np.random.default_rng(0)
    grain = random.integers(0, 16, (64, SIDE, SIDE), dtype=np.uint8)
    wave = 100 + 80 * np.sin(np.arange(SIDE) / 40)
    base = np.sqrt(np.outer(wave, wave))
    for i in range(count):
        yield (np.roll(base, i % SIDE, axis=i % 2).astype(np.uint8) + grain[i % 64])[None]


def png_paths(folder: Path, count: int) -> list[Path]:
    """Of the plain rival, a thousand in each folder."""
    return [folder / f"{i // 1000:03}" / f"{i:06}.png" for i in range(count)]


class Rival:
    """float32 [n, 1, 224, 224] of one PNG file per picture."""

    def __init__(self, folder: Path, count: int):
        self.paths = png_paths(folder, count)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        from PIL import Image

        pictures = []
        for i in rows:
            with Image.open(self.paths[i]) as image:
                pictures.append(np.asarray(image)[None])
        return (np.stack(pictures).astype(np.float32) / 255 - 0.5) / 0.5


def write_rival(folder: Path, count: int) -> None:
    """Every picture as a PNG file with Pillow's own settings."""
    from PIL import Image

    for path, picture in zip(png_paths(folder, count), made_up(count), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(path)


def read_all(kind: str, folder: Path, count: int) -> dict[str, float]:
    """A pass in random batches, by this process."""
    import PIL.Image  # noqa: F401 - both are measured with the library there

    from fl_client.data.shards import Shards

    source = Shards(folder) if kind == "shards" else Rival(folder, count)
    order = np.random.default_rng(1).permutation(count)
    before = peak_mb()
    start, total = time.perf_counter(), 0.0
    for at in range(0, count, BATCH):
        total += float(source[order[at : at + BATCH]][0, 0, 0, 0])
    seconds = time.perf_counter() - start
    return {
        "read_per_second": count / seconds,
        "memory_before_mb": before,
        "memory_peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """The largest resident memory of this process. ru_maxrss would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def size_mb(folder: Path) -> float:
    """Of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Both, side by side."""
    if sys.argv[1:2] == ["read"]:
        print(json.dumps(read_all(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count = 5_000 if arguments.quick else 100_000
    from fl_client.data.pictures import PictureRules
    from fl_client.data.shards import write_shards

    figures: dict[str, float] = {"pictures": count}
    with tempfile.TemporaryDirectory() as made:
        folders = {"shards": Path(made) / "shards", "png": Path(made) / "png"}
        start = time.perf_counter()
        for _ in made_up(count):
            pass
        making = time.perf_counter() - start
        for kind, folder in folders.items():
            print(f"{kind} ...", flush=True)
            start = time.perf_counter()
            if kind == "shards":
                shards = write_shards(folder, made_up(count), PictureRules(1, (SIDE, SIDE)))
            else:
                write_rival(folder, count)
            seconds = time.perf_counter() - start - making
            figures[f"{kind}.written_per_second"] = count / seconds
            figures[f"{kind}.disk_mb"] = size_mb(folder)
        rows = np.random.default_rng(2).permutation(count)[:SAME]
        difference = np.abs(shards[rows] - Rival(folders["png"], count)[rows]).max()
        assert difference < 1e-6, difference
        for kind, folder in folders.items():
            command = [sys.executable, "-m", __spec__.name, "read", kind, str(folder), str(count)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures |= {f"{kind}.{name}": x for name, x in json.loads(told.stdout).items()}
    figures = {name: round(value, 1) for name, value in figures.items()}
    print(f"{count} pictures of {SIDE} x {SIDE}, batches of {BATCH}")
    print(f"{'':24}{'png files':>12}{'shards':>12}{'ratio':>9}")
    for name in (name.split(".")[1] for name in figures if name.startswith("shards.")):
        plain, ours = figures[f"png.{name}"], figures[f"shards.{name}"]
        print(f"{name:24}{plain:12.1f}{ours:12.1f}{ours / plain:9.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
