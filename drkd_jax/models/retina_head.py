"""RetinaNet's head (two towers of convolutions, shared by all levels), its losses and detections.

Letters: B images, A anchors of all levels, K classes, C channels, h w one feature map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax import losses as loss_ops
from drkd_jax.models.conventions import Conventions
from drkd_jax.models.dense import Assigned, sizable, take_rows
from drkd_jax.models.initializers import Initializer, constant, normal
from drkd_jax.models.norm import GroupNorm
from drkd_jax.models.resnet import conv
from drkd_jax.models.settings import RetinaNetSettings, TestSettings
from drkd_jax.ops.nms import select
from drkd_jax.ops.platform import platform
from drkd_jax.ops.relu import relu
from drkd_jax.ops.top_k import top_k
from drkd_jax.types import Array, Detections, Targets


class RetinaHead(nnx.Module):
    """Class logits and box deltas of every anchor of every level.

    A layer of a tower is a convolution, the norm that the settings may name, and a ReLU. Levels
    share the norm's scale and bias, not its statistics.

    Source: open-mmlab/mmdetection mmdet/models/dense_heads/retina_head.py; with the norm,
    pytorch/vision torchvision/models/detection/retinanet.py (retinanet_resnet50_fpn_v2).
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

        def layer(outputs: int, bias_init: Initializer, bias: bool = True) -> nnx.Conv:
            return conv(
                C,
                outputs,
                3,
                bias=bias,
                kernel_init=init,
                bias_init=bias_init,
                rngs=rngs,
                dtype=dtype,
            )

        zeros = constant(0.0)
        self.num_classes = num_classes
        normed = settings.head_norm == "gn"
        depth = range(settings.head_convs)
        self.cls_convs = nnx.List(layer(C, zeros, bias=not normed) for _ in depth)
        self.box_convs = nnx.List(layer(C, zeros, bias=not normed) for _ in depth)
        self.cls_norms = nnx.List(GroupNorm(C) for _ in depth if normed)
        self.box_norms = nnx.List(GroupNorm(C) for _ in depth if normed)
        self.cls = layer(per_cell * num_classes, start)
        self.box = layer(per_cell * 4, zeros)

    def __call__(
        self, maps: tuple[Float[jax.Array, "B _h _w C"], ...]
    ) -> tuple[tuple[Float[Array, "B _A K"], ...], tuple[Float[Array, "B _A 4"], ...]]:
        """Class logits and deltas of each level, anchors in `level_anchors`' order; see `after`."""
        return self.outputs(tuple(self.before(x, 0) for x in maps), 0)

    def before(
        self, x: Float[jax.Array, "B h w C"], layers: int
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
        """A level's map after the first layers of the class tower and of the box tower.

        Args:
            x: the level's map.
            layers: number of layers of each tower to apply; the last one's output is not
                activated. 0: the map itself, for both.
        """
        a = b = x
        for i in range(layers):
            a, b = self._layer(i, relu(a) if i else a, relu(b) if i else b)
        return a, b

    def after(
        self, a: Float[jax.Array, "B h w C"], b: Float[jax.Array, "B h w C"], layers: int
    ) -> tuple[Float[Array, "B A K"], Float[Array, "B A 4"]]:
        """A level's class logits and deltas, from the result of `before` for the same `layers`.

        The logits are many and stay in the compute dtype; the reader must convert them. The deltas
        are float32.
        """
        if layers:
            a, b = relu(a), relu(b)
        for i in range(layers, len(self.cls_convs)):
            a, b = (relu(x) for x in self._layer(i, a, b))
        B = a.shape[0]
        logits = self.cls(a).reshape(B, -1, self.num_classes)
        return logits, self.box(b).reshape(B, -1, 4).astype(jnp.float32)

    def _layer(
        self, i: int, a: Float[jax.Array, "B h w C"], b: Float[jax.Array, "B h w C"]
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
        """Layer i of both towers, before its ReLU."""
        a, b = self.cls_convs[i](a), self.box_convs[i](b)
        if len(self.cls_norms):
            a, b = self.cls_norms[i](a, None), self.box_norms[i](b, None)
        return a, b

    def outputs(
        self, towers: tuple[tuple[jax.Array, jax.Array], ...], layers: int
    ) -> tuple[tuple[Float[Array, "B _A K"], ...], tuple[Float[Array, "B _A 4"], ...]]:
        """Class logits and deltas of each level, from the results of `before` for each."""
        found = [self.after(a, b, layers) for a, b in towers]
        return tuple(logits for logits, _ in found), tuple(deltas for _, deltas in found)


def retina_losses(
    logits: tuple[Float[Array, "B _A K"], ...],
    deltas: tuple[Float[Array, "B _A 4"], ...],
    anchors: Float[Array, "A 4"],
    assigned: Assigned,
    targets: Targets,
    convention: Conventions,
    box_loss: str = "smooth_l1",
) -> dict[str, Float[Array, ""]]:
    """Focal loss over positive and negative anchors, and a box loss over the positives.

    Both are divided by the number of positives, at least one per image: of the whole batch or
    of each image, as ``convention.dense_mean`` says.

    Args:
        logits: of each level.
        deltas: of each level.
        anchors: of all levels, in the order of ``logits``.
        assigned: the anchors' targets.
        targets: ground truth.
        convention: the library's conventions.
        box_loss: see `RetinaNetSettings`.

    Returns:
        ``cls_loss`` and ``box_loss``, float32.
    """
    share = _IMAGE_SHARES[convention.dense_mean](
        jnp.maximum(assigned.positive.sum(axis=1), 1).astype(jnp.float32),
        jnp.asarray(targets.image_valid),
    )

    labels = jnp.take_along_axis(jnp.asarray(targets.labels), assigned.truth, axis=1)
    labels = jnp.where(assigned.positive, labels, -1)
    counts = assigned.positive | assigned.negative
    if platform() == "cpu":  # there, level by level takes longer to compile and saves nothing
        logits = (jnp.concatenate(logits, axis=1),)
    ends = np.cumsum([level.shape[1] for level in logits])[:-1]
    by_level = zip(logits, jnp.split(labels, ends, 1), jnp.split(counts, ends, 1), strict=True)
    gamma, alpha = convention.focal_gamma, convention.focal_alpha
    cls = sum(_focal_sums(*level, gamma, alpha) for level in by_level)

    boxes = take_rows(targets.boxes, assigned.truth)
    wide = jnp.broadcast_to(jnp.asarray(anchors), boxes.shape)
    given = jnp.concatenate(deltas, axis=1)
    if box_loss == "giou":
        rule = convention
        decoded = box_ops.decode(wide, given, rule.rpn_stds, rule.max_log, rule.clamp_below)
        # A non-positive anchor is compared with itself, which avoids dividing by an empty box.
        ours, theirs = (jnp.where(assigned.positive[..., None], x, wide) for x in (decoded, boxes))
        box = 1.0 - box_ops.generalized_iou(ours, theirs)
    else:
        wanted = box_ops.encode(wide, boxes, convention.rpn_stds)
        box = loss_ops.smooth_l1(given, wanted, convention.dense_beta)
    return {
        "cls_loss": (cls * share).sum(),
        "box_loss": (jnp.where(assigned.positive, box, 0.0).sum(axis=1) * share).sum(),
    }


@partial(jax.checkpoint, static_argnums=(3, 4))
def _focal_sums(
    logits: Float[Array, "B A K"],
    labels: Int[Array, "B A"],
    counts: Bool[Array, "B A"],
    gamma: float,
    alpha: float,
) -> Float[Array, "B"]:
    """A level's focal loss, summed for each image; the label -1 stands for no class.

    Its intermediates, a float32 for every class of every anchor, are cheaper to recompute for the
    gradient than to keep.
    """
    truth = labels[..., None] == jnp.arange(logits.shape[-1])
    loss = loss_ops.focal(logits, truth, gamma, alpha)
    return jnp.where(counts[..., None], loss, 0.0).sum(axis=(1, 2))


def _by_batch(positives: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, "B"]:
    return valid / jnp.maximum((positives * valid).sum(), 1.0)


def _by_image(positives: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, "B"]:
    return valid / (positives * jnp.maximum(valid.sum(), 1))


# The factor on the sum over an image's anchors, from the positives of each image (at least 1).
_IMAGE_SHARES: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"batch": _by_batch, "image": _by_image}
)


