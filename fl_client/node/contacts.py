"""When a running node last spoke with its hub, the SuperLink and the chain, and which walls around
jobs its machine lacks: one small file in the node's folder, for whoever looks while it runs. Says
nothing of jobs or records; decides nothing, and a disk that takes no file stops nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from datatokens.errors import TermsError
from datatokens.terms import whole
from datatokens.wire import parse
from fl_client.node.job_folder import write_whole

log = logging.getLogger("datahub.node")

FILE = "state.json"
PARTIES = ("hub", "superlink", "chain")
LEAST_S = 5.0  # between two writings
MOST_S = 60.0  # of a node that lives
DEAD_S = 3 * MOST_S  # without a writing
LATEST = 2**40 - 1


@dataclass(frozen=True)
class Contacts:
    """What a running node has written last; times in unix seconds, 0 for never.

    spoke     party -> when it last answered
    walls     wall -> why this machine lacks it; None while no job has needed a worker yet
    stopped   whether the node has ended by itself since
    """

    started: int
    written: int
    stopped: bool
    spoke: Mapping[str, int]
    walls: Mapping[str, str] | None

    def running(self, now: float) -> bool:
        """Whether the node that wrote this seems to run; a clock that was set back tells nothing
        of a node that has ended, as one that runs writes again at once.
        """
        return not self.stopped and abs(now - self.written) < DEAD_S


def read(folder: Path) -> Contacts | None:
    """What the node in `folder` has written last; None where it never did, or where the file is
    damaged: the next writing mends it.
    """
    try:
        found = parse((folder / FILE).read_bytes())
        spoke, walls = found["spoke"], found["walls"]
        return Contacts(
            started=whole("started", found["started"], 0, LATEST),
            written=whole("written", found["written"], 0, LATEST),
            stopped=found["stopped"] is True,
            spoke={one: whole(one, spoke[one], 0, LATEST) for one in PARTIES},
            walls=None if walls is None else {str(k): str(v) for k, v in walls.items()},
        )
    except (OSError, TermsError, KeyError, TypeError, AttributeError):
        return None


class Diary:
    """Keeps the file of a running node. `chain_answered` is when the chain last did, `walls` which
    walls are missing, if that is known yet.
    """

    def __init__(
        self,
        folder: Path,
        chain_answered: Callable[[], float],
        walls: Callable[[], Mapping[str, str] | None],
    ):
        self._folder, self._chain_answered, self._walls = folder, chain_answered, walls
        self._started = int(time.time())
        before = read(folder)
        self._spoke = dict(before.spoke) if before else dict.fromkeys(PARTIES, 0)
        self._written: Contacts | None = None
        self._complained = False

    def spoke(self, party: str) -> None:
        """Whoever it is has answered."""
        self._spoke[party] = int(time.time())

    def keep(self, stop: threading.Event) -> None:
        """Write until `stop` is set, in a thread of its own: the node may train for hours."""
        for left in self._folder.glob(f".{FILE}.*"):  # by a node that was killed in the middle
            left.unlink(missing_ok=True)
        threading.Thread(target=self._run, args=(stop,), name="state", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        while True:
            stopped = stop.is_set()
            self.look(stopped)
            if stopped:
                return
            stop.wait(LEAST_S)

    def look(self, stopped: bool = False) -> None:
        """Write what has changed, and that the node lives."""
        self._spoke["chain"] = max(self._spoke["chain"], int(self._chain_answered()))
        now, walls = int(time.time()), self._walls()
        new = Contacts(
            self._started, now, stopped, dict(self._spoke), None if walls is None else dict(walls)
        )
        old = self._written
        if old is not None and now - old.written < MOST_S:
            same = (old.stopped, old.spoke, old.walls) == (new.stopped, new.spoke, new.walls)
            if same and old.written <= now:
                return
        try:
            write_whole(self._folder / FILE, json.dumps(asdict(new)).encode())
        except OSError as error:
            if not self._complained:
                log.warning("%s cannot be written: %s", FILE, error)
            self._complained = True
            return
        self._written, self._complained = new, False


def ago(at: int, now: int) -> str:
    """When something was, for people."""
    if not at:
        return "never"
    when, s = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC", now - at
    if s < 0:
        return f"{when} (ahead of this clock)"
    span = f"{s} s" if s < 120 else f"{s // 60} min" if s < 7200 else f"{s // 3600} h"
    return f"{span} ago ({when})"
