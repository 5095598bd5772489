"""The teacher's side: how its maps are scaled, and which modules embed them.

Scale: measured in the teacher's own units, a mean square has a different size for every teacher
and every level, and so would a loss weight. The default form therefore divides each level by its
standard deviation first: a mean square of 1 means "nothing explained" at every level, and
multiplying all features by ten changes nothing.

Embedding: the teacher's maps go through modules of their own, through the student's, or through a
running average of the student's. If both sides' modules are trained ("trained"), they can collapse:
the loss falls because the teacher's embedding becomes empty. The other choices cannot collapse;
monitoring/collapse.py tells the two cases apart.

State that the optimiser must not update is never an `nnx.Param`, so that
`nnx.Optimizer(..., wrt=nnx.Param)` skips it in any training loop.

Letters: B images, h w a map, C channels, L paired levels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.layers import accumulator, safe_ratio
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.types import Array

NOT_TRAINED = ("frozen", "pretrained", "average")
MOMENTUM = 0.01  # share of the newest batch in the running variance


def variance(x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"]) -> Float[Array, ""]:
    """Variance over the valid pixels of a batch about each channel's mean, averaged over channels.

    Args:
        x: a map.
        mask: the valid pixels.

    Returns:
        0 where no pixel is valid.
    """
    dtype = accumulator(x)
    mask = jnp.asarray(mask)
    count = mask.sum().astype(dtype)
    inside = mask[..., None]
    mean = safe_ratio(jnp.where(inside, x.astype(dtype), 0).sum((0, 1, 2)), count)
    off = jnp.where(inside, x.astype(dtype) - mean, 0)
    return safe_ratio((off * off).sum(), count * x.shape[-1])


def inverse_deviation(variances: Float[Array, "..."]) -> Float[Array, "..."]:
    """The factor that gives a map a variance of 1; 1 where the variance is 0."""
    return jnp.where(variances > 0, jax.lax.rsqrt(jnp.where(variances > 0, variances, 1)), 1)


class TeacherScale(nnx.Module):
    """One running variance per level; the first batch sets it, later ones move it a hundredth.

    Attributes:
        variance: the running variances; 0 until a level has been seen.
    """

    def __init__(self, levels: int):
        self.variance = Frozen(jnp.zeros(levels))

    def __call__(
        self,
        maps: tuple[Float[Array, "B _h _w _C"], ...],
        masks: tuple[Bool[Array, "B _h _w"], ...],
        *,
        train: bool,
    ) -> tuple[Float[Array, "B _h _w _C"], ...]:
        """The maps divided by their level's standard deviation, in their own dtype.

        Args:
            maps: one map per paired level.
            masks: the valid pixels.
            train: update the running variances; otherwise they stay (a level not yet seen is
                divided by its standard deviation in this batch).
        """
        old = self.variance[...]
        batch = jnp.stack([variance(x, m) for x, m in zip(maps, masks, strict=True)])
        moved = jnp.where(old > 0, old + MOMENTUM * (batch.astype(old.dtype) - old), batch)
        # A batch without valid pixels (or a constant level) must not change the estimate.
        used = jnp.where(batch > 0, moved, old) if train else jnp.where(old > 0, old, batch)
        used = jax.lax.stop_gradient(used)
        if train:
            self.variance[...] = used.astype(old.dtype)
        factor = inverse_deviation(used)
        return tuple(x * factor[i].astype(x.dtype) for i, x in enumerate(maps))


def freeze(module: nnx.Module) -> None:
    """Turns every `nnx.Param` below a module into `Frozen`, in place."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Frozen(value[...]))


def average_towards(average: nnx.Module, student: nnx.Module, momentum: float | int) -> None:
    """Moves the teacher's module to momentum * teacher + (1 - momentum) * student.

    No gradient passes: the average is state, like running statistics.

    Args:
        average: the teacher's module, frozen; changed in place.
        student: the student's module of the same shape.
        momentum: share of the old value that stays.
    """
    fresh = nnx.to_flat_state(jax.lax.stop_gradient(nnx.state(student, nnx.Param)))
    old = dict(nnx.to_flat_state(nnx.state(average, Frozen)))
    for path, value in fresh:
        mine = old[path][...]
        old[path][...] = (momentum * mine + (1 - momentum) * value[...]).astype(mine.dtype)


def copy_parameters(target: nnx.Module, source: nnx.Module) -> None:
    """Copies the parameters of one module to another of the same shape, to start an average."""
    nnx.update(target, jax.tree.map(lambda a: a.copy(), nnx.state(source, nnx.Param)))


def check_channels(term: str, mode: str, level: str, student: int, teacher: int) -> None:
    """Refuses `teacher_modules` that need equal channels on both sides where they differ.

    Args:
        term: name of the term's settings.
        mode: its `teacher_modules`.
        level: name of a paired level.
        student: channels of the student's map there.
        teacher: channels of the teacher's.

    Raises:
        UserError: the channels differ although `mode` needs them equal.
    """
    if mode in ("shared", "average") and student != teacher:
        raise UserError(
            f"distill.{term}.teacher_modules = {mode!r} needs as many channels on both sides, but "
            f"{level} has {student} in the student and {teacher} in the teacher: use 'frozen' or "
            "'trained'."
        )


def prepare_teacher(teacher: nnx.Module, student: nnx.Module, mode: str) -> None:
    """Freezes or initialises the teacher's modules as `teacher_modules` asks, in place."""
    if mode == "average":
        copy_parameters(teacher, student)
    if mode in NOT_TRAINED:
        freeze(teacher)
