"""MGD: a small network should reconstruct the teacher's map from the student's masked one.

    sum_levels  1/N  sum over images, pixels, channels of  ( t - G(f(s) * kept) )^2

`kept` is 0 at a random share of the pixels and 1 elsewhere, G two 3x3 convolutions with a ReLU
between them. N is the number of valid images: the sum grows with the map, as the authors' does,
whose small weights fit that.

An image's padding is set to 0 before each of the two convolutions, so padding does not change the
result. Whether a pixel is masked depends only on (image's key, level, row, column), not on the
canvas, the batch or the devices.

Letters: B images, h w a map, C channels.

Source: Yang et al. 2022, "Masked Generative Distillation" (arXiv 2205.01529);
det/mmdet/distillation/losses/mgd.py of the authors' yzd-v/MGD.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Key

from drkd_jax.distill.baselines.map_term import LevelLoss, MapTerm, MapTermConfig, Seen
from drkd_jax.distill.layers import (
    HIGHEST,
    BoolMap,
    FloatMap,
    count_images,
    safe_ratio,
    squares,
    uniform,
)
from drkd_jax.distill.setting_checks import is_number
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.ops.conv import convolve
from drkd_jax.types import Array

_MASKS = 0x6D6764  # keeps these draws apart from others with the same image's key


def kept_pixels(
    keys: Key[Array, "B"], level: int, shape: tuple[int, int], masked: float | int
) -> Bool[Array, "B h w"]:
    """The pixels of each image's map that are not masked.

    Args:
        keys: one random key per image.
        level: index among the paired levels; each has its own mask.
        shape: height and width of the map.
        masked: the share of pixels to mask.
    """
    height, width = shape

    # One key per row, so that a wider or higher canvas does not change the other pixels.
    def row(key: jax.Array, y: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, y), (width,), jnp.float32)

    def image(key: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, _MASKS), level)
        return jax.vmap(row, (None, 0))(own, jnp.arange(height))

    return jax.vmap(image)(keys) >= masked


class Generation(nnx.Module):
    """G: a 3x3 convolution, ReLU, a 3x3 convolution, initialised as in PyTorch."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        def weights(*shape: int) -> nnx.Param:
            return nnx.Param(uniform(rngs.params(), shape, 9 * channels))

        self.first, self.first_bias = weights(3, 3, channels, channels), weights(channels)
        self.second, self.second_bias = weights(3, 3, channels, channels), weights(channels)

    def __call__(self, x: FloatMap, mask: BoolMap) -> FloatMap:
        """The map generated from x; invalid pixels are read as 0."""
        inside = mask[..., None]
        hidden = self._convolved(jnp.where(inside, x, 0), self.first, self.first_bias)
        hidden = jnp.where(inside, jax.nn.relu(hidden), 0)
        return self._convolved(hidden, self.second, self.second_bias)

    def _convolved(self, x: jax.Array, kernel: nnx.Param, bias: nnx.Param) -> jax.Array:
        around = ((1, 1), (1, 1))
        y = convolve(
            x,
            kernel[...].astype(x.dtype),
            (1, 1),
            around,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=HIGHEST,
        )
        return y + bias[...].astype(x.dtype)


class MGD(MapTerm):
    """The term over all paired levels.

    Attributes:
        generation: G of each level.
        calls: number of training calls without keys so far. Their masks are derived from it and
            from the position in the batch, so that a loop without keys gets new masks too.
    """

    config: MGDConfig

    def __init__(self, *given: Any, rngs: nnx.Rngs):
        super().__init__(*given, rngs=rngs)
        self.generation = nnx.List([Generation(width, rngs=rngs) for width in self.channels])
        self.calls = Frozen(jnp.zeros(()))

    def __call__(self, seen: Seen) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and diagnostics named LEVEL/WHAT; they carry no gradient."""
        if seen.keys is None:
            key = jax.random.fold_in(jax.random.key(0), self.calls[...].astype(jnp.int32))
            seen = seen._replace(keys=jax.random.split(key, seen.boxes.shape[0]))
            if seen.train:
                self.calls[...] = self.calls[...] + 1
        return super().__call__(seen)

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """Sum of squares over valid pixels and channels, averaged over images."""
        assert seen.keys is not None
        kept = kept_pixels(seen.keys, level, (t.shape[1], t.shape[2]), self.config.masked)
        made = self.generation[level](jnp.where(kept[..., None], s, 0), mask)
        return safe_ratio(squares(made, t, mask), count_images(mask)), {}


@dataclasses.dataclass(frozen=True)
class MGDConfig(MapTermConfig):
    """MGD, masked generation.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves it out. The authors': 2e-5 for
            one-stage detectors, 5e-7 for two-stage ones.
        masked: the share of pixels that are masked. The authors': 0.65 for one-stage detectors,
            0.45 for two-stage ones.
    """

    masked: float | int = 0.65
    term = MGD

    def __post_init__(self) -> None:
        if not (is_number(self.masked) and 0 <= self.masked <= 1):
            raise UserError(f"distill.mgd.masked = {self.masked!r}: a share, from 0 to 1.")
