"""FGD: imitates objects, background and attention separately, and the map with its global context.

    sum_levels  fg + background bg + attention at + relation re,   each 1/N sum over images of

    fg   sum over pixels, channels of  M S C (t - f(s))^2    M: 1 / area of the smallest box there
    bg   the same with                 M: 1 / pixels outside all boxes, there
    at   |S(t) - S(s)|_1 + |C(t) - C(s)|_1
    re   sum over pixels, channels of  (R_t(t) - R_s(f(s)))^2

S = n softmax over the n pixels of (mean over channels of |x|) / T, C likewise over the channels of
the mean over pixels; the teacher's weigh fg and bg. R(x) = x + W2 relu(LN(W1 c)) is a global
context block: c is the mean of the pixels weighted by a learned softmax, and W2 starts at 0.

Letters: B images, G padded ground truths, h w a map, C channels, N valid images.

Source: Yang et al. 2022, "Focal and Global Knowledge Distillation for Detectors" (arXiv
2111.11837); mmdet/distillation/losses/fgd.py of the authors' yzd-v/FGD: a box covers the cells
from floor(low) to ceil(high) inclusive, and its area counts all of them, even past the map's edge.
The authors' weights are alpha, beta, gamma, lambda; here alpha is factored out of all. Their boxes
are stretched where a batch is padded; here a cell is always `stride` pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.baselines.map_term import LevelLoss, MapTerm, MapTermConfig, Seen
from drkd_jax.distill.layers import (
    BoolMap,
    FloatMap,
    Linear,
    accumulator,
    count_images,
    safe_ratio,
    safe_sqrt,
    squares,
)
from drkd_jax.distill.setting_checks import choice, not_negative, positive
from drkd_jax.distill.teacher_side import average_towards, prepare_teacher
from drkd_jax.types import Array

TEACHER_BLOCKS = ("trained", "frozen", "average")
_LN_EPSILON = 1e-5


def weighted_softmax(
    x: Float[Array, "B n"], mask: Bool[Array, "B n"], temperature: float | int
) -> Float[Array, "B n"]:
    """Softmax of x / temperature over the valid entries, times their number.

    Returns:
        Weights with a mean of 1 over valid entries; 0 at invalid ones.
    """
    # A finite floor: a row without valid entries would otherwise compute inf - inf.
    shares = jax.nn.softmax(jnp.where(mask, x / temperature, -1e30), axis=1)
    return jnp.where(mask, mask.sum(1, keepdims=True) * shares, 0)


def attention(
    x: FloatMap, mask: BoolMap, temperature: float | int
) -> tuple[Float[Array, "B h w"], Float[Array, "B C"]]:
    """S and C of a map: its attention over pixels and over channels; each has a mean of 1.

    Args:
        x: a map.
        mask: the valid pixels.
        temperature: T.

    Returns:
        In float32 at least; 0 for invalid pixels and for images without valid ones.
    """
    size = jnp.where(mask[..., None], jnp.abs(x.astype(accumulator(x))), 0)
    flat = mask.reshape(mask.shape[0], -1)
    pixels = weighted_softmax(size.mean(3).reshape(flat.shape), flat, temperature)
    some = jnp.broadcast_to(flat.any(1)[:, None], (x.shape[0], x.shape[3]))
    mean = safe_ratio(size.sum((1, 2)), flat.sum(1)[:, None])
    return pixels.reshape(mask.shape), weighted_softmax(mean, some, temperature)


def focal_masks(
    boxes: Float[Array, "B G 4"],
    valid: Bool[Array, "B G"],
    mask: BoolMap,
    stride: int,
) -> tuple[Float[Array, "B h w"], Float[Array, "B h w"]]:
    """The masks M of the objects and of the background.

    Args:
        boxes: ground truth, xyxy, pixels of the padded image.
        valid: rows that hold a box, not padding.
        mask: the valid map pixels.
        stride: image pixels per map pixel.

    Returns:
        1 / area of the smallest box that covers a pixel, 0 where none does; and 1 / number of
        pixels that no box covers there, 0 under boxes. 0 at invalid pixels.
    """
    cells = jnp.where(valid[..., None], boxes, 0) / stride
    low, high = jnp.floor(cells[..., :2]), jnp.ceil(cells[..., 2:])

    def covered(axis: int, size: int) -> jax.Array:
        places = jnp.arange(size)
        return (places >= low[..., axis, None]) & (places <= high[..., axis, None])

    sides = jnp.maximum(high + 1 - low, 1)  # a box with swapped corners covers no cell anyway
    over_area = jnp.where(valid, 1 / sides.prod(-1), 0)[..., None, None]
    x, y = covered(0, mask.shape[2])[:, :, None, :], covered(1, mask.shape[1])[:, :, :, None]
    objects = jnp.where(x & y, over_area, 0).max(1, initial=0)
    objects = jnp.where(mask, objects, 0)
    rest = mask & (objects == 0)
    background = safe_ratio(rest.astype(objects.dtype), rest.sum((1, 2), keepdims=True))
    return objects, background


class ContextBlock(nnx.Module):
    """R: adds to every pixel the output of a small network on the image's pooled pixels.

    Source: Cao et al. 2019, "GCNet" (arXiv 1904.11492), as `spatial_pool` and
    `channel_add_conv_s` of the authors' fgd.py, with the same initialisation.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        hidden = max(channels // 2, 1)
        he = (2 / channels) ** 0.5
        self.pool = nnx.Param(he * jax.random.normal(rngs.params(), (channels,)))
        self.first = Linear(channels, hidden, rngs=rngs)
        self.scale, self.offset = nnx.Param(jnp.ones(hidden)), nnx.Param(jnp.zeros(hidden))
        self.last = nnx.Param(jnp.zeros((hidden, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: FloatMap, mask: BoolMap) -> FloatMap:
        """The map with its context, in float32 at least."""
        x = jnp.where(mask[..., None], x.astype(accumulator(x)), 0)
        flat, inside = x.reshape(x.shape[0], -1, x.shape[-1]), mask.reshape(mask.shape[0], -1)
        # The authors' pooling has a bias, which the softmax cancels.
        logits = (flat * self.pool[...].astype(x.dtype)).sum(-1)
        shares = jax.nn.softmax(jnp.where(inside, logits, -1e30), axis=1)
        context = (jnp.where(inside, shares, 0)[..., None] * flat).sum(1)
        hidden = self.first(context)
        off = hidden - hidden.mean(1, keepdims=True)
        hidden = off * jax.lax.rsqrt((off * off).mean(1, keepdims=True) + _LN_EPSILON)
        hidden = hidden * self.scale[...].astype(x.dtype) + self.offset[...].astype(x.dtype)
        added = (jax.nn.relu(hidden)[..., None] * self.last[...].astype(x.dtype)).sum(1)
        return x + (added + self.bias[...].astype(x.dtype))[:, None, None]


class FGD(MapTerm):
    """The term over all paired levels.

    Attributes:
        student, teacher: R of each level.
    """

    config: FGDConfig

    def __init__(self, *given: Any, rngs: nnx.Rngs):
        super().__init__(*given, rngs=rngs)
        # The blocks of both sides have the teacher's channels.
        self.student = nnx.List([ContextBlock(width, rngs=rngs) for width in self.channels])
        self.teacher = nnx.List([ContextBlock(width, rngs=rngs) for width in self.channels])
        prepare_teacher(self.teacher, self.student, self.config.teacher_modules)

    def __call__(self, seen: Seen) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and diagnostics named LEVEL/WHAT; they carry no gradient."""
        found = super().__call__(seen)
        if seen.train and self.config.teacher_modules == "average":
            average_towards(self.teacher, self.student, self.config.momentum)
        return found

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """The sum of the four parts with their relative weights, and each part for the log."""
        config, wide, images = self.config, accumulator(s, t), count_images(mask)
        s, t = (jnp.where(mask[..., None], x.astype(wide), 0) for x in (s, t))
        stride, boxes = self.pairs[level].stride, seen.boxes.astype(wide)
        objects, background = focal_masks(boxes, seen.valid, mask, stride)
        pixels_s, channels_s = attention(s, mask, config.temperature)
        pixels_t, channels_t = attention(t, mask, config.temperature)
        off = t - s
        focal = (off * off * channels_t[:, None, None]).sum(-1) * pixels_t
        related_s, related_t = self.student[level](s, mask), self.teacher[level](t, mask)
        off_pixels, off_channels = jnp.abs(pixels_t - pixels_s), jnp.abs(channels_t - channels_s)
        sums = {
            "objects": (focal * objects).sum(),
            "background": (focal * background).sum(),
            "attention": off_pixels.sum() + off_channels.sum(),
            "relation": squares(related_s, related_t, mask),
        }
        parts = {name: safe_ratio(value, images) for name, value in sums.items()}
        loss = (
            parts["objects"]
            + config.background * parts["background"]
            + config.attention * parts["attention"]
            + config.relation * parts["relation"]
        )
        # For monitoring/collapse.py: a trained teacher block can cancel its own map.
        after = jnp.where(mask[..., None], related_t, 0)
        norm = safe_sqrt(safe_ratio((after * after).sum(), (t * t).sum()))
        return loss, {**parts, "teacher_norm": norm}


@dataclasses.dataclass(frozen=True)
class FGDConfig(MapTermConfig):
    """FGD, focal and global distillation.

    Attributes:
        weight: alpha, what the loss is multiplied by in the total; 0 leaves it out. The authors':
            1e-3 for one-stage detectors, 5e-5 for two-stage ones.
        background: beta / alpha. The authors': 0.5.
        attention: gamma / alpha. The authors': 0.5 for one-stage detectors, 1 for two-stage ones.
        relation: lambda / alpha. The authors': 0.005 for one-stage detectors, 0.01 for two-stage
            ones.
        temperature: T. The authors': 0.5.
        teacher_modules: the teacher's context block: "trained" by the same loss, as the authors';
            "frozen", which stays the identity; or "average" of the student's over time.
        momentum: for "average": the share of the running average that a step keeps.
    """

    background: float | int = 0.5
    attention: float | int = 0.5
    relation: float | int = 0.005
    temperature: float | int = 0.5
    teacher_modules: str = "trained"
    momentum: float | int = 0.999
    term = FGD

    def __post_init__(self) -> None:
        positive("fgd.temperature", self.temperature)
        for name in ("background", "attention", "relation"):
            not_negative(f"fgd.{name}", getattr(self, name))
        choice("fgd", "teacher_modules", self.teacher_modules, TEACHER_BLOCKS)
