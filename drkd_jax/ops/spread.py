"""Runs work on images separately on each device, without communication.

If the compiler shards a loop that ends when every image is done, each round of it needs
communication between all devices. Inside `spread_over` such a loop is split per device before it is
compiled.
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
    """Declares that images traced inside are sharded over the mesh's one axis; None: not."""
    token = _spread.set(mesh)
    try:
        yield
    finally:
        _spread.reset(token)


def by_device(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Wraps a function of images so that each device runs it on its own images.

    Args:
        function: takes and returns pytrees whose first axis is the images; an image's result
            must not depend on other images.
    """
    mesh = _spread.get()
    if mesh is None or mesh.size == 1:
        return function
    own = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=own, check_vma=False)
