"""CrossKD: the student's head, continued by the teacher's layers, should predict as the teacher.

    c = H( a(f(s)) ),  p = H(t)     H: the teacher's remaining layers, of one level

    1/W  sum over levels, pixels, anchors of
        sum over classes of QFL(c, p)  +  box w (1 - GIoU(c, p))

s and t are the two sides' maps inside the head (separately for its class and box branch), before
the activation; a gives every channel of f(s) the mean and standard deviation of t's, over the
pixels of the whole batch.
QFL(c, p) = |sigmoid(c) - sigmoid(p)| BCE(c, sigmoid(p)), w = max over classes of sigmoid(p), and
W = sum of w over all levels, so the loss does not depend on the canvas size.

The student's own last layers are trained by the ground truth alone, so ground truth and teacher
never give them contradicting targets; classes, anchors and box coding are the teacher's on both
sides. GIoU is invariant to scaling both boxes, so boxes are decoded from an anchor of side 1.

Invalid pixels are set to 0 in both sides' maps before H, and their anchors are left out of all
sums.

Letters: B images, h w a map, C channels, A anchors per pixel, K classes.

Source: Wang et al. 2024, "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (arXiv
2306.11369); mmdet/models/detectors/crosskd_retinanet.py and mmdet/models/losses/kd_loss.py of the
authors' jbwang1997/CrossKD. The authors divide by the number of positive anchors per device instead
of W, leave out anchors between positive and negative, and have heads of equal widths, without f.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from drkd_jax import boxes as box_ops
from drkd_jax.distill.baselines.map_term import MapTermConfig, Same, Seen
from drkd_jax.distill.baselines.pkd import EPSILON, statistics
from drkd_jax.distill.layers import BoolMap, FloatMap, LinearMap, accumulator, safe_ratio
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.setting_checks import not_negative, whole
from drkd_jax.errors import UserError
from drkd_jax.types import Array, FeatureSpec


def aligned(s: FloatMap, t: FloatMap, mask: BoolMap) -> FloatMap:
    """Gives each channel of a map the mean and standard deviation of another map's channel.

    Args:
        s: the map to change.
        t: the map with the wanted statistics.
        mask: the valid pixels.

    Returns:
        In float32 at least; 0 at invalid pixels.
    """
    off, _, std = statistics(s, mask)
    _, mean, wanted = statistics(t, mask)
    return jnp.where(mask[..., None], off / (std + EPSILON) * wanted + mean, 0)


def quality_focal(
    logits: Float[Array, "*N K"], wanted: Float[Array, "*N K"]
) -> Float[Array, "*N K"]:
    """|sigmoid(x) - sigmoid(y)| times the cross-entropy of x against sigmoid(y), elementwise.

    Args:
        logits: x.
        wanted: y, the teacher's logits.

    Source: Li et al. 2020, "Generalized Focal Loss", equation 2, with beta = 1.
    """
    soft = jax.nn.sigmoid(wanted)
    entropy = jax.nn.softplus(logits) - soft * logits
    off = jax.nn.sigmoid(logits) - soft
    # |off| with gradient 0 at 0, as in PyTorch; the gradient of `jnp.abs` is 1 there.
    return off * jnp.sign(off) * entropy


class CrossKD(nnx.Module):
    """The term over all paired levels.

    Attributes:
        adaptation: f of each branch, shared by all levels as the heads are: a 1x1 convolution if
            the heads' widths differ (without bias, which `aligned` would cancel), otherwise the
            identity. A head is as wide as its pyramid.
    """

    def __init__(
        self,
        config: CrossKDConfig,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.pairs = pairs
        widths = {(student.channels[p.student], teacher.channels[p.teacher]) for p in pairs}
        if len(widths) > 1:
            raise UserError(
                "distill.crosskd: a head that all levels share reads maps of equal channels, but "
                f"student and teacher have {', '.join(map(str, sorted(widths)))}."
            )
        ((own, wanted),) = widths
        self.adaptation = nnx.List(
            [LinearMap(own, wanted, rngs=rngs) if own != wanted else Same() for _ in range(2)]
        )

    def __call__(self, seen: Seen) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and diagnostics; they carry no gradient.

        Raises:
            UserError: the distiller was called without the heads' responses.
        """
        if seen.responses is None:
            raise UserError(
                "distill.crosskd has a weight, and the distiller was called without responses=: "
                "give it the heads' maps (drkd_jax.Responses), or set the weight to 0."
            )
        of_student, of_teacher, head = seen.responses
        classes: list[jax.Array] = []
        boxes: list[jax.Array] = []
        weights: list[jax.Array] = []
        for s, t, mask in zip(of_student, of_teacher, map(jnp.asarray, seen.masks), strict=True):
            wanted = jax.lax.stop_gradient(head(*(jnp.where(mask[..., None], x, 0) for x in t)))
            sides = zip(self.adaptation, s, t, strict=True)
            crossed = (aligned(f(x), y, mask).astype(y.dtype) for f, x, y in sides)
            for found, part in zip(
                self._sums(head(*crossed), wanted, mask), (classes, boxes, weights), strict=True
            ):
                part.append(found)
        total = jnp.stack(weights).sum()
        parts = {
            "classes": safe_ratio(jnp.stack(classes).sum(), total),
            "boxes": safe_ratio(jnp.stack(boxes).sum(), total),
        }
        levels = {
            f"{pair.name}/loss": safe_ratio(c + self.config.box * b, total)
            for pair, c, b in zip(self.pairs, classes, boxes, strict=True)
        }
        loss = parts["classes"] + self.config.box * parts["boxes"]
        return loss, jax.lax.stop_gradient(levels | parts)

    def _sums(
        self,
        found: tuple[Float[Array, "B N K"], Float[Array, "B N 4"]],
        wanted: tuple[Float[Array, "B N K"], Float[Array, "B N 4"]],
        mask: BoolMap,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """The sums of one level: class part, box part, and the teacher's weights w."""
        dtype = accumulator(*found, *wanted)
        (logits, deltas), (sure, towards) = ((x.astype(dtype) for x in y) for y in (found, wanted))
        anchors = logits.shape[1] // (mask.shape[1] * mask.shape[2])
        inside = jnp.repeat(mask.reshape(mask.shape[0], -1), anchors, axis=1)
        weights = jnp.where(inside, jax.nn.sigmoid(sure).max(-1), 0)
        unit = jnp.broadcast_to(jnp.asarray((0, 0, 1, 1), dtype), deltas.shape)
        a, b = (box_ops.decode(unit, x) for x in (deltas, towards))
        return (
            jnp.where(inside[..., None], quality_focal(logits, sure), 0).sum(),
            (weights * (1 - box_ops.generalized_iou(a, b))).sum(),
            weights.sum(),
        )


@dataclasses.dataclass(frozen=True)
class CrossKDConfig(MapTermConfig):
    """CrossKD, between the heads of two RetinaNets.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves it out. The authors' 1
            belongs to their normaliser.
        layers: how many convolutions of each branch both sides apply in their own heads before
            both continue in the teacher's. The authors': 3 of 4.
        box: what the box part is multiplied by. The authors': 1.
    """

    layers: int = 3
    box: float | int = 1.0
    form: ClassVar[str] = "heads"  # it reads no map of the pyramids
    term = CrossKD

    def __post_init__(self) -> None:
        whole("crosskd.layers", self.layers, 0)
        not_negative("crosskd.box", self.box)