class Candidates(NamedTuple):
    """Pairs of anchor and class of one level, by descending score."""

    scores: Float[Array, "B M"]
    rows: Int[Array, "B M"]  # the anchor
    labels: Int[Array, "B M"]


def _best_pairs(scores: Float[Array, "B A K"], num: int, most: int) -> Candidates:
    """The ``num`` best pairs."""
    B, A, K = scores.shape
    best, pair = top_k(scores.reshape(B, A * K), min(num, A * K))
    return Candidates(best, pair // K, pair % K)


def _pairs_of_best_anchors(scores: Float[Array, "B A K"], num: int, most: int) -> Candidates:
    """The ``most`` best pairs of the ``num`` anchors whose best class scores highest."""
    _, row = top_k(scores.max(axis=-1), min(num, scores.shape[1]))
    found = _best_pairs(take_rows(scores, row), most, most)
    return found._replace(rows=jnp.take_along_axis(row, found.rows, axis=1))


_CANDIDATES: Mapping[str, Callable[[Array, int, int], Candidates]] = MappingProxyType(
    {"pairs": _best_pairs, "anchors": _pairs_of_best_anchors}
)


def retina_detections(
    logits: tuple[Float[Array, "B _A K"], ...],
    deltas: tuple[Float[Array, "B _A 4"], ...],
    anchors: tuple[Float[Array, "_A 4"], ...],
    sizes: Int[Array, "B 2"],
    settings: TestSettings,
    convention: Conventions,
) -> Detections:
    """`retina_candidates`, then NMS over all levels, class by class."""
    found = retina_candidates(logits, deltas, anchors, sizes, settings, convention)
    return best_detections(*found, settings, convention.dense_min_side)


def retina_candidates(
    logits: tuple[Float[Array, "B _A K"], ...],
    deltas: tuple[Float[Array, "B _A 4"], ...],
    anchors: tuple[Float[Array, "_A 4"], ...],
    sizes: Int[Array, "B 2"],
    settings: TestSettings,
    convention: Conventions,
) -> tuple[Float[Array, "B M 4"], Float[Array, "B M"], Int[Array, "B M"]]:
    """The candidates of each level: boxes clipped to their images, scores, labels of the head.

    On average at most ``settings.pre_nms`` pairs per level enter the NMS. If candidates are pairs,
    this is no further limit; if they are anchors with all their classes, more may pass the score
    threshold, and the worst are left out.

    Args:
        logits: of each level.
        deltas: of each level.
        anchors: of each level, xyxy, pixels.
        sizes: height and width of each image, pixels.
        settings: limits.
        convention: the library's conventions.

    Source: open-mmlab/mmdetection v3.3.0 mmdet/models/dense_heads/base_dense_head.py; for the
        other rule for candidates, anchor_head.py of v2.3.0 in the same folder.
    """
    most = settings.pre_nms * len(logits)
    boxes, scores, labels = [], [], []
    for level_logits, level_deltas, level in zip(logits, deltas, anchors, strict=True):
        found = _CANDIDATES[convention.dense_candidates](
            jax.nn.sigmoid(level_logits.astype(jnp.float32)), settings.pre_nms, most
        )
        decoded = box_ops.decode(
            jnp.asarray(level)[found.rows],
            take_rows(level_deltas, found.rows),
            convention.rpn_stds,
            convention.max_log,
            convention.clamp_below,
        )
        boxes.append(box_ops.clip(decoded, sizes))
        scores.append(found.scores)
        labels.append(found.labels)
    all_boxes, all_scores, all_labels = (jnp.concatenate(x, 1) for x in (boxes, scores, labels))
    if all_scores.shape[1] > most:
        all_scores, row = top_k(all_scores, most)
        all_boxes = take_rows(all_boxes, row)
        all_labels = jnp.take_along_axis(all_labels, row, axis=1)
    return all_boxes, all_scores, all_labels


def best_detections(
    boxes: Float[Array, "B N 4"],
    scores: Float[Array, "B N"],
    labels: Int[Array, "B N"],
    settings: TestSettings,
    min_side: float | None,
) -> Detections:
    """Class-wise NMS over the boxes above the score threshold; keeps the best remaining ones.

    Args:
        boxes: clipped to their images.
        scores: the score of one class for each box.
        labels: that class.
        settings: limits.
        min_side: boxes with a shorter side are dropped first; None: none are.
    """
    valid = (scores > settings.score) & sizable(boxes, min_side)
    labels = labels.astype(jnp.int32)

    def one(boxes: Array, scores: Array, labels: Array, valid: Array) -> Detections:
        rows, kept = select(boxes, scores, valid, labels, settings.nms, settings.max_out)
        return Detections(boxes[rows], jnp.where(kept, scores[rows], 0.0), labels[rows], kept)

    return jax.vmap(one)(boxes, scores, labels, valid)
