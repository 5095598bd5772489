"""The values of a library's config: their sizes, how they merge, and which are still unused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from drkd_jax.models.norm import EPSILON

HUGE = 100_000  # most values of one name, when written out
_LARGEST = 2000  # most values in one setting
_MARKS = ("_delete_", "_scope_")  # of mmengine: how dicts are merged, where types are looked up
_FARTHEST = 1e15  # largest absolute value of a number


@dataclasses.dataclass(frozen=True)
class Unread:
    """An expression that is not a plain value."""

    text: str

    def __repr__(self) -> str:
        return self.text


def laid_over(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Merges a dict of a config into that of its base file, as mmengine does."""
    merged = {} if over.get("_delete_") is True else dict(base)
    for key, value in over.items():
        if key == "_delete_":
            continue
        old = merged.get(key)
        merged[key] = (
            laid_over(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        )
    return merged


def as_dict(value: Any) -> Mapping[str, Any]:
    """A dict of a config; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def size_of(value: Any) -> tuple[float, int]:
    """The number of values when written out (infinite if it contains itself), and without repeats.

    A short text can define a huge value: sixty lines, each a list of the previous list twice.
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
            sizes[id(item)] = math.inf  # used if the item is found inside itself
            parts = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
            sizes[id(item)] = sum(map(size, parts), 1.0)
        return sizes[id(item)]

    try:
        return size(value), seen
    except RecursionError:
        return math.inf, seen


class Section:
    """One dict of a config, with its dotted path and the complaints about it.

    `close` makes a complaint for every key that was not read until then: an unknown key may affect
    the network's computation.
    """

    def __init__(self, values: Any, path: str, complaints: list[str]):
        self.path = path
        self.complaints = complaints
        self._asked: set[str] = set()
        if not isinstance(values, Mapping):
            self.refuse("", values, "no dict")
            values = {}
        self.values = {str(key): value for key, value in values.items() if key not in _MARKS}

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """A plain value, lists as tuples; the default if it is None."""
        self._asked.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        if _has_unread(value):
            self.refuse(key, value, "not a plain value")
            return default
        return _as_tuple(value)

    def number(
        self,
        key: str,
        default: float | int | None = None,
        least: int | None = None,
        most: int | None = None,
    ) -> Any:
        """A number, or the default; returned as an integer if it has no fraction."""
        value = self.get(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(key, value, "no number")
            return default
        if not abs(value) < _FARTHEST:  # also refuses NaN
            self.refuse(key, value, "not a finite number")
            return default
        if (least is not None and value < least) or (most is not None and value > most):
            self.refuse(key, value, "cannot be built here")
            return default
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def whole(
        self,
        key: str,
        default: int | None = None,
        least: int | None = None,
        most: int | None = None,
    ) -> Any:
        """A number without a fraction, or the default."""
        value = self.number(key, default, least, most)
        if value is None or value == int(value):
            return value if value is None else int(value)
        self.refuse(key, value, "not a whole number")
        return default

    def numbers(self, key: str, default: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        """A tuple of numbers, or the default."""
        value = self.get(key, default)
        if not isinstance(value, tuple) or not all(
            isinstance(item, (int, float)) and not isinstance(item, bool) and abs(item) < _FARTHEST
            for item in value
        ):
            self.refuse(key, value, "not a row of finite numbers")
            return default
        return value

    def kind(self, *known: str) -> str:
        """The last part of "type", which must be a known one."""
        value = self.values.get("type")
        self._asked.add("type")
        if value is None:
            return known[0]
        name = (value if isinstance(value, str) else _show(value)).rpartition(".")[2]
        if name not in known:
            self.refuse("type", name, f"{' or '.join(known)} can be built here")
        return name

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses all values but these; the first is the library's default."""
        value = self.get(key, allowed[0])
        if not any(_equal(value, known) for known in allowed):
            wanted = " or ".join(map(_show, allowed))
            self.refuse(key, value, f"{wanted} can be built here")

    def ignore(self, *keys: str) -> None:
        """Marks keys that do not affect what the network computes from an image."""
        self._asked.update(keys)

    def sub(self, key: str) -> Section:
        """The dict under a key; an empty one if there is none."""
        self._asked.add(key)
        value = self.values.get(key)
        return Section({} if value is None else value, self.name(key), self.complaints)

    def name(self, key: str) -> str:
        """The dotted path of a key."""
        return ".".join(part for part in (self.path, key) if part)

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Adds a complaint."""
        self.complaints.append(f"{self.name(key)} = {_show(value)} ({why})")

    def close(self, *harmless: str) -> None:
        """Refuses every key that was not read, is not None and not among these."""
        self.ignore(*harmless)
        for key, value in self.values.items():
            if key not in self._asked and value is not None:
                self.refuse(key, value, "not known here")


@dataclasses.dataclass
class FileConfig:
    """The content of a config; settings and claims by dotted key.

    Attributes:
        settings: settings that no array shows.
        claims: settings that the arrays show as well and must agree with.
        body: complaints about backbone and pyramid.
        heads: complaints about the heads.
        notes: messages about what its head does in another way here.
        neck_eps: eps of the norms in the pyramid.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    claims: dict[str, Any] = dataclasses.field(default_factory=dict)
    body: list[str] = dataclasses.field(default_factory=list)
    heads: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    neck_eps: float = EPSILON

    def claim(self, ours: str, part: Section, theirs: str) -> None:
        """Copies a whole number, if the config has it."""
        if theirs in part:
            self.claims[ours] = part.whole(theirs)


def _as_tuple(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_as_tuple(item) for item in value)
    return value


def _equal(value: Any, known: Any) -> bool:
    """Whether numbers, or sequences of numbers, are equal in value, whatever their types."""
    if isinstance(value, bool) or isinstance(known, bool):
        return value is known
    try:
        return bool(value == known)
    except (TypeError, ValueError):
        return False


def _has_unread(value: Any) -> bool:
    """Whether a value contains anything unread, or is larger than any setting."""
    todo, seen = [value], 0
    while todo:
        item, seen = todo.pop(), seen + 1
        if isinstance(item, Unread) or seen > _LARGEST:
            return True
        if isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple)):
            todo.extend(item)
    return False


def _show(value: Any) -> str:
    text = repr(value) if not isinstance(value, Unread) else value.text
    return text if len(text) <= 80 else f"{text[:77]}..."
