"""L_INS: the student's features inside a box should be the teacher's.

    paper:     mean over levels of  mean over boxes, bins, channels of (t - f(s))^2,
               t divided by the standard deviation of its level (teacher_side.py)
    official:  sum over levels and images of || t - f(s) ||_2

Letters: B images, n boxes, S bins, C channels (student Cs, teacher Ct).

Source: the paper's section 3.3; mmdet/models/detectors/two_stage.py of the author's release.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.config import InstanceFeatureConfig
from drkd_jax.distill.layers import Linear, accumulator, safe_ratio, safe_sqrt
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.types import Array, FeatureSpec


class InstanceFeature(nnx.Module):
    """The term over the finest common levels.

    Attributes:
        adaptation: f, a 1x1 convolution per level, student's channels to the teacher's.
    """

    def __init__(
        self,
        config: InstanceFeatureConfig,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.pairs = pairs
        self.adaptation = nnx.List(
            [
                Linear(student.channels[pair.student], teacher.channels[pair.teacher], rngs=rngs)
                for pair in pairs
            ]
        )

    def __call__(
        self,
        student: tuple[Float[Array, "B n S S _C"], ...],
        teacher: tuple[Float[Array, "B n S S _C"], ...],
        valid: Bool[Array, "B n"],
        *,
        groups: int = 1,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and each level's part.

        Args:
            student: the regions of the boxes, one array per level.
            teacher: likewise.
            valid: rows that hold a box, not padding.
            groups: official form: the sum over images is divided by this number of groups.
        """
        valid = jnp.asarray(valid)
        losses = []
        diagnostics: dict[str, jax.Array] = {}
        for level, pair in enumerate(self.pairs):
            t = teacher[level]
            difference = (t - self.adaptation[level](student[level])).astype(accumulator(t))
            squares = jnp.where(valid[..., None, None, None], difference**2, 0)
            squares = squares.sum((1, 2, 3, 4))
            if self.config.form == "official":
                losses.append(safe_sqrt(squares).sum() / groups)
            else:
                numbers = t.shape[2] * t.shape[3] * t.shape[4]
                losses.append(safe_ratio(squares.sum(), valid.sum() * numbers))
            diagnostics[f"instance_feature/{pair.name}/loss"] = losses[-1]
        total = jnp.stack(losses).sum()
        loss = total if self.config.form == "official" else total / len(losses)
        return loss, jax.lax.stop_gradient(diagnostics)
