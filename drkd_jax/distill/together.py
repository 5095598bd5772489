"""Equal work on several levels in one call.

A graph unit's products are small: on an accelerator most of their time is the start of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from drkd_jax.ops.platform import platform

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """What `together` found, a row at a time; a row is cut out where it is asked for."""

    def __init__(self, found: dict[int, tuple[Answer, int | None]]):
        self._found = found

    def __getitem__(self, row: int) -> Answer:
        whole, place = self._found[row]
        return whole if place is None else jax.tree.map(lambda x: x[place], whole)

    def __iter__(self) -> Iterator[Answer]:
        return (self[row] for row in range(len(self._found)))

    def still(self) -> Answers[Answer]:
        """The same, without a gradient."""
        return Answers({row: (jax.lax.stop_gradient(x), i) for row, (x, i) in self._found.items()})


def together(function: Callable[..., Answer], rows: Sequence[tuple[Any, ...]]) -> Answers[Answer]:
    """`function(*row)` for each row; rows of the same shapes are one call of it, vectorised.

    On a CPU each row is a call of its own: there a start costs nothing, and copies do.

    Args:
        function: pure.
        rows: arguments, pytrees of arrays.
    """
    if platform() == "cpu":
        return Answers({place: (function(*row), None) for place, row in enumerate(rows)})
    kinds: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        leaves, tree = jax.tree.flatten(row)
        kinds.setdefault((tree, *((x.shape, x.dtype) for x in leaves)), []).append(place)
    found: dict[int, tuple[Answer, int | None]] = {}
    for places in kinds.values():
        if len(places) == 1:
            found[places[0]] = function(*rows[places[0]]), None
            continue
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(rows[place] for place in places))
        whole = jax.vmap(function)(*stacked)
        found |= {place: (whole, i) for i, place in enumerate(places)}
    return Answers(found)
