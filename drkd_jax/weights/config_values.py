"""The values of a config, from whatever form: how large they are, and one laid over another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

HUGE = 100_000  # values of one name, when written out


@dataclasses.dataclass(frozen=True)
class Unread:
    """An expression that is no plain value."""

    text: str

    def __repr__(self) -> str:
        return self.text


def laid_over(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict of a config laid over that of its base file, as mmengine does."""
    merged = {} if over.get("_delete_") is True else dict(base)
    for key, value in over.items():
        if key == "_delete_":
            continue
        old = merged.get(key)
        merged[key] = (
            laid_over(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        )
    return merged


def size_of(value: Any) -> tuple[float, int]:
    """How many values it is when written out, infinite where it holds itself; and without repeats.

    A list of two of the list before, sixty lines long, is short to read and endless to print.
    """
    sizes: dict[int, float] = {}
    seen = 0

    def size(item: Any) -> float:
        nonlocal seen
        seen += 1
        if isinstance(item, int):
            return 1.0 if item.bit_length() <= 64 else math.inf
        if isinstance(item, (str, bytes)):
            return 1 + len(item) / 100
        if not isinstance(item, (Mapping, list, tuple, set, frozenset)):
            return 1.0
        if id(item) not in sizes:
            sizes[id(item)] = math.inf  # what is met again inside itself
            parts = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
            sizes[id(item)] = sum(map(size, parts), 1.0)
        return sizes[id(item)]

    return size(value), seen
