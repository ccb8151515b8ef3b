"""The newest datasets as an Atom feed (RFC 4287). Knows nothing of HTTP or databases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

from datahub.metadata.listed import NEVER, Listed, urn

ATOM = "http://www.w3.org/2005/Atom"
MOST = 50  # entries
# characters that XML 1.0 has no way to write (its section 2.2)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(hub: str, market: str, newest: Sequence[Listed]) -> bytes:
    """The feed of these datasets, in their order, as UTF-8; `updated` is the newest of theirs."""
    feed = ElementTree.Element("feed", {"xmlns": ATOM})
    latest = max((one.published for one in newest), default=datetime.fromtimestamp(0, UTC))
    _put(feed, "id", urn(market))
    _put(feed, "title", "datahub: datasets")
    _put(feed, "subtitle", NEVER)
    _put(feed, "updated", _time(latest))
    _link(feed, "self", f"{hub}/feed.atom", "application/atom+xml")
    _link(feed, "alternate", f"{hub}/datasets", "text/html")
    for listed in newest[:MOST]:
        _entry(feed, listed)
    return bytes(ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True))


def _entry(feed: ElementTree.Element, listed: Listed) -> None:
    entry = ElementTree.SubElement(feed, "entry")
    manifest = listed.manifest
    _put(entry, "id", urn(listed.identifier))
    _put(entry, "title", manifest["name"])
    _put(entry, "updated", _time(listed.published))
    _put(ElementTree.SubElement(entry, "author"), "name", manifest["hospital"])
    target = manifest["schema"]["target"]["name"]
    said = (manifest["description"], f"To be learned: {target}.", listed.size, listed.privacy)
    _put(entry, "summary", " ".join(filter(None, said)))
    _link(entry, "alternate", listed.page, "text/html")
    for name in ("croissant.json", "dcat.jsonld"):
        _link(entry, "related", f"{listed.page}/{name}", "application/ld+json")


def _put(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = _NOT_XML.sub("\ufffd", text)


def _link(parent: ElementTree.Element, rel: str, href: str, kind: str) -> None:
    href = _NOT_XML.sub("\ufffd", href)
    ElementTree.SubElement(parent, "link", {"rel": rel, "href": href, "type": kind})


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
