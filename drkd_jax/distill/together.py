"""Batches equal work on several levels into one call.

A graph unit's products are small: on an accelerator, kernel launches take most of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from drkd_jax.ops.platform import platform

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """The results of `together`, one per row; a row is sliced out only when it is accessed."""

    def __init__(self, found: dict[int, tuple[Answer, int | None]]):
        self._found = found

    def __getitem__(self, row: int) -> Answer:
        whole, place = self._found[row]
        return whole if place is None else jax.tree.map(lambda x: x[place], whole)

    def __iter__(self) -> Iterator[Answer]:
        return (self[row] for row in range(len(self._found)))

    def still(self) -> Answers[Answer]:
        """The same results without gradient."""
        return Answers({row: (jax.lax.stop_gradient(x), i) for row, (x, i) in self._found.items()})


def together(function: Callable[..., Answer], rows: Sequence[tuple[Any, ...]]) -> Answers[Answer]:
    """`function(*row)` for each row; rows of the same shapes share one vectorised call.

    On a CPU each row is a separate call: there calls are cheap, while stacking copies memory.

    Args:
        function: a pure function.
        rows: its arguments, pytrees of arrays.
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
