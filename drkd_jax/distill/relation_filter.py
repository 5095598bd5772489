"""The relation filter w: which pairs of boxes matter, a softmax over the boxes j for each box i.

The author's filter is a linear layer from a box's numbers to n outputs, made anew with random
weights at each step: nothing trains it, and output j belongs to a place in the list, not to a box.
`LearnedFilter` keeps the meaning (a linear map of x_i whose output j is about box j) and lets box j
bring the weights of its own output along, so it serves any number of boxes in any order.

Letters: B pictures, n boxes, D numbers of a region, r rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.layers import Linear, LinearMap, product, uniform
from drkd_jax.frozen import Frozen
from drkd_jax.types import Array


def masked_softmax(
    logits: Float[Array, "B n n"], valid: Bool[Array, "B n"], *, diagonal: bool = True
) -> Float[Array, "B n n"]:
    """Softmax over the valid boxes j; 0 elsewhere, and in rows of boxes that are not valid.

    Without the diagonal a box does not look at itself. A picture without boxes gives zeros with
    gradient 0.
    """
    pairs = valid[:, :, None] & valid[:, None, :]
    if not diagonal:
        pairs = pairs & ~jnp.eye(logits.shape[-1], dtype=bool)
    # A finite floor: a row without any valid box must not meet inf - inf.
    floor = jnp.where(pairs, logits, -1e30)
    return jnp.where(pairs, jax.nn.softmax(floor, axis=-1), 0)


class LearnedFilter(nnx.Module):
    """w_ij = softmax_j( <u(x_i), v(x_j)> / sqrt(r) + c(x_j) ), linear u, v and c."""

    def __init__(self, inputs: int, rank: int, *, rngs: nnx.Rngs):
        self.query = Linear(inputs, rank, rngs=rngs)
        self.key = Linear(inputs, rank, rngs=rngs)
        self.offset = LinearMap(inputs, 1, rngs=rngs)  # a bias would fall out

    def __call__(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """The filter of each picture's boxes; 0 where a box is not valid."""
        query, key = self.query(x), self.key(x)
        logits = product("bir,bjr->bij", query, key) * query.shape[-1] ** -0.5
        return masked_softmax(logits + self.offset(x)[..., 0][:, None, :], valid)


class RandomFilter(nnx.Module):
    """The author's filter with its randomness drawn once: the first n outputs serve n boxes.

    Source: `resize` of the relation class in mmdet/models/detectors/two_stage.py of the author's
    release, where the layer is made anew at each call.
    """

    def __init__(self, inputs: int, most: int, *, rngs: nnx.Rngs):
        self.kernel = Frozen(uniform(rngs.params(), (inputs, most), inputs))
        self.bias = Frozen(uniform(rngs.params(), (most,), inputs))

    def __call__(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """The filter of each picture's boxes; 0 where a box is not valid."""
        n = x.shape[1]
        kernel, bias = self.kernel[:, :n].astype(x.dtype), self.bias[:n].astype(x.dtype)
        return masked_softmax(product("bid,dj->bij", x, kernel) + bias, valid)
