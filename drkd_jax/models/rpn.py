"""Region proposal network: its head, its losses, its proposals.

Letters: B images, A anchors (of all levels, or of one if stated), R regions, C channels,
h w one feature map.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Key

from drkd_jax import boxes as box_ops
from drkd_jax import losses as loss_ops
from drkd_jax.models.conventions import Conventions
from drkd_jax.models.dense import Assigned, sizable, take_rows
from drkd_jax.models.initializers import normal
from drkd_jax.models.resnet import conv
from drkd_jax.models.settings import FasterRCNNSettings, SamplerSettings
from drkd_jax.ops.conv import convolve
from drkd_jax.ops.nms import nms
from drkd_jax.ops.relu import relu
from drkd_jax.ops.sampling import Sampled, sample
from drkd_jax.ops.spread import by_device
from drkd_jax.ops.top_k import top_k
from drkd_jax.types import Array, Targets


class Proposals(NamedTuple):
    """Regions of each image by descending score; rows past the last region are invalid."""

    boxes: Float[Array, "B R 4"]
    scores: Float[Array, "B R"]
    valid: Bool[Array, "B R"]


class RPNHead(nnx.Module):
    """3x3 convolutions (usually one), then an objectness logit and deltas for every anchor.

    The two 1x1 convolutions run as one with concatenated filters, so that their input is read once
    and has one gradient. Their parameters stay separate.

    Source: open-mmlab/mmdetection mmdet/models/dense_heads/rpn_head.py; several convolutions also
    pytorch/vision torchvision/models/detection/rpn.py (fasterrcnn_resnet50_fpn_v2).
    """

    def __init__(self, settings: FasterRCNNSettings, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        C, per_cell = settings.channels, settings.anchors.num_per_cell
        init = normal(settings.head_std)

        def layer(outputs: int, size: int) -> nnx.Conv:
            return conv(C, outputs, size, bias=True, kernel_init=init, rngs=rngs, dtype=dtype)

        self.conv = layer(C, 3)
        self.more_convs = nnx.List(layer(C, 3) for _ in range(settings.rpn_convs - 1))
        self.cls = layer(per_cell, 1)
        self.box = layer(per_cell * 4, 1)

    def __call__(
        self, maps: tuple[Float[jax.Array, "B _h _w C"], ...]
    ) -> tuple[tuple[Float[Array, "B _A"], ...], tuple[Float[Array, "B _A 4"], ...]]:
        """Logits and deltas of each level, float32, anchors in `level_anchors`' order."""
        logits, deltas = [], []
        for x in maps:
            B = x.shape[0]
            x = relu(self.conv(x))
            for layer in self.more_convs:
                x = relu(layer(x))
            of_cls, of_box = side_by_side(self.cls, self.box, x)
            logits.append(of_cls.reshape(B, -1).astype(jnp.float32))
            deltas.append(of_box.reshape(B, -1, 4).astype(jnp.float32))
        return tuple(logits), tuple(deltas)


