"""JSON that another party wrote, as a value of bounded depth and plain numbers, or one sentence.

The depth is counted before json.loads: its recursion overruns the C stack where a library raised
Python's limit, and then the process is gone. Pure; knows nothing of what the value means.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from datatokens.errors import TermsError

MAX_DEPTH = 12  # of a document; honest ones have up to 6
MAX_DIGITS = 78  # of a whole number: 2**256 has so many
_BRACKET = re.compile(rb"[\[\]{}]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _constant(name: str) -> Any:
    raise TermsError(f"{name} is not allowed in JSON here")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise TermsError(f"a whole number of {len(digits)} digits; {MAX_DIGITS} are the most")
    return int(digits)


def _fraction(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise TermsError(f"{text[:40]} is too large a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name[:80]!r} is there twice")
        made[name] = value
    return made


def parse(raw: bytes) -> Any:
    """The value of `raw`. Raises TermsError for more than MAX_DEPTH levels, for a name twice in one
    object (two readers would take two values), for NaN and infinities however they are written, for
    too many digits, for text that is not UTF-8 or has half a surrogate pair, and for what is no
    JSON.

    >>> parse(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:  # else no deeper, and nothing to look at
        depth = 0
        for found in _BRACKET.finditer(_STRING.sub(b"", raw)):
            depth += 1 if found.group() in b"[{" else -1
            if depth > MAX_DEPTH:
                raise TermsError(f"not JSON of at most {MAX_DEPTH} levels")
    try:
        value = json.loads(
            raw.decode(),
            parse_constant=_constant,
            parse_int=_whole,
            parse_float=_fraction,
            object_pairs_hook=_object,
        )
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeError, ValueError, RecursionError) as error:
        raise TermsError(f"not JSON: {str(error)[:200]}") from error
    return value
