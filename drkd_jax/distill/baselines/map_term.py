"""Common base of the distillers of whole maps: a loss per level, f where channels differ, a sum.

Each distiller has its own file with two classes: its module (a `MapTerm`) and its settings (a
`MapTermConfig`, which names the module and is what a config holds). All follow the rules of the
default form: padding is left out, the teacher's maps are divided by the standard deviation of their
level (teacher_side.py) and carry no gradient, and sums run over the whole batch. The levels' losses
are added up, as the authors do, so an author's weight applies to each level.

Letters: B images, G padded ground truths, h w a map, C channels (student Cs, teacher Ct).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Key

from drkd_jax.distill.layers import BoolMap, FloatMap, Linear, LinearMap
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.types import Array, FeatureSpec, Responses

LevelLoss = tuple[jax.Array, dict[str, jax.Array]]  # the loss of one level, and other values to log


class Seen(NamedTuple):
    """What a term is given of a batch."""

    student: tuple[Any, ...]  # one map [B, h, w, Cs] a paired level, finest first
    teacher: tuple[Any, ...]  # likewise [B, h, w, Ct]; no gradient passes
    masks: tuple[Any, ...]  # bool [B, h, w]: the valid pixels
    boxes: Float[Array, "B G 4"]  # ground truth, xyxy, pixels of the padded image
    valid: Bool[Array, "B G"]  # rows of `boxes` that hold a box, not padding
    keys: Key[Array, "B"] | None  # one random key per image; None: the caller gave none
    train: bool
    responses: Responses | None = None  # of the heads, paired levels only; no teacher gradient


@dataclasses.dataclass(frozen=True)
class MapTermConfig:
    """Settings of one distiller.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves the term out.
        form: not a setting: masks, teacher's scale and sums are those of DRKD's default form.
        term: not a setting either: the class of the term's module.
    """

    weight: float | int = 0.0
    form: ClassVar[str] = "paper"
    term: ClassVar[Any]

    def build(
        self,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
    ) -> nnx.Module:
        """The term's module for these paired levels; it is called with a `Seen`."""
        return self.term(self, pairs, student, teacher, rngs=rngs)


class Same(nnx.Module):
    """f where both sides have equal channels: the identity."""

    def __call__(self, x: FloatMap) -> FloatMap:
        """The map as it is."""
        return x


class MapTerm(nnx.Module):
    """A loss per paired level, added up.

    Attributes:
        adaptation: f, a 1x1 convolution of the student's map to the teacher's channels; the
            identity where channels are equal, unless `always` is set.
        layer: the class of f; a loss that would cancel a bias uses `LinearMap`.
    """

    layer: ClassVar[type[LinearMap]] = Linear
    always: ClassVar[bool] = False

    def __init__(
        self,
        config: Any,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.pairs = pairs
        widths = [(student.channels[p.student], teacher.channels[p.teacher]) for p in pairs]
        self.channels = tuple(to for _, to in widths)
        self.adaptation = nnx.List(
            self.layer(*pair, rngs=rngs) if self.always or pair[0] != pair[1] else Same()
            for pair in widths
        )

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """The unweighted loss of one paired level, and other values to log.

        Args:
            level: index among the paired levels.
            s: f of the student's map.
            t: the teacher's map.
            mask: the valid pixels.
            seen: the whole batch.
        """
        raise NotImplementedError

    def __call__(self, seen: Seen) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and diagnostics named LEVEL/WHAT; they carry no gradient."""
        losses = []
        diagnostics: dict[str, jax.Array] = {}
        for level, pair in enumerate(self.pairs):
            s = self.adaptation[level](seen.student[level])
            mask = jnp.asarray(seen.masks[level])
            loss, found = self.level_loss(level, s, seen.teacher[level], mask, seen)
            losses.append(loss)
            more: Mapping[str, jax.Array] = {"loss": loss, **found}
            diagnostics |= {f"{pair.name}/{name}": value for name, value in more.items()}
        return jnp.stack(losses).sum(), jax.lax.stop_gradient(diagnostics)
