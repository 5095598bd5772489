"""RetinaNet.

Letters: B images, A anchors of all levels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax import boxes as box_ops
from drkd_jax.models.dense import assign, device_maps, level_anchors
from drkd_jax.models.detector import Detector
from drkd_jax.models.retina_head import (
    RetinaHead,
    retina_detections,
    retina_losses,
)
from drkd_jax.models.settings import RetinaNetSettings
from drkd_jax.types import Array, Detections, Features, Targets, Unsuppressed


class RetinaNet(Detector):
    """One-stage detector with focal loss.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection".
    """

    settings: RetinaNetSettings

    def __init__(
        self,
        settings: RetinaNetSettings,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        super().__init__(settings, num_classes, rngs=rngs, dtype=dtype)
        self.head = RetinaHead(settings, self.head_classes, self.convention, rngs=rngs, dtype=dtype)

    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """``cls_loss`` and ``box_loss``; nothing is random, so ``keys`` is unused."""
        return self.losses_after(self.towers(features, 0), 0, features, targets)

    def towers(self, features: Features, layers: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Maps (classes, boxes) of each level after the first `layers` layers of the towers.

        See `RetinaHead.before`.
        """
        return tuple(self.head.before(x, layers) for x in device_maps(features))

    def losses_after(
        self,
        towers: tuple[tuple[jax.Array, jax.Array], ...],
        layers: int,
        features: Features,
        targets: Targets,
    ) -> dict[str, Float[Array, ""]]:
        """`losses`, computed from the result of `towers` for these features and `layers`."""
        targets = self.to_head(targets)
        logits, deltas = self.head.outputs(towers, layers)
        anchors = np.concatenate(self._anchors(features))
        assigned = assign(anchors, targets, self.convention.dense, self.convention)
        return retina_losses(
            *(logits, deltas, anchors, assigned, targets, self.convention), self.settings.box_loss
        )

    def responses(
        self, classes: Float[jax.Array, "B h w C"], boxes: Float[jax.Array, "B h w C"], layers: int
    ) -> tuple[Float[Array, "B A K"], Float[Array, "B A 4"]]:
        """Logits of the data's classes and deltas of a level, float32, from its pair of `towers`.

        See `RetinaHead.after`.
        """
        logits, deltas = self.head.after(classes, boxes, layers)
        logits = logits.astype(jnp.float32)
        if self.class_ids != tuple(range(self.head_classes)):
            logits = logits[..., list(self.class_ids)]
        return logits, deltas

    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """See `Detector.predict`."""
        logits, deltas = self.head(device_maps(features))
        found = retina_detections(
            logits, deltas, self._anchors(features), sizes, self.settings.test, self.convention
        )
        return self.from_head(found)

    def unsuppressed(self, features: Features, sizes: Int[Array, "B 2"]) -> Unsuppressed:
        """See `Detector.unsuppressed`: every anchor, finest level first."""
        logits, deltas = (jnp.concatenate(x, axis=1) for x in self.head(device_maps(features)))
        anchors = jnp.asarray(np.concatenate(self._anchors(features)))
        decoded = box_ops.decode(
            jnp.broadcast_to(anchors, deltas.shape),
            deltas,
            self.convention.rpn_stds,
            self.convention.max_log,
            self.convention.clamp_below,
        )
        boxes, scores = self.classes_from_head(
            box_ops.clip(decoded, sizes)[:, :, None], jax.nn.sigmoid(logits.astype(jnp.float32))
        )
        return Unsuppressed(boxes, scores, jnp.ones(scores.shape[:2], bool))

    def _anchors(self, features: Features) -> tuple[Float[np.ndarray, "_A 4"], ...]:
        shapes = [(m.shape[1], m.shape[2]) for m in features.maps]
        return level_anchors(self.settings.anchors, self.spec.strides, shapes, self.convention)
