"""A terminal that shows what strangers wrote without obeying it: hospitals' refusals, names in
manifests, a hub's sentences.

Text that is printed as a string is text: control characters, escape sequences and characters that
reorder a line are shown as their codes, and square brackets mean nothing. Who wants colour prints a
rich.text.Text. Knows nothing of what is printed.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

# control, format (bidirectional overrides, zero widths), surrogate, private use, line separators
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str, keep: str = "\n\t") -> str:
    """`text` with every character that a terminal would obey or hide as its code.

    >>> visible("fine\\x1b[2J")
    'fine\\\\x1b[2J'
    """
    return "".join(
        one
        if one in keep or unicodedata.category(one) not in HIDDEN
        else one.encode("unicode_escape").decode()
        for one in text
    )


class Terminal(Console):
    """rich's console for strangers' texts: every string, in tables too, goes through `visible`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it stands, without markup."""
        return super().render_str(visible(text), **(options | {"markup": False, "emoji": False}))


def marked(*parts: str | tuple[str, str]) -> Text:
    """Our own words with styles between strings: marked(("refused:", "bold red"), sentence)."""
    return Text.assemble(
        *((visible(p), "") if isinstance(p, str) else (visible(p[0]), p[1]) for p in parts)
    )
