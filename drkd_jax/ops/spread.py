"""Work on pictures that each device does for its own, without a word to the others.

A loop that ends when every picture is done asks all devices at each of its rounds, once the
compiler spreads it. Inside of `spread_over` such a loop is cut before it is compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import jax
from jax.sharding import Mesh, PartitionSpec

Tree = TypeVar("Tree")

_spread: ContextVar[Mesh | None] = ContextVar("spread", default=None)


@contextlib.contextmanager
def spread_over(mesh: Mesh | None) -> Iterator[None]:
    """Pictures of what is traced inside are spread over the mesh's one axis; None: they are not."""
    token = _spread.set(mesh)
    try:
        yield
    finally:
        _spread.reset(token)


def by_device(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """A function of pictures, run by each device for its own of them.

    Args:
        function: of pytrees whose first axis is the pictures, as in what it returns; a picture's
            result must not hang on other pictures.
    """
    mesh = _spread.get()
    if mesh is None or mesh.size == 1:
        return function
    own = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=own, check_vma=False)
