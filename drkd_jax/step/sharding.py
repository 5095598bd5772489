"""One mesh axis, "data": pictures are spread over the devices, everything else is everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from drkd_jax.errors import UserError
from drkd_jax.types import Batch

Tree = TypeVar("Tree")


def data_mesh() -> Mesh:
    """All devices along one axis, "data"; the compiler places what is not said."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def each_device(mesh: Mesh | None, function: Callable[..., Tree]) -> Callable[..., Tree]:
    """A function whose every device sees its own pictures alone.

    Left to itself the compiler gathers all pictures' features on every device for each grouped
    convolution, and computes it whole there (openxla/xla issue 47945).

    Args:
        mesh: of `data_mesh`; for None and one device the function is returned as it is.
        function: of arrays that are everywhere, and then of pytrees whose first axis is the
            pictures, as in what it returns; a picture's result must not hang on other pictures.
    """
    if mesh is None or mesh.size == 1:
        return function

    def spread(everywhere: Any, *pictures: Any) -> Tree:
        own = PartitionSpec("data")
        places = (PartitionSpec(), *(own for _ in pictures))
        # Arrays that are everywhere have a gradient that is summed over the devices.
        return jax.shard_map(function, mesh=mesh, in_specs=places, out_specs=own, check_vma=False)(
            everywhere, *pictures
        )

    return spread


def check_batch_size(
    batch_size: int, devices: int, processes: int = 1, key: str = "config.train.batch_size"
) -> None:
    """Refuses a batch that does not spread evenly.

    Args:
        batch_size: pictures over all devices.
        devices: of all processes.
        processes: how many there are, for the message.
        key: where the size stands.

    Raises:
        UserError: names the nearest sizes that do.
    """
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        of = f" of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"{key} = {batch_size} does not divide over {devices} devices{of}; use {nearest}"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's share of a batch onto its devices."""
    sharding = split(mesh)
    return Batch(
        *(jax.make_array_from_process_local_data(sharding, np.asarray(leaf)) for leaf in batch)
    )


def put_stacked(batch: Batch, mesh: Mesh) -> Batch:
    """This process's share of a batch as `jax.pmap` takes it: one leading row a device."""
    devices = mesh.local_mesh.size
    return Batch(*(np.asarray(leaf).reshape(devices, -1, *np.shape(leaf)[1:]) for leaf in batch))


def put_everywhere(tree: Tree, mesh: Mesh) -> Tree:
    """A pytree of arrays, whole, on every device of the mesh; always a copy of its own.

    Every process has to hold the same arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh), may_alias=False)

    def put(leaf: jax.Array) -> jax.Array:
        own = np.array(leaf)
        return jax.make_array_from_callback(own.shape, replicated(mesh), lambda index: own[index])

    return jax.tree.map(put, tree)
