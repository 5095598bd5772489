"""A step's batch in parts, one after the other: the memory of a part, the update of the whole.

    gradient = sum_k pictures_k gradient(part k) / sum_k pictures_k

Each part is normalised over itself (its positives, its boxes, its batch statistics), as where a
framework adds up the gradients of small batches; so it is not the gradient of the whole batch at
once. The optimiser, the step's number and its random keys know nothing of the parts.

Letters: B pictures of a batch, N parts.
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

# Diagnostics that are numbers of a batch, not means over its pictures.
COUNTS = ("diag/boxes", "diag/boxes_left_out")
# How those end that are exactly 0 where no picture had boxes enough to relate.
OF_RELATIONS = "_entropy"


class Gradient(NamedTuple):
    """What a batch, or a part of one, asks of the parameters."""

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    model_state: dict[str, Arrays]  # what the forward pass made of the arrays that are not trained
    gradient: dict[str, Arrays]


def split_batch(batch: Batch, parts: int, mesh: Mesh | None = None) -> Batch:
    """The batch's arrays as [N, B / N, ...]; part k has the rows k, k + N, k + 2 N, ...

    So every device keeps its own rows, a part is the same on any number of devices, and rows that
    only fill the batch up, which are its last ones, are shared out.

    Args:
        batch: the global batch; or a device's rows of it.
        parts: N, which divides each device's rows.
        mesh: over which the batch is spread; None: it is not.
    """

    def split(leaf: Array) -> Array:
        cut = jnp.asarray(leaf).reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None or mesh.size == 1:
            return cut
        place = NamedSharding(mesh, PartitionSpec(None, "data"))
        return jax.lax.with_sharding_constraint(cut, place)

    return Batch(*map(split, batch))


def first_part(batch: Batch, parts: int, mesh: Mesh | None = None) -> Batch:
    """The first part of a batch; all of it where there is one part."""
    if parts == 1:
        return batch
    return Batch(*(leaf[0] for leaf in split_batch(batch, parts, mesh)))


def loop_length(parts: int) -> int:
    """How often the step's loop goes round; 1: the parts stand one after the other in the program.

    XLA's CPU backend has only its slow convolutions for the inside of a loop: thirty times the time
    of four 3x3 convolutions of 32 channels with their gradients.
    """
    return 1 if platform() == "cpu" else parts


def accumulate(
    gradient: Callable[[dict[str, Arrays], Batch], Gradient],
    params: dict[str, Arrays],
    model_state: dict[str, Arrays],
    parts: Batch,
    gather: Callable[[Any], Any] = lambda tree: tree,
) -> Gradient:
    """The mean over the parts, by their pictures, of gradient, losses and diagnostics.

    `COUNTS` are added up; `OF_RELATIONS` are of the parts that have one.

    Args:
        gradient: of a part, by the arrays that are not trained and the part.
        params: the trained arrays.
        model_state: the others; what one part makes of them the next one sees.
        parts: of `split_batch`.
        gather: makes the whole of every device's part of a pytree.
    """
    number = parts.picture_valid.shape[0]
    pictures = gather(parts.picture_valid.sum(1)).reshape(-1, number).sum(0).astype(jnp.float32)
    shares = pictures / jnp.maximum(pictures.sum(), 1.0)

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
