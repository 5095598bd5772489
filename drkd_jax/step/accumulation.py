"""Gradient accumulation: a batch is processed in parts, with the memory of one and one update.

    gradient = sum_k images_k gradient(part k) / sum_k images_k

Each part is normalised over itself (its positives, its boxes, its batch statistics), as is usual
for gradient accumulation; the result is therefore not exactly the gradient of the whole batch. The
optimiser, the step's number and its random keys do not depend on the parts.

Letters: B images of a batch, N parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from drkd_jax.distill.layers import safe_ratio
from drkd_jax.ops.platform import platform
from drkd_jax.step.state import Arrays
from drkd_jax.types import Array, Batch

# Diagnostics that are counts over a batch, not means over its images.
COUNTS = ("diag/boxes", "diag/boxes_left_out")
# Suffix of the diagnostics that are exactly 0 if no image has enough boxes to relate.
OF_RELATIONS = "_entropy"


class Gradient(NamedTuple):
    """The gradient of a batch, or of a part of one, with the values that come with it."""

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    model_state: dict[str, Arrays]  # the untrained arrays after the forward pass
    gradient: dict[str, Arrays]


def split_batch(batch: Batch, parts: int, mesh: Mesh | None = None) -> Batch:
    """The batch's arrays as [N, B / N, ...]; part k has the rows k, k + N, k + 2 N, ...

    This way every device keeps its own rows, a part is the same on any number of devices, and the
    padding rows at the end of the batch are spread over the parts.

    Args:
        batch: the global batch; or a device's rows of it.
        parts: N, a divisor of the number of rows per device.
        mesh: the mesh that the batch is sharded over; None: it is not sharded.
    """

    def split(leaf: Array) -> Array:
        cut = jnp.asarray(leaf).reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None or mesh.size == 1:
            return cut
        place = NamedSharding(mesh, PartitionSpec(None, "data"))
        return jax.lax.with_sharding_constraint(cut, place)

    return Batch(*map(split, batch))


def first_part(batch: Batch, parts: int, mesh: Mesh | None = None) -> Batch:
    """The first part of a batch; the whole batch if there is only one part."""
    if parts == 1:
        return batch
    return Batch(*(leaf[0] for leaf in split_batch(batch, parts, mesh)))


def loop_length(parts: int) -> int:
    """The number of loop iterations; 1: the loop is unrolled.

    Inside a loop XLA's CPU backend uses only its slow convolutions: four 3x3 convolutions of 32
    channels with their gradients take thirty times as long.
    """
    return 1 if platform() == "cpu" else parts


def accumulate(
    gradient: Callable[[dict[str, Arrays], Batch], Gradient],
    params: dict[str, Arrays],
    model_state: dict[str, Arrays],
    parts: Batch,
    gather: Callable[[Any], Any] = lambda tree: tree,
) -> Gradient:
    """The mean of gradient, losses and diagnostics over the parts, weighted by their images.

    `COUNTS` are summed; `OF_RELATIONS` are averaged over the parts in which they are not 0.

    Args:
        gradient: computes the gradient of a part from the untrained arrays and the part.
        params: the trained arrays.
        model_state: the untrained arrays; each part passes its updated ones on to the next.
        parts: as returned by `split_batch`.
        gather: gathers every device's part of a pytree into the whole.
    """
    number = parts.image_valid.shape[0]
    images = gather(parts.image_valid.sum(1)).reshape(-1, number).sum(0).astype(jnp.float32)
    shares = images / jnp.maximum(images.sum(), 1.0)

    def add(carry: Any, part: Any) -> Any:
        (model_state, sums), (batch, share) = carry, part
        found = gradient(model_state, batch)
        sums = jax.tree.map(
            lambda total, own: total + share.astype(own.dtype) * own, sums, found.gradient
        )
        return (found.model_state, sums), (found.total, found.terms)

    start = model_state, jax.tree.map(jnp.zeros_like, params)
    unroll = loop_length(number) == 1
    (model_state, sums), values = jax.lax.scan(add, start, (parts, shares), unroll=unroll)
    total, terms = jax.tree.map(lambda value: (shares * value).sum(), values)
    terms |= {name: values[1][name].sum() for name in COUNTS if name in terms}
    for name in terms:
        if name.endswith(OF_RELATIONS):
            there = jnp.where(values[1][name] == 0, 0.0, shares).sum()
            terms[name] = safe_ratio(terms[name], there)
    return Gradient(total, terms, model_state, sums)
