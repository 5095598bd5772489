"""What a run carries from step to step, and how a module becomes plain arrays.

A module is built once, split into its graph (static) and its arrays (nested states of plain
arrays, no Variable objects), and merged inside the jitted step. Splitting outside
keeps Python's walk over the module out of every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from drkd_jax.models.arrays import Arrays

Filter = Callable[[Any, Any], bool]


class SplitModule(NamedTuple):
    """A module that is split: `graph` is static, the two others are pytrees of bare arrays."""

    graph: nnx.GraphDef
    params: Arrays  # what the optimiser changes
    model_state: Arrays  # frozen parameters, running statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    `params` and `model_state` have the keys "student" and, where there is one, "distiller".
    `average` is the moving average of the student's `params`, or empty where none is kept.
    """

    step: Any  # steps done, int32 scalar; lowering a step puts a description of it here
    params: dict[str, Arrays]
    model_state: dict[str, Arrays]
    opt_state: optax.OptState
    average: Arrays = dataclasses.field(default_factory=dict)

    @property
    def student(self) -> tuple[Arrays, Arrays]:
        """The student that is evaluated and kept, (params, model_state).

        Its average where there is one; running statistics of batch norms are averages already and
        stay as they are.
        """
        return self.average or self.params["student"], self.model_state["student"]


def split_module(module: nnx.Module, is_trained: Filter) -> SplitModule:
    """Splits a module by `is_trained(path, variable)`."""
    found: Any = nnx.split(module, is_trained, ...)
    graph, params, model_state = found
    return SplitModule(graph, nnx.as_pure(params), nnx.as_pure(model_state))


def merge_module(parts: SplitModule) -> Any:
    """The module again, with Variables of its own: safe inside a gradient's trace."""
    return nnx.merge(parts.graph, parts.params, parts.model_state, copy=True)


def new_state(
    parts: Mapping[str, SplitModule], tx: optax.GradientTransformation, *, average: bool = False
) -> TrainState:
    """The state of step 0.

    Args:
        parts: "student" and, where something is distilled, "distiller".
        tx: the optimiser.
        average: whether a moving average of the student is kept; it starts as the student.
    """
    params = {name: part.params for name, part in parts.items()}
    model_state = {name: part.model_state for name, part in parts.items()}
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        model_state,
        jax.jit(tx.init)(params),
        params["student"] if average else {},
    )


def num_parameters(tree: Arrays) -> int:
    """Numbers in a pytree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
