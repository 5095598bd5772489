"""Numbers with their nouns ("1 image has", "3 images have") and short lists, for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_SINGULAR = {
    "are": "is",
    "have": "has",
    "hold": "holds",
    "fit": "fits",
    "occur": "occurs",
    "differ": "differs",
}


def counted(number: int, noun: str, rest: str = "") -> str:
    """A number and its noun, in the plural unless it is 1.

    Args:
        number: how many.
        noun: one or several words, the last of which has the plural.
        rest: what follows; begins with a plural verb of `_SINGULAR`.
    """
    if number != 1:
        noun = re.sub(r"(?<=[^aeiou])y$", "ie", noun)
        noun += "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    elif rest:
        verb, space, rest = rest.partition(" ")
        rest = _SINGULAR[verb] + space + rest
    return f"{number} {noun} {rest}".rstrip()


def listed(items: Iterable[Any], most: int = 5) -> str:
    """The first few items, with dots if there are more."""
    texts = list(map(str, items))
    return ", ".join(texts[:most]) + ", ..." * (len(texts) > most)
