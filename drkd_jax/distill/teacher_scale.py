"""Takes the teacher's own scale out of the default form.

Mean squares in the teacher's units make a weight mean another thing for every teacher, and for
every level of one: here each level is divided by its standard deviation first, so that a mean
square of 1 is "nothing explained" everywhere and features times ten change nothing.

Letters: B images, h w a map, C channels, L paired levels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.layers import accumulator, safe_ratio
from drkd_jax.frozen import Frozen
from drkd_jax.types import Array

MOMENTUM = 0.01  # share of the newest batch in the running variance


def variance(x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"]) -> Float[Array, ""]:
    """Variance over the valid pixels of a batch about each channel's mean, averaged over channels.

    Args:
        x: a map.
        mask: pixels that count.

    Returns:
        0 where no pixel counts.
    """
    dtype = accumulator(x)
    mask = jnp.asarray(mask)
    count = mask.sum().astype(dtype)
    inside = mask[..., None]
    mean = safe_ratio(jnp.where(inside, x.astype(dtype), 0).sum((0, 1, 2)), count)
    off = jnp.where(inside, x.astype(dtype) - mean, 0)
    return safe_ratio((off * off).sum(), count * x.shape[-1])


class TeacherScale(nnx.Module):
    """One running variance a level; the first batch sets it, later ones move it a hundredth.

    Attributes:
        variance: the running variances; 0 until a level was seen.
    """

    def __init__(self, levels: int):
        self.variance = Frozen(jnp.zeros(levels))

    def __call__(
        self,
        maps: tuple[Float[Array, "B _h _w _C"], ...],
        masks: tuple[Bool[Array, "B _h _w"], ...],
        *,
        train: bool,
    ) -> tuple[Float[Array, "B _h _w _C"], ...]:
        """The maps divided by their level's standard deviation, in their own dtype.

        Args:
            maps: one a paired level.
            masks: pixels that count.
            train: move the running variances; else they stay (a level not seen yet is divided by
                its own deviation in this batch).
        """
        old = self.variance[...]
        batch = jnp.stack([variance(x, m) for x, m in zip(maps, masks, strict=True)])
        moved = jnp.where(old > 0, old + MOMENTUM * (batch.astype(old.dtype) - old), batch)
        # A batch without a valid pixel (or a dead level) has nothing to say.
        used = jnp.where(batch > 0, moved, old) if train else jnp.where(old > 0, old, batch)
        used = jax.lax.stop_gradient(used)
        if train:
            self.variance[...] = used.astype(old.dtype)
        factor = jnp.where(used > 0, jax.lax.rsqrt(jnp.where(used > 0, used, 1)), 1)
        return tuple(x * factor[i].astype(x.dtype) for i, x in enumerate(maps))
