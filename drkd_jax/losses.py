"""The detectors' own losses per element; the caller sums and normalises them.

bfloat16 logits are converted first; results are float32, except that `focal` returns float64 for
float64 logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax.types import Array


def focal(
    logits: Float[Array, "*N"],
    positive: Bool[Array, "*N"],
    gamma: float | int = 2.0,
    alpha: float | int = 0.25,
) -> Float[Array, "*N"]:
    """Sigmoid focal loss of each logit.

    ``-alpha_t (1 - p_t)^gamma log(p_t)``, where p_t is the probability of the truth.

    Args:
        logits: any shape.
        positive: the truth, of the same shape.
        gamma: focusing parameter.
        alpha: weight of the positives; negatives weigh ``1 - alpha``.

    Returns:
        The loss of each element, not summed.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
    """
    toward = jnp.where(positive, logits, -logits)
    toward = toward.astype(jnp.promote_types(jnp.float32, toward.dtype))
    log_truth = jax.nn.log_sigmoid(toward)
    # (1 - p_t)^gamma through its logarithm avoids powers of 0, so gradients stay finite.
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-toward))
    return -jnp.where(positive, alpha, 1.0 - alpha) * modulation * log_truth


def binary_cross_entropy(
    logits: Float[Array, "*N"], positive: Bool[Array, "*N"]
) -> Float[Array, "*N"]:
    """Cross-entropy of each sigmoid logit against a binary label."""
    return -jax.nn.log_sigmoid(jnp.where(positive, logits, -logits).astype(jnp.float32))


def cross_entropy(logits: Float[Array, "*N K"], labels: Int[Array, "*N"]) -> Float[Array, "*N"]:
    """Cross-entropy of each softmax row against its class.

    Args:
        logits: ``[..., K]``.
        labels: ``[...]``, 0..K-1.

    Returns:
        ``[...]``, not summed.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]


def smooth_l1(
    a: Float[Array, "*N 4"], b: Float[Array, "*N 4"], beta: float | int
) -> Float[Array, "*N"]:
    """Sum of the four smooth absolute differences of each row.

    A difference d costs ``d^2 / (2 beta)`` up to ``|d| = beta`` and ``|d| - beta / 2`` beyond: it
    has the slope of L1 away from 0 and is smooth at 0.

    Args:
        a: rows of four numbers.
        b: rows of four numbers.
        beta: where the parabola meets the line; with 0 this is L1.

    Source: Girshick 2015, "Fast R-CNN", equation 3; ``beta`` as in pytorch/vision's detectors.
    """
    size = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
    if beta == 0:
        return jnp.sum(size, axis=-1)
    return jnp.sum(jnp.where(size < beta, size * size / (2 * beta), size - beta / 2), axis=-1)
