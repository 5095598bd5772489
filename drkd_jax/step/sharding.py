"""One mesh axis, "data": images are sharded over the devices, everything else is replicated."""

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
    """All devices along one axis, "data"; the compiler chooses any sharding left unspecified."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis sharded over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def each_device(mesh: Mesh | None, function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Wraps a function so that every device processes only its own images.

    Otherwise, for each grouped convolution, the compiler gathers all images' features on every
    device and computes the whole convolution there (openxla/xla issue 47945).

    Args:
        mesh: as returned by `data_mesh`; for None or a single device the function is returned
            unchanged.
        function: its first argument holds replicated arrays; the others, and its result, are
            pytrees whose first axis is the images. An image's result must not depend on other
            images.
    """
    if mesh is None or mesh.size == 1:
        return function

    def spread(everywhere: Any, *images: Any) -> Tree:
        own = PartitionSpec("data")
        places = (PartitionSpec(), *(own for _ in images))
        # The gradient of replicated arrays is summed over the devices.
        return jax.shard_map(function, mesh=mesh, in_specs=places, out_specs=own, check_vma=False)(
            everywhere, *images
        )

    return spread


def check_batch_size(batch_size: int, devices: int, processes: int = 1) -> None:
    """Refuses a batch size that is not a multiple of the number of devices.

    Args:
        batch_size: images over all devices.
        devices: number of devices of all processes.
        processes: number of processes, for the message.

    Raises:
        UserError: names the nearest sizes that are.
    """
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        of = f" of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"config.train.batch_size = {batch_size} does not divide over {devices} devices{of}; "
            f"use {nearest}"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's share of a batch onto its devices."""
    sharding = split(mesh)
    return Batch(
        *(jax.make_array_from_process_local_data(sharding, np.asarray(leaf)) for leaf in batch)
    )


def put_stacked(batch: Batch, mesh: Mesh) -> Batch:
    """This process's share of a batch as `jax.pmap` takes it: one leading row per device."""
    devices = mesh.local_mesh.size
    return Batch(*(np.asarray(leaf).reshape(devices, -1, *np.shape(leaf)[1:]) for leaf in batch))


def put_everywhere(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a whole pytree of arrays to every device of the mesh.

    Every process must hold the same arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh), may_alias=False)

    def put(leaf: jax.Array) -> jax.Array:
        own = np.array(leaf)
        return jax.make_array_from_callback(own.shape, replicated(mesh), lambda index: own[index])

    return jax.tree.map(put, tree)
