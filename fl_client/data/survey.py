"""Which of many picture files can be read, and why not the others: nothing in a file ends a run.

Files are tried in processes of their own, since whatever a decoder does to its process, hang, crash
or fill its memory, is then said of the file that it was reading.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue

from fl_client.data.pictures import PictureRules, read_picture
from fl_client.errors import DatasetError

PROCESS_BYTES = 8 << 30  # address space of a process
SECONDS = 120.0  # for one file
# multiprocessing would run the caller's script again
START = """import json, sys
sys.path = json.loads(sys.argv[1])
from fl_client.data.survey import answer
answer()"""


def survey(
    paths: Iterable[Path],
    rules: PictureRules,
    progress: Callable[[int, int], None] | None = None,
    *,
    workers: int | None = None,
    accept_burned_in: bool = False,
) -> tuple[list[int], dict[Path, str]]:
    """Try every picture: (indices of those that can be read, {path: why} of the others).

    `progress` is told how many of how many are done. `workers` are processes, by default one for
    each core. `accept_burned_in` as in `read_picture`.
    """
    paths = list(paths)
    reasons = []
    idle: SimpleQueue[_Reader] = SimpleQueue()
    with ExitStack() as opened:
        workers = max(1, min(workers or len(os.sched_getaffinity(0)), len(paths)))
        for _ in range(workers):
            idle.put(opened.enter_context(closing(_Reader(rules, accept_burned_in))))

        def ask(path: Path) -> str:
            reader = idle.get()
            try:
                return reader.why(path)
            finally:
                idle.put(reader)

        threads = ThreadPoolExecutor(workers)
        try:
            for why in threads.map(ask, paths):
                reasons.append(why)
                if progress is not None:
                    progress(len(reasons), len(paths))
        finally:
            threads.shutdown(cancel_futures=True)
    good = [i for i, why in enumerate(reasons) if not why]
    return good, {path: why for path, why in zip(paths, reasons, strict=True) if why}


class _Reader:
    """A process that tries one picture after the other; started again when one has killed it."""

    def __init__(self, rules: PictureRules, accept_burned_in: bool):
        self._asked = json.dumps([rules.as_dict(), accept_burned_in])
        self._process: subprocess.Popen[bytes] | None = None

    def why(self, path: Path) -> str:
        """Why it cannot be read; "" if it can."""
        if self._process is None:
            self._start()
        try:
            answer = self._exchange(str(path))
        except TimeoutError:
            self.close()
            return f"{path.name}: takes more than {SECONDS:.0f} seconds to read"
        if answer is None:
            self.close()
            return f"{path.name}: reading it killed the process that read it"
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what decoders say quotes the file
            bufsize=0,
        )
        if self._exchange(self._asked) != "":
            self.close()
            raise DatasetError("pictures: no process that reads them could be started")

    def _exchange(self, text: str) -> str | None:
        """The answer to `text`; None where the process is gone."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(text).encode() + b"\n")
        except BrokenPipeError:
            return None
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            raise TimeoutError
        line = process.stdout.readline()
        return str(json.loads(line)) if line.endswith(b"\n") else None


def answer() -> None:
    """Be the process at the other end: rules first, then paths, one JSON text in each line."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = PROCESS_BYTES if hard == resource.RLIM_INFINITY else min(PROCESS_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    replies = os.dup(1)
    os.dup2(2, 1)  # decoders may print
    asked = (json.loads(line) for line in sys.stdin.buffer)
    rules, accept_burned_in = json.loads(next(asked))
    rules = PictureRules.from_dict(rules)
    os.write(replies, b'""\n')
    for path in asked:
        why = ""
        try:
            read_picture(Path(path), rules, accept_burned_in=accept_burned_in)
        except DatasetError as error:
            why = str(error)
        os.write(replies, json.dumps(why).encode() + b"\n")
