"""The state that a run carries from step to step, and the splitting of modules into arrays.

A module is built once, split into its graph (static) and its arrays (nested states of plain
arrays, no Variable objects), and merged inside the jitted step. Because it is split outside, no
step traverses the module in Python.
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
    """A split module: `graph` is static, the other two are pytrees of bare arrays."""

    graph: nnx.GraphDef
    params: Arrays  # what the optimiser updates
    model_state: Arrays  # frozen parameters, running statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    `params` and `model_state` have the keys "student" and, if there is one, "distiller".
    `average` is the moving average of the student's `params`; empty if none is kept.
    """

    step: Any  # steps done, int32 scalar; JAX's description of it while a step is lowered
    params: dict[str, Arrays]
    model_state: dict[str, Arrays]
    opt_state: optax.OptState
    average: Arrays = dataclasses.field(default_factory=dict)

    @property
    def student(self) -> tuple[Arrays, Arrays]:
        """The student that is evaluated and saved, as (params, model_state).

        These are its averaged parameters if there are any; running statistics of batch norms are
        averages already and stay unchanged.
        """
        return self.average or self.params["student"], self.model_state["student"]


def split_module(module: nnx.Module, is_trained: Filter) -> SplitModule:
    """Splits a module by `is_trained(path, variable)`."""
    found: Any = nnx.split(module, is_trained, ...)
    graph, params, model_state = found
    return SplitModule(graph, nnx.as_pure(params), nnx.as_pure(model_state))


def merge_module(parts: SplitModule) -> Any:
    """Rebuilds the module with new Variables, which makes it safe inside a gradient's trace."""
    return nnx.merge(parts.graph, parts.params, parts.model_state, copy=True)


def new_state(
    parts: Mapping[str, SplitModule], tx: optax.GradientTransformation, *, average: bool = False
) -> TrainState:
    """The state of step 0.

    Args:
        parts: "student" and, when distilling, "distiller".
        tx: the optimiser.
        average: whether to keep a moving average of the student, which starts as the student.
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
    """The number of elements in a pytree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