def side_by_side(
    first: nnx.Conv, second: nnx.Conv, x: Float[jax.Array, "B h w C"]
) -> tuple[Float[jax.Array, "B h w _D"], Float[jax.Array, "B h w _D"]]:
    """``first(x), second(x)`` by one convolution with the concatenated filters of both.

    Args:
        first: 1x1, with a bias.
        second: 1x1, with a bias, of the same dtype.
        x: the input.
    """
    assert first.bias is not None
    assert second.bias is not None
    kernel = jnp.concatenate([first.kernel[...], second.kernel[...]], axis=-1)
    bias = jnp.concatenate([first.bias[...], second.bias[...]])
    out = convolve(
        x.astype(first.dtype),
        kernel.astype(first.dtype),
        (1, 1),
        ((0, 0), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    out = out + bias.astype(first.dtype)
    width = first.kernel.shape[-1]
    return out[..., :width], out[..., width:]


def sample_anchors(assigned: Assigned, keys: Key[Array, "B"], settings: SamplerSettings) -> Sampled:
    """Sample the anchors of each image that the losses use; every field is ``[B, M]``."""
    most = int(settings.rpn * settings.rpn_positive)
    draw = jax.vmap(lambda key, p, n: sample(key, p, n, settings.rpn, most))
    return by_device(draw)(keys, assigned.positive, assigned.negative)


def rpn_losses(
    logits: Float[Array, "B A"],
    deltas: Float[Array, "B A 4"],
    anchors: Float[Array, "A 4"],
    assigned: Assigned,
    chosen: Sampled,
    targets: Targets,
    convention: Conventions,
) -> dict[str, Float[Array, ""]]:
    """Binary cross-entropy over the sampled anchors, (smooth) L1 over the positives among them.

    Both are divided by the number of sampled positives and negatives, summed over images; in
    each image either number counts as at least ``convention.rpn_least``.

    Args:
        logits: of all levels.
        deltas: of all levels.
        anchors: xyxy, pixels, in the order of ``logits``.
        assigned: the anchors' targets.
        chosen: the sampled anchors, from `sample_anchors`.
        targets: ground truth.
        convention: the library's conventions.

    Returns:
        ``rpn_cls_loss`` and ``rpn_box_loss``, float32.
    """
    positive = chosen.positive & chosen.valid
    num_positive = jnp.maximum(positive.sum(axis=1), convention.rpn_least)
    num_negative = jnp.maximum((chosen.valid & ~positive).sum(axis=1), convention.rpn_least)
    total = ((num_positive + num_negative) * targets.image_valid).sum()
    normaliser = jnp.maximum(total, 1).astype(jnp.float32)

    picked = jnp.take_along_axis(logits, chosen.indices, axis=1)
    cls = loss_ops.binary_cross_entropy(picked, positive)

    index = jnp.take_along_axis(assigned.truth, chosen.indices, axis=1)
    boxes = take_rows(targets.boxes, index)
    wanted = box_ops.encode(jnp.asarray(anchors)[chosen.indices], boxes, convention.rpn_stds)
    box = loss_ops.smooth_l1(take_rows(deltas, chosen.indices), wanted, convention.rpn_beta)
    return {
        "rpn_cls_loss": jnp.where(chosen.valid, cls, 0.0).sum() / normaliser,
        "rpn_box_loss": jnp.where(positive, box, 0.0).sum() / normaliser,
    }


def propose(
    logits: tuple[Float[Array, "B _A"], ...],
    deltas: tuple[Float[Array, "B _A 4"], ...],
    anchors: tuple[Float[Array, "_A 4"], ...],
    sizes: Int[Array, "B 2"],
    *,
    pre_nms: int,
    max_out: int,
    nms_threshold: float,
    convention: Conventions,
) -> Proposals:
    """The best anchors of each level, after NMS per level, reduced to the best of all levels.

    No gradient passes through the proposals.

    Args:
        logits: of each level.
        deltas: of each level.
        anchors: of each level, xyxy, pixels.
        sizes: height and width of each image, pixels.
        pre_nms: how many of a level's best anchors enter its NMS.
        max_out: regions per image.
        nms_threshold: overlap above which the lower-scored of two regions of a level is dropped.
        convention: the library's conventions.

    Returns:
        Regions clipped to their images; scores in 0..1.

    Source: open-mmlab/mmdetection v3.3.0 mmdet/models/dense_heads/rpn_head.py.
    """
    own = partial(
        _propose,
        anchors=anchors,
        pre_nms=pre_nms,
        max_out=max_out,
        nms_threshold=nms_threshold,
        convention=convention,
    )
    return by_device(own)(logits, deltas, sizes)


def _propose(
    logits: tuple[Array, ...],
    deltas: tuple[Array, ...],
    sizes: Array,
    *,
    anchors: tuple[Array, ...],
    pre_nms: int,
    max_out: int,
    nms_threshold: float,
    convention: Conventions,
) -> Proposals:
    most = min(pre_nms, max(level.shape[1] for level in logits))
    boxes, scores, valid = [], [], []
    for level_logits, level_deltas, level in zip(logits, deltas, anchors, strict=True):
        best, row = top_k(jax.lax.stop_gradient(level_logits), min(most, level_logits.shape[1]))
        decoded = box_ops.decode(
            jnp.asarray(level)[row],
            take_rows(jax.lax.stop_gradient(level_deltas), row),
            convention.rpn_stds,
            convention.max_log,
            convention.clamp_below,
        )
        clipped = box_ops.clip(decoded, sizes)
        flag = sizable(clipped, convention.proposal_min_side)
        # Coarse levels are padded so that one NMS handles all levels and images at once.
        missing = ((0, 0), (0, most - row.shape[1]))
        boxes.append(jnp.pad(clipped, (*missing, (0, 0))))
        scores.append(jnp.pad(jax.nn.sigmoid(best), missing))
        valid.append(jnp.pad(flag, missing))
    # Not `jnp.stack`: it is a separate operation, which jax2onnx does not support.
    all_boxes, all_scores, all_valid = (
        jnp.concatenate([level[:, None] for level in x], axis=1) for x in (boxes, scores, valid)
    )
    kept = jax.vmap(jax.vmap(lambda b, s, v: nms(b, s, v, None, nms_threshold)))(
        all_boxes, all_scores, all_valid
    )
    B = kept.shape[0]
    flat_scores = jnp.where(kept, all_scores, -1.0).reshape(B, -1)
    best, row = top_k(flat_scores, min(max_out, flat_scores.shape[1]))
    return Proposals(
        take_rows(all_boxes.reshape(B, -1, 4), row), jnp.maximum(best, 0.0), best >= 0.0
    )
