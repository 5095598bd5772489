"""Cascade R-CNN for inference: three box heads, each on the boxes of the one before.

Letters: B images, R regions.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax import boxes as box_ops
from drkd_jax.errors import UserError
from drkd_jax.models.dense import device_maps
from drkd_jax.models.faster_rcnn import FasterRCNN
from drkd_jax.models.rpn import Proposals
from drkd_jax.models.settings import CascadeRCNNSettings
from drkd_jax.types import Array, Features, Targets

# Standard deviations of each stage's deltas (x, y, w, h).
STAGE_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)


class CascadeRCNN(FasterRCNN):
    """Two-stage detector whose second stage refines the regions twice before the final one.

    It serves as a teacher whose AP can be evaluated; it cannot be trained here.

    Source: Cai and Vasconcelos 2018, "Cascade R-CNN"; open-mmlab/mmdetection v3.3.0,
    mmdet/models/roi_heads/cascade_roi_head.py, configs/_base_/models/cascade-rcnn_r50_fpn.py.
    """

    settings: CascadeRCNNSettings
    last_stds = STAGE_STDS[-1]

    def make_roi(self, rngs: nnx.Rngs) -> nnx.List:
        """A head for each stage."""
        make = super().make_roi
        return nnx.List(make(rngs) for _ in STAGE_STDS)

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

    def _second_stage(
        self, features: Features, sizes: Int[Array, "B 2"]
    ) -> tuple[Proposals, Float[Array, "B R K1"], Float[Array, "B R D 4"]]:
        """The last stage's regions and deltas, and the probabilities of the mean class logits."""
        rule, maps = self.convention, device_maps(features)
        proposals = self._proposals(features, sizes)
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
