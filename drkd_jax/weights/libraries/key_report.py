"""Reports how every key of a foreign file is used, and converts its arrays to our layouts.

Letters: h w a kernel's sides, I inputs, O outputs, C channels, S bins per side of a region.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.words import counted

BINS = 7  # S: both libraries pool regions to 7 x 7 bins before their first linear layer
_SHOWN = 6  # names of each kind in a message; the JSON has all


class Layout(NamedTuple):
    """A change of layout and its inverse; views if possible, otherwise copies."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _regions_to_ours(x: np.ndarray) -> np.ndarray:
    """(O, C S S) -> (S S C, O)."""
    outputs, inputs = x.shape
    wide = x.reshape(outputs, inputs // BINS**2, BINS, BINS)
    return wide.transpose(2, 3, 1, 0).reshape(inputs, outputs)


def _regions_to_theirs(x: np.ndarray) -> np.ndarray:
    """(S S C, O) -> (O, C S S)."""
    inputs, outputs = x.shape
    wide = x.reshape(BINS, BINS, inputs // BINS**2, outputs)
    return wide.transpose(3, 2, 0, 1).reshape(outputs, inputs)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        # One number per channel.
        "vector": Layout(lambda x: x, lambda x: x),
        # (O, I / groups, h, w) and (h, w, I / groups, O).
        "conv": Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
        # (O, I) and (I, O).
        "linear": Layout(lambda x: x.T, lambda x: x.T),
        # The first linear layer after a region's bins: torch flattens C S S, we S S C.
        "regions": Layout(_regions_to_ours, _regions_to_theirs),
    }
)


def their_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an array of ours has in torch's layout; nothing is allocated."""
    return LAYOUTS[layout].to_theirs(np.broadcast_to(np.float32(0), shape)).shape


class Entry(NamedTuple):
    """One array under our name and under the library's."""

    ours: str
    theirs: str
    layout: str
    older: tuple[str, ...] = ()  # names in older files


class Skip(NamedTuple):
    """Keys that are not needed here, and why."""

    pattern: str  # matched from the key's beginning
    reason: str


@dataclasses.dataclass(frozen=True)
class KeyReport:
    """How every key is used.

    Attributes:
        used: their key -> our name.
        skipped: their key -> reason.
        missing: their key -> the required shape.
        unexpected: their key -> its shape.
        misshapen: their key -> (its shape, the required shape).
    """

    used: Mapping[str, str]
    skipped: Mapping[str, str]
    missing: Mapping[str, tuple[int, ...]]
    unexpected: Mapping[str, tuple[int, ...]]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.misshapen)

    def lines(self) -> list[str]:
        """Messages: counts, and why keys were skipped."""
        lines = [
            f"{counted(len(self.used), 'array')} used, {counted(len(self.skipped), 'key')} skipped"
        ]
        for reason, count in Counter(self.skipped.values()).most_common():
            first = next(key for key, why in self.skipped.items() if why == reason)
            lines.append(f"  {count} skipped: {reason} ({first}{', ...' if count > 1 else ''})")
        return lines

    def faults(self) -> str:
        """One line with the first of every kind of fault."""
        parts = [
            _list("missing", (f"{key} {shape}" for key, shape in self.missing.items())),
            _list("unexpected", (f"{key} {shape}" for key, shape in self.unexpected.items())),
            _list(
                "of another shape",
                (f"{key} {found}, not {want}" for key, (found, want) in self.misshapen.items()),
            ),
        ]
        return "; ".join(part for part in parts if part)

    def check(self, where: str) -> None:
        """Refuses a file unless all its keys fit.

        Raises:
            UserError: lists missing and unexpected keys and shapes.
        """
        if not self.whole:
            raise UserError(f"{where}: {self.faults()}")

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "used": dict(self.used),
            "skipped": dict(self.skipped),
            "missing": {key: list(shape) for key, shape in self.missing.items()},
            "unexpected": {key: list(shape) for key, shape in self.unexpected.items()},
            "misshapen": {
                key: {"found": list(found), "wanted": list(wanted)}
                for key, (found, wanted) in self.misshapen.items()
            },
        }


def report_keys(
    found: Mapping[str, tuple[int, ...]],
    table: Iterable[Entry],
    wanted: Mapping[str, tuple[int, ...]],
    skips: Iterable[Skip],
) -> KeyReport:
    """Compare a foreign file's keys with what a model needs.

    Args:
        found: the file's keys and shapes.
        table: one entry for each array of ours.
        wanted: our names and shapes.
        skips: keys that may be left over.
    """
    used: dict[str, str] = {}
    missing: dict[str, tuple[int, ...]] = {}
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for entry in table:
        shape = their_shape(entry.layout, wanted[entry.ours])
        key = next((key for key in (entry.theirs, *entry.older) if key in found), None)
        if key is None:
            missing[entry.theirs] = shape
        elif found[key] != shape:
            misshapen[key] = (found[key], shape)
        else:
            used[key] = entry.ours
    compiled = [(re.compile(skip.pattern), skip.reason) for skip in skips]
    skipped, unexpected = {}, {}
    for key, shape in found.items():
        if key in used or key in misshapen:
            continue
        reason = next((why for pattern, why in compiled if pattern.match(key)), None)
        if reason is None:
            unexpected[key] = shape
        else:
            skipped[key] = reason
    return KeyReport(used, skipped, missing, unexpected, misshapen)


def take(
    found: Mapping[str, np.ndarray], table: Iterable[Entry], used: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Convert a foreign file's arrays to our names and layouts.

    Args:
        found: the file's arrays by their own keys.
        table: one entry for each array of ours.
        used: their keys and our names, from a complete report.

    Returns:
        float32 arrays by our names.
    """
    layouts = {entry.ours: entry.layout for entry in table}
    return {
        ours: np.ascontiguousarray(LAYOUTS[layouts[ours]].to_ours(found[key]), np.float32)
        for key, ours in used.items()
    }


def give(arrays: Mapping[str, np.ndarray], table: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The inverse of `take`: our arrays under the library's names and in its layouts."""
    return {
        entry.theirs: np.ascontiguousarray(
            LAYOUTS[entry.layout].to_theirs(np.asarray(arrays[entry.ours]))
        )
        for entry in table
    }


def _list(what: str, items: Iterable[str]) -> str:
    every = list(items)
    if not every:
        return ""
    more = f", ... ({len(every) - _SHOWN} more)" if len(every) > _SHOWN else ""
    return f"{len(every)} {what}: {', '.join(every[:_SHOWN])}{more}"
