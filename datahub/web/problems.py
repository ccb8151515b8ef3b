"""Errors as the API says them: one sentence in a problem document (RFC 9457). Knows nothing of what
went wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
# as JSON Schema, for the API's own document
SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "what the status says"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong and what is allowed"},
    },
}


def document(status: int, sentence: str) -> bytes:
    """The problem document."""
    said: Mapping[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": sentence,
    }
    return json.dumps(said).encode()


def described(why: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """What routes may answer beside what was asked for, for the API's own document."""
    content = {MEDIA_TYPE: {"schema": SCHEMA}}
    return {status: {"description": words, "content": content} for status, words in why.items()}
