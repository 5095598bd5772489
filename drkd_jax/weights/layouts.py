"""How the same numbers lie in torch's arrays and in ours.

Letters: h w a kernel's sides, I inputs, O outputs, C channels, S bins a side of a region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

BINS = 7  # S: both libraries cut regions into 7 x 7 bins before their first linear layer


class Layout(NamedTuple):
    """A change of layout and its inverse; views where NumPy can, copies otherwise."""

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
        # A number a channel.
        "vector": Layout(lambda x: x, lambda x: x),
        # (O, I / groups, h, w) and (h, w, I / groups, O).
        "conv": Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
        # (O, I) and (I, O).
        "linear": Layout(lambda x: x.T, lambda x: x.T),
        # The first linear layer behind a region's bins: torch flattens C S S, we S S C.
        "regions": Layout(_regions_to_ours, _regions_to_theirs),
    }
)


def their_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an array of ours has in torch's layout; nothing is allocated."""
    return LAYOUTS[layout].to_theirs(np.broadcast_to(np.float32(0), shape)).shape
