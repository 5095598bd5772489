"""RetinaNet's head: two towers of convolutions shared by all levels, and what is made of them.

Letters: B pictures, A anchors of all levels, K classes, C channels, h w one feature map.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax import losses as loss_ops
from drkd_jax.models.conventions import Conventions
from drkd_jax.models.dense import Assigned, sizable, take_rows
from drkd_jax.models.initializers import Initializer, constant, normal
from drkd_jax.models.resnet import conv
from drkd_jax.models.settings import RetinaNetSettings, TestSettings
from drkd_jax.ops.nms import select
from drkd_jax.types import Array, Detections, Targets


class RetinaHead(nnx.Module):
    """Class logits and box deltas of every anchor of every level.

    Source: open-mmlab/mmdetection mmdet/models/dense_heads/retina_head.py.
    """

    def __init__(
        self,
        settings: RetinaNetSettings,
        num_classes: int,
        convention: Conventions,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        C, per_cell = settings.channels, settings.anchors.num_per_cell
        init = normal(settings.head_std)
        prior = convention.class_prior
        start = constant(-math.log((1 - prior) / prior))

        def layer(outputs: int, bias_init: Initializer) -> nnx.Conv:
            return conv(
                C,
                outputs,
                3,
                bias=True,
                kernel_init=init,
                bias_init=bias_init,
                rngs=rngs,
                dtype=dtype,
            )

        zeros = constant(0.0)
        self.num_classes = num_classes
        self.cls_convs = nnx.List(layer(C, zeros) for _ in range(settings.head_convs))
        self.box_convs = nnx.List(layer(C, zeros) for _ in range(settings.head_convs))
        self.cls = layer(per_cell * num_classes, start)
        self.box = layer(per_cell * 4, zeros)

    def __call__(
        self, maps: tuple[Float[jax.Array, "B _h _w C"], ...]
    ) -> tuple[tuple[Float[Array, "B _A K"], ...], tuple[Float[Array, "B _A 4"], ...]]:
        """Class logits and deltas of each level, float32, anchors in `level_anchors`' order."""
        logits, deltas = [], []
        for x in maps:
            a = b = x
            for layer in self.cls_convs:
                a = jax.nn.relu(layer(a))
            for layer in self.box_convs:
                b = jax.nn.relu(layer(b))
            B = x.shape[0]
            logits.append(self.cls(a).reshape(B, -1, self.num_classes).astype(jnp.float32))
            deltas.append(self.box(b).reshape(B, -1, 4).astype(jnp.float32))
        return tuple(logits), tuple(deltas)


def retina_losses(
    logits: Float[Array, "B A K"],
    deltas: Float[Array, "B A 4"],
    anchors: Float[Array, "A 4"],
    assigned: Assigned,
    targets: Targets,
    convention: Conventions,
) -> dict[str, Float[Array, ""]]:
    """Focal loss over all anchors that count, L1 over the positives.

    Both are divided by the positives of the batch, a picture counting as at least one.

    Returns:
        ``cls_loss`` and ``box_loss``, float32.
    """
    per_picture = jnp.maximum(assigned.positive.sum(axis=1), 1) * targets.picture_valid
    normaliser = jnp.maximum(per_picture.sum(), 1).astype(jnp.float32)

    labels = jnp.take_along_axis(jnp.asarray(targets.labels), assigned.truth, axis=1)
    classes = jnp.arange(logits.shape[-1])
    truth = assigned.positive[..., None] & (labels[..., None] == classes)
    counts = (assigned.positive | assigned.negative)[..., None]
    cls = loss_ops.focal(logits, truth, convention.focal_gamma, convention.focal_alpha)

    boxes = take_rows(targets.boxes, assigned.truth)
    wide = jnp.broadcast_to(jnp.asarray(anchors), boxes.shape)
    wanted = box_ops.encode(wide, boxes, convention.rpn_stds)
    box = loss_ops.l1(deltas, wanted)
    return {
        "cls_loss": jnp.where(counts, cls, 0.0).sum() / normaliser,
        "box_loss": jnp.where(assigned.positive, box, 0.0).sum() / normaliser,
    }


def retina_detections(
    logits: tuple[Float[Array, "B _A K"], ...],
    deltas: tuple[Float[Array, "B _A 4"], ...],
    anchors: tuple[Float[Array, "_A 4"], ...],
    sizes: Int[Array, "B 2"],
    settings: TestSettings,
    convention: Conventions,
) -> Detections:
    """The best (anchor, class) pairs of each level, then NMS over all levels, class by class.

    Source: open-mmlab/mmdetection v3.3.0 mmdet/models/dense_heads/base_dense_head.py.
    """
    boxes, scores, labels = [], [], []
    for level_logits, level_deltas, level in zip(logits, deltas, anchors, strict=True):
        B, A, K = level_logits.shape
        probability = jax.nn.sigmoid(level_logits).reshape(B, A * K)
        best, pair = jax.lax.top_k(probability, min(settings.pre_nms, A * K))
        row = pair // K
        decoded = box_ops.decode(
            jnp.asarray(level)[row],
            take_rows(level_deltas, row),
            convention.rpn_stds,
            convention.max_log,
            convention.clamp_below,
        )
        boxes.append(box_ops.clip(decoded, sizes))
        scores.append(best)
        labels.append(pair % K)
    return best_detections(
        jnp.concatenate(boxes, axis=1),
        jnp.concatenate(scores, axis=1),
        jnp.concatenate(labels, axis=1),
        settings,
        drop_empty=convention.drop_empty,
    )


def best_detections(
    boxes: Float[Array, "B N 4"],
    scores: Float[Array, "B N"],
    labels: Int[Array, "B N"],
    settings: TestSettings,
    *,
    drop_empty: bool,
) -> Detections:
    """NMS class by class over the boxes above the score, and the best of what is left."""
    valid = scores > settings.score
    if drop_empty:
        valid &= sizable(boxes)
    labels = labels.astype(jnp.int32)

    def one(boxes: Array, scores: Array, labels: Array, valid: Array) -> Detections:
        rows, kept = select(boxes, scores, None, valid, labels, settings.nms, settings.max_out)
        return Detections(boxes[rows], jnp.where(kept, scores[rows], 0.0), labels[rows], kept)

    return jax.vmap(one)(boxes, scores, labels, valid)
