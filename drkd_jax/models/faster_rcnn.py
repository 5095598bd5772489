"""Faster R-CNN with a feature pyramid.

Letters: B pictures, A anchors of all levels, R regions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax.models.dense import assign, device_maps, level_anchors
from drkd_jax.models.detector import Detector
from drkd_jax.models.roi_head import RoIHead, roi_detections, roi_losses, sample_regions
from drkd_jax.models.rpn import RPNHead, propose, rpn_losses
from drkd_jax.models.settings import FasterRCNNSettings
from drkd_jax.types import Array, Detections, Features, Targets


class FasterRCNN(Detector):
    """Two-stage detector: proposals, then classes and boxes of the regions.

    Source: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks for
    Object Detection".
    """

    settings: FasterRCNNSettings

    def __init__(
        self,
        settings: FasterRCNNSettings,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        super().__init__(settings, num_classes, rngs=rngs, dtype=dtype)
        self.rpn = RPNHead(settings, rngs=rngs, dtype=dtype)
        self.roi = RoIHead(settings, num_classes, self.convention, rngs=rngs, dtype=dtype)

    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """``rpn_cls_loss``, ``rpn_box_loss``, ``roi_cls_loss``, ``roi_box_loss``."""
        rule, settings = self.convention, self.settings
        two = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        logits, deltas = self.rpn(device_maps(features))
        levels = self._anchors(features)
        anchors = np.concatenate(levels)
        assigned = assign(anchors, targets, rule.rpn, rule)
        first = rpn_losses(
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(deltas, axis=1),
            anchors,
            assigned,
            targets,
            two[:, 0],
            settings.sampler,
            rule,
        )
        proposals = propose(
            logits,
            deltas,
            levels,
            targets.sizes,
            pre_nms=settings.proposals.pre_nms,
            max_out=settings.proposals.max_out,
            nms_threshold=settings.proposals.nms,
            convention=rule,
        )
        regions = sample_regions(
            proposals, targets, two[:, 1], self.num_classes, settings.sampler, rule
        )
        classes, boxes = self.roi(device_maps(features), self.spec, regions.boxes)
        return first | roi_losses(classes, boxes, regions, rule)

    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """See `Detector.predict`."""
        rule, settings = self.convention, self.settings
        logits, deltas = self.rpn(device_maps(features))
        proposals = propose(
            logits,
            deltas,
            self._anchors(features),
            sizes,
            pre_nms=settings.proposals.pre_nms_test,
            max_out=settings.proposals.max_out_test,
            nms_threshold=settings.proposals.nms,
            convention=rule,
        )
        classes, boxes = self.roi(device_maps(features), self.spec, proposals.boxes)
        return roi_detections(classes, boxes, proposals, sizes, settings.test, rule)

    def _anchors(self, features: Features) -> tuple[Float[np.ndarray, "_A 4"], ...]:
        shapes = [(m.shape[1], m.shape[2]) for m in features.maps]
        return level_anchors(self.settings.anchors, self.spec.strides, shapes, self.convention)
