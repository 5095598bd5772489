"""The GloRe unit: project pixels onto a few graph nodes, let these interact, project back.

Letters: B images, P pixels of a map, C channels, S states (2m), M nodes (m), N groups of
images that share their batch statistics.

Source: the paper's section 3.1 and mmdet/models/detectors/GloRe.py of the author's release, whose
formulas determine the parameter layout (kernels here are inputs x outputs).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Shaped

from drkd_jax.distill.layers import Linear, LinearMap, accumulator, product, safe_ratio, uniform
from drkd_jax.types import Array

BN_EPS = 1e-4
BN_MOMENTUM = 0.1


class Moments(NamedTuple):
    """Mean and (biased) variance of each channel per group, and the number of pixels in each."""

    mean: Float[Array, "N C"]
    variance: Float[Array, "N C"]
    count: Float[Array, "N"]


def grouped(values: Shaped[Array, "B ..."], groups: int) -> Shaped[Array, "N K ..."]:
    """Splits the leading axis into groups of consecutive images."""
    return values.reshape(groups, values.shape[0] // groups, *values.shape[1:])


def moved(
    mean: Float[Array, "C"], variance: Float[Array, "C"], moments: Moments
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """The running statistics, moved a tenth of the way to the batch's, averaged over groups.

    As in PyTorch, the running variance is the unbiased one. Groups without valid pixels are
    ignored; if no group has any, the statistics stay as they are.
    """
    moments = jax.lax.stop_gradient(moments)
    seen = (moments.count > 0)[:, None]
    unbiased = moments.variance * (moments.count / jnp.maximum(moments.count - 1, 1))[:, None]
    num_groups = seen.sum()
    step = jnp.where(num_groups > 0, BN_MOMENTUM, 0.0)

    def towards(old: jax.Array, fresh: jax.Array) -> jax.Array:
        target = jnp.where(seen, fresh, 0).sum(0) / jnp.maximum(num_groups, 1)
        return (old + step * (target - old)).astype(old.dtype)

    return towards(mean, moments.mean), towards(variance, unbiased)


class BatchNorm(nnx.Module):
    """Scale, bias and running statistics; the caller computes the batch statistics.

    The plain and the Gram form both use it; each computes the moments in its own way.
    """

    def __init__(self, channels: int, scale: float | int = 1.0):
        # An explicit dtype: a weakly typed initial value would make the step compile twice.
        self.scale = nnx.Param(jnp.full(channels, scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.variance = nnx.BatchStat(jnp.ones(channels))

    def running(self) -> Moments:
        """The running statistics, as one group."""
        return Moments(self.mean[...][None], self.variance[...][None], jnp.ones(1))

    def remember(self, moments: Moments) -> None:
        """Moves the running statistics a tenth of the way to these moments."""
        self.mean[...], self.variance[...] = moved(self.mean[...], self.variance[...], moments)

    def affine(self, moments: Moments) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
        """Gain and shift per group: normalised y = gain * y + shift."""
        gain = self.scale[...] * jax.lax.rsqrt(moments.variance + BN_EPS)
        return gain, self.bias[...] - moments.mean * gain


class GraphUnit(nnx.Module):
    """phi(x) = x + BN(extend(graph(x))) over one map.

    Attributes:
        state: W_s, channels to states.
        projection: W_b, channels to nodes; used to project both to the nodes and back.
        adjacency: A of the graph convolution, a linear map over the nodes (with its bias a).
        mix: W_g, a linear map over the states, no bias.
        extend: W_e, states back to channels, no bias.
        norm: the batch normalisation of the branch.
    """

    def __init__(
        self,
        channels: int,
        nodes: int,
        *,
        normalize: bool,
        scale: float | int = 1.0,
        rngs: nnx.Rngs,
    ):
        """Makes the unit.

        Args:
            channels: C.
            nodes: m.
            normalize: divide the node sums by the number of pixels.
            scale: initial scale of the branch's normalisation, which is the branch's standard
                deviation; with 0 the unit starts as the identity.
            rngs: random numbers for the initial weights.
        """
        states = 2 * nodes
        self.normalize = normalize
        self.state = Linear(channels, states, rngs=rngs)
        self.projection = Linear(channels, nodes, rngs=rngs)
        self.adjacency = Linear(nodes, nodes, rngs=rngs)
        self.mix = nnx.Param(uniform(rngs.params(), (states, states), states))
        self.extend = LinearMap(states, channels, rngs=rngs)
        self.norm = BatchNorm(channels, scale)

    def reason(
        self, nodes: Float[Array, "B S M"], count: Float[Array, "B"]
    ) -> Float[Array, "B S M"]:
        """The graph convolution on the node matrix V: W_g ReLU(V + V A^T + a).

        Args:
            nodes: V, sums over the pixels.
            count: number of summed pixels of each image.
        """
        if self.normalize:
            nodes = nodes / jnp.maximum(count, 1)[:, None, None]
        dtype = nodes.dtype
        talked = nodes + product("bsm,mk->bsk", nodes, self.adjacency.kernel[...].astype(dtype))
        talked = talked + self.adjacency.bias[...].astype(dtype)
        return product("bsm,st->btm", jax.nn.relu(talked), self.mix[...].astype(dtype))

    def branch(self, x: Float[Array, "B P C"], mask: Bool[Array, "B P"]) -> Float[Array, "B P C"]:
        """The branch before its normalisation: project to nodes, reason, project back, extend."""
        state, way = self.state(x), self.projection(x)
        count = mask.sum(1).astype(accumulator(x))
        nodes = product("bps,bpm->bsm", jnp.where(mask[:, :, None], state, 0), way)
        answer = self.reason(nodes, count).astype(x.dtype)
        return self.extend(product("bpm,bsm->bps", way, answer).astype(x.dtype))

    def moments(
        self, branch: Float[Array, "B P C"], mask: Bool[Array, "B P"], groups: int
    ) -> Moments:
        """Mean and variance of the branch over the valid pixels of each group."""
        wide = grouped(branch.astype(accumulator(branch)), groups)
        inside = grouped(mask, groups)[..., None]
        count = inside.sum((1, 2, 3)).astype(wide.dtype)
        mean = safe_ratio(jnp.where(inside, wide, 0).sum((1, 2)), count[:, None])
        off = jnp.where(inside, wide - mean[:, None, None], 0)
        return Moments(mean, safe_ratio((off * off).sum((1, 2)), count[:, None]), count)

    def __call__(
        self, x: Float[Array, "B P C"], mask: Bool[Array, "B P"], *, groups: int = 1, train: bool
    ) -> Float[Array, "B P C"]:
        """The relation features of one map.

        Args:
            x: the map, with its pixels flattened into one axis.
            mask: the pixels that contribute to nodes and statistics.
            groups: how many groups the batch is split into; each has its own statistics.
            train: normalise by batch statistics and update the running ones; otherwise normalise
                by the running ones.

        Returns:
            phi(x), in x's dtype. Values outside the mask are meaningless.
        """
        mask = jnp.asarray(mask)
        branch = self.branch(x, mask)
        moments = self.moments(branch, mask, groups) if train else self.norm.running()
        if train:
            self.norm.remember(moments)
        gain, shift = self.norm.affine(moments)
        each = x.shape[0] // gain.shape[0]
        gain, shift = (
            jnp.repeat(row, each, axis=0)[:, None].astype(x.dtype) for row in (gain, shift)
        )
        return x + branch * gain + shift
