"""The second stage of Faster R-CNN: regions, their targets, their classes and boxes.

Letters: B images, R regions, S bins per side, G padded ground truths, K classes (K1 with the
background, the last), D deltas of a region (K, or 1), C channels, h w one feature map.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Key

from drkd_jax import boxes as box_ops
from drkd_jax import losses as loss_ops
from drkd_jax.models.conventions import Conventions
from drkd_jax.models.dense import take_rows
from drkd_jax.models.initializers import Initializer, constant, normal, xavier_uniform
from drkd_jax.models.resnet import conv
from drkd_jax.models.retina_head import best_detections
from drkd_jax.models.rpn import Proposals
from drkd_jax.models.settings import FasterRCNNSettings, SamplerSettings, TestSettings
from drkd_jax.ops.matching import match_boxes
from drkd_jax.ops.relu import relu
from drkd_jax.ops.roi_align import region_levels, roi_align
from drkd_jax.ops.sampling import sample
from drkd_jax.ops.spread import by_device
from drkd_jax.ops.top_k import top_k
from drkd_jax.types import Array, Detections, FeatureSpec, Targets

Stds = tuple[float, float, float, float]  # standard deviations of deltas (x, y, w, h)


class Regions(NamedTuple):
    """Sampled regions and their targets."""

    boxes: Float[Array, "B R 4"]
    labels: Int[Array, "B R"]  # K for background
    truth: Float[Array, "B R 4"]  # the ground truth's box; meaningless if not positive
    positive: Bool[Array, "B R"]
    valid: Bool[Array, "B R"]


class RoIHead(nnx.Module):
    """RoIAlign, a few layers, class logits, and a box for every class or for all.

    The layers are two fully connected ones, or 3x3 convolutions before one or two of them.

    Source: open-mmlab/mmdetection mmdet/models/roi_heads/bbox_heads/convfc_bbox_head.py;
    pytorch/vision torchvision/models/detection/faster_rcnn.py (TwoMLPHead, FastRCNNConvFCHead,
    FastRCNNPredictor).
    """

    def __init__(
        self,
        settings: FasterRCNNSettings,
        num_classes: int,
        convention: Conventions,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        def layer(a: int, b: int, kernel_init: Initializer) -> nnx.Linear:
            return nnx.Linear(
                a, b, kernel_init=kernel_init, bias_init=constant(0.0), dtype=dtype, rngs=rngs
            )

        self.convention = convention
        self.background_first = convention.background_first
        self.min_level = settings.min_level
        own, given = convention.roi_sampling, settings.roi_sampling
        self.sampling = own if given is None else given
        self.num_deltas = num_classes + self.background_first
        if settings.class_agnostic:
            self.num_deltas = 1
        C = settings.channels
        inputs = C * convention.roi_size**2
        self.convs = nnx.List(
            conv(C, C, 3, bias=True, rngs=rngs, dtype=dtype) for _ in range(settings.roi_convs)
        )
        self.fc1 = layer(inputs, settings.fc, xavier_uniform())
        two = settings.roi_fcs > 1
        self.fc2 = layer(settings.fc, settings.fc, xavier_uniform()) if two else None
        self.cls = layer(settings.fc, num_classes + 1, normal(0.01))
        self.box = layer(settings.fc, self.num_deltas * 4, normal(0.001))

    def __call__(
        self,
        maps: tuple[Float[jax.Array, "B _h _w C"], ...],
        spec: FeatureSpec,
        boxes: Float[Array, "B R 4"],
        valid: Bool[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R K1"], Float[Array, "B R D 4"]]:
        """Class logits and deltas, float32, in one order for every convention.

        Args:
            maps: the pyramid.
            spec: its levels.
            boxes: regions, canvas pixels.
            valid: regions to compute, the others are not read; None: all.

        Returns:
            Logits with the background last, and deltas of every class without the background; a
            class-agnostic head has one set of deltas for all classes.
        """
        x = self.pool(maps, spec, boxes, valid)
        if len(self.convs):
            wide = x.reshape(-1, *x.shape[2:])  # each region becomes a separate image
            for layer in self.convs:
                wide = relu(layer(wide))
            x = wide.reshape(x.shape)
        x = relu(self.fc1(x.reshape(*boxes.shape[:2], -1)))
        if self.fc2 is not None:
            x = relu(self.fc2(x))
        logits = self.cls(x).astype(jnp.float32)
        deltas = self.box(x).reshape(*boxes.shape[:2], self.num_deltas, 4).astype(jnp.float32)
        if self.background_first:
            logits = jnp.roll(logits, -1, axis=-1)
            deltas = deltas[:, :, 1:] if self.num_deltas > 1 else deltas
        return logits, deltas

    def pool(
        self,
        maps: tuple[Float[jax.Array, "B _h _w C"], ...],
        spec: FeatureSpec,
        boxes: Float[Array, "B R 4"],
        valid: Bool[Array, "B R"] | None = None,
    ) -> Float[Array, "B R S S C"]:
        """Crop every region from the level that fits its size; invalid ones are 0."""
        rule = self.convention
        used = rule.roi_max_level - self.min_level + 1
        levels = region_levels(
            boxes,
            self.min_level,
            rule.roi_max_level,
            canonical=14.0 * spec.strides[0],
            convention=rule.region_level_rule,
        )
        return jnp.asarray(
            roi_align(
                maps[:used],
                boxes,
                levels,
                spec.strides[:used],
                output_size=rule.roi_size,
                sampling_ratio=self.sampling,
                aligned=rule.roi_aligned,
                valid=valid,
            )
        )


def sample_regions(
    proposals: Proposals,
    targets: Targets,
    keys: Key[Array, "B"],
    num_classes: int,
    settings: SamplerSettings,
    convention: Conventions,
) -> Regions:
    """Match proposals with ground truths, add these as regions, and sample positives and negatives.

    The ground truths are appended after the proposals, so that the number of padding rows does not
    change any row's random number.

    Args:
        proposals: regions of each image.
        targets: ground truth, with the class numbers of the head.
        keys: one random key per image.
        num_classes: number of classes of the head, and the label of the background.
        settings: how many regions to sample.
        convention: the library's conventions.
    """
    most = int(settings.roi * settings.roi_positive)
    rule = convention.roi

    boxes, labels, valid, image_valid = map(jnp.asarray, targets[1:])
    if not boxes.shape[1]:  # add an invalid row, since indexing needs at least one
        boxes, labels, valid = (
            jnp.zeros((len(x), 1, *x.shape[2:]), x.dtype) for x in (boxes, labels, valid)
        )
    matches = match_boxes(
        proposals.boxes,
        boxes,
        valid,
        rule.positive,
        rule.negative,
        rule.low_quality,
        proposals.valid & image_valid[:, None],
        rule.overwrite,
    )

    def one(key, proposed, found, boxes, labels, valid, image_valid):  # type: ignore[no-untyped-def]
        own = valid & image_valid
        index = jnp.concatenate([found.index, jnp.arange(len(valid), dtype=found.index.dtype)])
        chosen = sample(
            key,
            jnp.concatenate([found.positive, own]),
            jnp.concatenate([found.negative, jnp.zeros_like(own)]),
            settings.roi,
            most,
        )
        positive = chosen.positive & chosen.valid
        truth = index[chosen.indices]
        return Regions(
            jnp.concatenate([proposed, boxes])[chosen.indices],
            jnp.where(positive, labels[truth], num_classes),
            boxes[truth],
            positive,
            chosen.valid,
        )

    rows = keys, proposals.boxes, matches, boxes, labels, valid, image_valid
    return by_device(jax.vmap(one))(*rows)


def roi_losses(
    logits: Float[Array, "B R K1"],
    deltas: Float[Array, "B R D 4"],
    regions: Regions,
    convention: Conventions,
) -> dict[str, Float[Array, ""]]:
    """Cross-entropy over the sampled regions, (smooth) L1 on the positives' true-class boxes.

    Both are divided by the number of sampled regions of the batch, positive or not.

    Args:
        logits: as `RoIHead` gives them.
        deltas: likewise.
        regions: from `sample_regions`.
        convention: the library's conventions.

    Returns:
        ``roi_cls_loss`` and ``roi_box_loss``, float32.
    """
    normaliser = jnp.maximum(regions.valid.sum(), 1).astype(jnp.float32)
    cls = loss_ops.cross_entropy(logits, regions.labels)
    # The background has no deltas and takes the last ones; a class-agnostic head has one set only.
    own = jnp.minimum(regions.labels, deltas.shape[2] - 1)
    picked = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    wanted = box_ops.encode(regions.boxes, regions.truth, convention.roi_stds)
    box = loss_ops.smooth_l1(picked, wanted, convention.roi_beta)
    return {
        "roi_cls_loss": jnp.where(regions.valid, cls, 0.0).sum() / normaliser,
        "roi_box_loss": jnp.where(regions.positive, box, 0.0).sum() / normaliser,
    }


def roi_detections(
    probability: Float[Array, "B R K1"],
    deltas: Float[Array, "B R D 4"],
    proposals: Proposals,
    sizes: Int[Array, "B 2"],
    settings: TestSettings,
    convention: Conventions,
    stds: Stds | None = None,
) -> Detections:
    """The best (region, class) pairs, then class-wise NMS.

    Args:
        probability: of each class, the background last: a softmax, or a mean of several.
        deltas: as `RoIHead` gives them.
        proposals: the regions that the deltas start from.
        sizes: height and width of each image, pixels.
        settings: limits.
        convention: the library's numbers.
        stds: standard deviations of the deltas; None: the convention's.

    Source: open-mmlab/mmdetection v3.3.0 mmdet/models/layers/bbox_nms.py.
    """
    B, R, D, _ = deltas.shape
    K = probability.shape[-1] - 1
    known = jnp.where(proposals.valid[..., None], probability[..., :K], 0.0).reshape(B, R * K)
    scores, pair = top_k(known, min(settings.pre_nms, R * K))
    row, label = pair // K, pair % K
    decoded = box_ops.decode(
        take_rows(proposals.boxes, row),
        take_rows(deltas.reshape(B, R * D, 4), row * D + jnp.minimum(label, D - 1)),
        stds or convention.roi_stds,
        convention.max_log,
        convention.clamp_below,
    )
    return best_detections(
        box_ops.clip(decoded, sizes), scores, label, settings, convention.roi_min_side
    )


def roi_unsuppressed(
    probability: Float[Array, "B R K1"],
    deltas: Float[Array, "B R D 4"],
    proposals: Proposals,
    sizes: Int[Array, "B 2"],
    convention: Conventions,
    stds: Stds | None = None,
) -> tuple[Float[Array, "B R D 4"], Float[Array, "B R K"]]:
    """The clipped boxes of every region, and its score for every class except the background.

    Args:
        probability: as in `roi_detections`, like all further arguments.
        deltas: of each region.
        proposals: the regions.
        sizes: height and width of each image, pixels.
        convention: the library's numbers.
        stds: standard deviations of the deltas; None: the convention's.

    Returns:
        (boxes, scores); the scores of invalid regions are 0.
    """
    B, R, D, _ = deltas.shape
    decoded = box_ops.decode(
        jnp.broadcast_to(jnp.asarray(proposals.boxes)[:, :, None], deltas.shape),
        deltas,
        stds or convention.roi_stds,
        convention.max_log,
        convention.clamp_below,
    )
    boxes = box_ops.clip(decoded.reshape(B, R * D, 4), sizes).reshape(B, R, D, 4)
    return boxes, jnp.where(proposals.valid[..., None], probability[..., :-1], 0.0)
