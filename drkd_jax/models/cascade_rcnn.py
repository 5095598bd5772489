"""Cascade R-CNN for inference: three box heads, each on the boxes of the one before.

Letters: B images, A anchors of all levels, R regions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax import boxes as box_ops
from drkd_jax.errors import UserError
from drkd_jax.models.dense import device_maps, level_anchors
from drkd_jax.models.detector import Detector
from drkd_jax.models.roi_head import RoIHead, roi_detections, roi_unsuppressed
from drkd_jax.models.rpn import Proposals, RPNHead, propose
from drkd_jax.models.settings import CascadeRCNNSettings
from drkd_jax.types import Array, Detections, Features, Targets, Unsuppressed

# Standard deviations of each stage's deltas (x, y, w, h).
STAGE_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)


class CascadeRCNN(Detector):
    """Two-stage detector whose second stage refines the regions twice before the final one.

    It serves as a teacher whose AP can be evaluated; it cannot be trained here.

    Source: Cai and Vasconcelos 2018, "Cascade R-CNN"; open-mmlab/mmdetection v3.3.0,
    mmdet/models/roi_heads/cascade_roi_head.py, configs/_base_/models/cascade-rcnn_r50_fpn.py.
    """

    settings: CascadeRCNNSettings

    def __init__(
        self,
        settings: CascadeRCNNSettings,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        super().__init__(settings, num_classes, rngs=rngs, dtype=dtype)
        self.rpn = RPNHead(settings, rngs=rngs, dtype=dtype)
        self.roi = nnx.List(
            RoIHead(settings, self.head_classes, self.convention, rngs=rngs, dtype=dtype)
            for _ in STAGE_STDS
        )

    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Not available: this detector is for inference only.

        Raises:
            UserError: always.
        """
        raise UserError(
            "cascade_rcnn has no training losses: it is a teacher, and can be evaluated. Train "
            "faster_rcnn or retinanet"
        )

    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """See `Detector.predict`. The class logits are the mean over the three stages."""
        proposals, probability, deltas = self._stages(features, sizes)
        rule, test = self.convention, self.settings.test
        return self.from_head(
            roi_detections(probability, deltas, proposals, sizes, test, rule, STAGE_STDS[-1])
        )

    def unsuppressed(self, features: Features, sizes: Int[Array, "B 2"]) -> Unsuppressed:
        """See `Detector.unsuppressed`."""
        proposals, probability, deltas = self._stages(features, sizes)
        found = roi_unsuppressed(
            probability, deltas, proposals, sizes, self.convention, STAGE_STDS[-1]
        )
        return Unsuppressed(*self.classes_from_head(*found), proposals.valid)

    def _stages(
        self, features: Features, sizes: Int[Array, "B 2"]
    ) -> tuple[Proposals, Float[Array, "B R K1"], Float[Array, "B R D 4"]]:
        """The last stage's regions and deltas, and the probabilities of the mean class logits."""
        rule, settings = self.convention, self.settings
        maps = device_maps(features)
        logits, deltas = self.rpn(maps)
        shapes = [(m.shape[1], m.shape[2]) for m in maps]
        proposals = propose(
            logits,
            deltas,
            level_anchors(settings.anchors, self.spec.strides, shapes, rule),
            sizes,
            pre_nms=settings.proposals.pre_nms_test,
            max_out=settings.proposals.max_out_test,
            nms_threshold=settings.proposals.nms,
            convention=rule,
        )
        total: Array = np.float32(0)
        for stage, (head, stds) in enumerate(zip(self.roi, STAGE_STDS, strict=True)):
            classes, moves = head(maps, self.spec, proposals.boxes)
            total = total + classes / len(STAGE_STDS)
            if stage + 1 < len(STAGE_STDS):
                refined = box_ops.decode(
                    proposals.boxes, moves[:, :, 0], stds, rule.max_log, rule.clamp_below
                )
                proposals = proposals._replace(boxes=box_ops.clip(refined, sizes))
        return proposals, jax.nn.softmax(total, axis=-1), moves
