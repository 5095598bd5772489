"""Who embeds the teacher's features: a module of its own, the student's, or an average of it.

Left to themselves ("trained"), both sides can agree on something empty: the loss falls because
the teacher's embedding does. The other ways cannot; monitoring/collapse.py shows which happens.

What the optimiser must not move holds no `nnx.Param`: `nnx.Optimizer(..., wrt=nnx.Param)` in
anybody's loop leaves it alone without being told.
"""

from __future__ import annotations

import jax
from flax import nnx

from drkd_jax.frozen import Frozen

NOT_TRAINED = ("frozen", "pretrained", "average")


def freeze(module: nnx.Module) -> None:
    """Turns every `nnx.Param` below a module into `Frozen`, in place."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Frozen(value[...]))


def average_towards(average: nnx.Module, student: nnx.Module, momentum: float | int) -> None:
    """Moves the teacher's module a step towards the student's: momentum * old + rest * student.

    Gradients do not pass: the average is a state, like running statistics.

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
    """Gives a module the parameters of another of the same shape: where an average starts."""
    nnx.update(target, jax.tree.map(lambda a: a.copy(), nnx.state(source, nnx.Param)))


def prepare_teacher(teacher: nnx.Module, student: nnx.Module, mode: str) -> None:
    """Makes the teacher's modules what `teacher_modules` asks for, in place."""
    if mode == "average":
        copy_parameters(teacher, student)
    if mode in NOT_TRAINED:
        freeze(teacher)
