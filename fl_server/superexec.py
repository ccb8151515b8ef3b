"""Flower's SuperExec, which starts a job's ServerApp, with the task's token where other users of
this machine cannot read it: stock Flower puts it on the command line. Built on Flower's private
modules. Knows nothing of jobs.

    python -m fl_server.superexec  (started by superlink.py, with Flower's own arguments)
"""

from __future__ import annotations

import subprocess
import tempfile
from typing import Any

from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.superexec.executor import subprocess_executor


class _TokenInFile:
    """In place of the module `subprocess` there: the token goes into a file that has no name, which
    the child has as its standard input.
    """

    DEVNULL = subprocess.DEVNULL

    @staticmethod
    def Popen(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start the process."""
        at = arguments.index("--token")
        with tempfile.TemporaryFile() as file:
            file.write(arguments[at + 1].encode())
            file.flush()
            shown = [*arguments[:at], "--token-file", "/dev/stdin", *arguments[at + 2 :]]
            return subprocess.Popen(shown, stdin=file, **options)


def main() -> None:
    """Run SuperExec until its parent ends."""
    subprocess_executor.subprocess = _TokenInFile
    flower_superexec()


if __name__ == "__main__":
    main()
