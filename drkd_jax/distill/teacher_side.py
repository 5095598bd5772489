"""Who embeds the teacher's features: a module of its own, the student's, or an average of it.

Left to themselves ("trained"), both sides can agree on something empty: the loss falls because
the teacher's embedding does. The other ways cannot; the monitor (monitor.py) shows which happens.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def average_towards(average: nnx.Module, student: nnx.Module, momentum: float | int) -> None:
    """Moves the teacher's module a step towards the student's: momentum * old + rest * student.

    Gradients do not pass: the average is a state, like running statistics.

    Args:
        average: the teacher's module; changed in place.
        student: the student's module of the same shape.
        momentum: share of the old value that stays.
    """
    fresh = jax.lax.stop_gradient(nnx.state(student, nnx.Param))
    old = nnx.state(average, nnx.Param)
    nnx.update(
        average,
        jax.tree.map(lambda a, b: (momentum * a + (1 - momentum) * b).astype(a.dtype), old, fresh),
    )


def copy_parameters(target: nnx.Module, source: nnx.Module) -> None:
    """Gives a module the parameters of another of the same shape: where an average starts."""
    nnx.update(target, jax.tree.map(lambda a: a.copy(), nnx.state(source, nnx.Param)))
