"""The hub's JSON API as its clients see it: a call, and the hub's sentence where it refuses.

Knows nothing of chains, keys or models, and loads no torch: whoever only looks should not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from datahub.errors import HubError, NotFound

PAGE = 200  # rows of one answer


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
                sentence = answer.json()["detail"]
            except (ValueError, KeyError, TypeError):
                sentence = answer.text[:200]
            raise (NotFound if answer.status_code == NotFound.status else HubError)(sentence)
        return answer

    def get(self, path: str, **asked: Any) -> Any:
        """JSON of a GET; `asked` is its query, of which None is left out."""
        return self._get(path, asked).json()

    def rows(self, path: str, most: int, **asked: Any) -> list[Any]:
        """The first `most` rows of a list, as many pages as that takes."""
        found: list[Any] = []
        answer = self._get(path, asked | {"limit": min(most, PAGE)})
        while True:
            found += answer.json()
            following = answer.links.get("next", {}).get("url", "")
            if len(found) >= most or not following.startswith(path + "?"):
                return found[:most]
            answer = self.call("GET", following)

    def _get(self, path: str, asked: Mapping[str, Any]) -> httpx.Response:
        given = {name: value for name, value in asked.items() if value is not None}
        return self.call("GET", f"{path}?{httpx.QueryParams(given)}" if given else path)
