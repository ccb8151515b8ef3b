"""The hub's JSON API as its clients see it: a call, and the hub's sentence where it refuses.

Knows nothing of chains, keys or models, and loads no torch: whoever only looks should not wait.
"""

from __future__ import annotations

from typing import Any

import httpx

from datahub.errors import HubError, NotFound


class Hub:
    """The hub's JSON API; errors come back as HubError with the hub's sentence."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, timeout=60)

    def call(self, method: str, path: str, json: Any = None) -> httpx.Response:
        """One request; raises HubError for anything but success."""
        try:
            answer = self._client.request(method, path, json=json)
        except httpx.HTTPError as error:
            raise HubError(f"the hub at {self.url} does not answer: {error}") from error
        if answer.is_error:
            try:
                sentence = answer.json()["error"]
            except (ValueError, KeyError, TypeError):
                sentence = answer.text[:200]
            raise (NotFound if answer.status_code == NotFound.status else HubError)(sentence)
        return answer

    def get(self, path: str) -> Any:
        """JSON of a GET."""
        return self.call("GET", path).json()
