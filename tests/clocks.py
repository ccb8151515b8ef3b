"""A clock for one module under test. Knows nothing of what is tested.

`time` belongs to the whole process: a test that patched its functions would move the clock of every
thread that other tests have left running, and those threads would move the test's.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest


def clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **parts: Any) -> None:
    """`module` sees `parts` for functions of `time` of those names; nobody else does."""
    monkeypatch.setattr(module, "time", _Clock(parts))


class _Clock:
    def __init__(self, parts: dict[str, Any]):
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(time, name)
