"""Faster R-CNN with a feature pyramid.

Letters: B images, A anchors of all levels, R regions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax.models.dense import Assigned, assign, device_maps, level_anchors
from drkd_jax.models.detector import Detector
from drkd_jax.models.roi_head import (
    Regions,
    RoIHead,
    Stds,
    roi_detections,
    roi_losses,
    roi_unsuppressed,
    sample_regions,
)
from drkd_jax.models.rpn import Proposals, RPNHead, propose, rpn_losses, sample_anchors
from drkd_jax.models.settings import FasterRCNNSettings
from drkd_jax.ops.sampling import Sampled
from drkd_jax.types import Array, Detections, Features, Targets, Unsuppressed


class FasterRCNN(Detector):
    """Two-stage detector: proposals, then classes and boxes of the regions.

    Source: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks for
    Object Detection".
    """

    settings: FasterRCNNSettings
    last_stds: ClassVar[Stds | None] = None  # of the final deltas; None: the convention's

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
        self.roi = self.make_roi(rngs)

    def make_roi(self, rngs: nnx.Rngs) -> Any:
        """The second stage."""
        args = self.settings, self.head_classes, self.convention
        return RoIHead(*args, rngs=rngs, dtype=self.dtype)

    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """``rpn_cls_loss``, ``rpn_box_loss``, ``roi_cls_loss``, ``roi_box_loss``."""
        rule, settings = self.convention, self.settings
        targets = self.to_head(targets)
        two = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        logits, deltas = outputs = self.rpn(device_maps(features))
        levels = self._anchors(features)
        assigned = assign(np.concatenate(levels), targets, rule.rpn, rule)
        chosen = sample_anchors(assigned, two[:, 0], settings.sampler)
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
            proposals, targets, two[:, 1], self.head_classes, settings.sampler, rule
        )
        return self.losses_at(features, targets, outputs, assigned, chosen, regions)

    def losses_at(
        self,
        features: Features,
        targets: Targets,
        outputs: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
        assigned: Assigned,
        chosen: Sampled,
        regions: Regions,
    ) -> dict[str, Float[Array, ""]]:
        """The losses for given samples of anchors and regions.

        Args:
            features: of this detector.
            targets: with the class numbers of the head.
            outputs: logits and deltas of the RPN.
            assigned: the targets of each anchor.
            chosen: the sampled anchors.
            regions: the sampled regions.
        """
        rule = self.convention
        logits, deltas = (jnp.concatenate(x, axis=1) for x in outputs)
        anchors = np.concatenate(self._anchors(features))
        first = rpn_losses(logits, deltas, anchors, assigned, chosen, targets, rule)
        classes, boxes = self.roi(device_maps(features), self.spec, regions.boxes, regions.valid)
        return first | roi_losses(classes, boxes, regions, rule)

    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """See `Detector.predict`."""
        proposals, probability, boxes = self._second_stage(features, sizes)
        rule, test = self.convention, self.settings.test
        return self.from_head(
            roi_detections(probability, boxes, proposals, sizes, test, rule, self.last_stds)
        )

    def unsuppressed(self, features: Features, sizes: Int[Array, "B 2"]) -> Unsuppressed:
        """See `Detector.unsuppressed`."""
        proposals, probability, deltas = self._second_stage(features, sizes)
        found = roi_unsuppressed(
            probability, deltas, proposals, sizes, self.convention, self.last_stds
        )
        return Unsuppressed(*self.classes_from_head(*found), proposals.valid)

    def _second_stage(
        self, features: Features, sizes: Int[Array, "B 2"]
    ) -> tuple[Proposals, Float[Array, "B R K1"], Float[Array, "B R D 4"]]:
        """The regions, their class probabilities, and their deltas."""
        proposals = self._proposals(features, sizes)
        classes, boxes = self.roi(device_maps(features), self.spec, proposals.boxes)
        return proposals, jax.nn.softmax(classes, axis=-1), boxes

    def _proposals(self, features: Features, sizes: Int[Array, "B 2"]) -> Proposals:
        settings = self.settings.proposals
        return propose(
            *self.rpn(device_maps(features)),
            self._anchors(features),
            sizes,
            pre_nms=settings.pre_nms_test,
            max_out=settings.max_out_test,
            nms_threshold=settings.nms,
            convention=self.convention,
        )

    def _anchors(self, features: Features) -> tuple[Float[np.ndarray, "_A 4"], ...]:
        shapes = [(m.shape[1], m.shape[2]) for m in features.maps]
        return level_anchors(self.settings.anchors, self.spec.strides, shapes, self.convention)
