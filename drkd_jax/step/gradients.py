"""How the gradients of detection and distillation compare, in the student's backbone and pyramid.

A distillation whose gradient is a hundredth of detection's teaches nothing, one ten times as large
drowns it, and one that points the other way undoes it; the losses show none of this.

It is a program of its own, called at some steps only: the step itself is not slowed down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float

from drkd_jax.step.accumulation import first_part
from drkd_jax.step.sharding import replicated
from drkd_jax.step.state import Arrays, TrainState
from drkd_jax.step.train_step import Recipe, StepValues, loss_terms
from drkd_jax.types import Array, Batch

#: Name in the log: the detector's part.
PARTS = {"backbone": "backbone", "pyramid": "neck"}

GradientReport = Callable[[TrainState, Arrays, Batch], StepValues]


def gradient_report(recipe: Recipe, mesh: Mesh) -> GradientReport:
    """The jitted `(state, teacher arrays, batch) -> values`; the state stays as it is.

    Values, for PART "backbone" and "pyramid": "gradient/TERM/PART", the norm of the gradient of
    each distillation term as it is weighted at this step, and of "detection" (all of the
    detector's own terms); "gradient/cosine/PART", between detection's and the whole
    distillation's gradient, 0 where one of them is 0. Of a batch that is worked off in parts they
    are the first part's. It compiles once for each canvas.
    """

    def report(state: TrainState, teacher: Arrays, batch: Batch) -> StepValues:
        batch = first_part(batch, recipe.accumulate, mesh)

        def weighted(student: Arrays) -> dict[str, Float[Array, ""]]:
            params = {**state.params, "student": student}
            _, (values, _) = loss_terms(
                recipe, params, state.model_state, teacher, batch, state.step
            )
            factor = values.pop("distill_factor", 1.0)
            terms = {
                name: weight * factor * values[name] for name, weight in recipe.weights.items()
            }
            own = [
                value
                for name, value in values.items()
                if name not in recipe.weights and "/" not in name
            ]
            return {"detection": sum(own, jnp.zeros(())), **terms}

        found = {
            name: _gradient_of(weighted, name, state.params["student"])
            for name in ("detection", *recipe.weights)
        }
        values = {}
        for part, key in PARTS.items():
            own = {name: gradient[key] for name, gradient in found.items() if key in gradient}
            for name, gradient in own.items():
                values[f"gradient/{name}/{part}"] = jnp.sqrt(_dot(gradient, gradient))
            taught = [gradient for name, gradient in own.items() if name != "detection"]
            if taught:
                whole = jax.tree.map(lambda *leaves: sum(leaves), *taught)
                values[f"gradient/cosine/{part}"] = _cosine(own["detection"], whole)
        return StepValues(jnp.stack(list(values.values())), tuple(values))

    return jax.jit(report, out_shardings=replicated(mesh))


def _gradient_of(terms: Callable[[Arrays], dict[str, Any]], name: str, student: Arrays) -> Arrays:
    # One term at a time: what the others would need backwards is left out, and what all of them
    # need forwards the compiler finds to be the same.
    return jax.grad(lambda params: terms(params)[name])(student)


def _dot(a: Arrays, b: Arrays) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y).astype(jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _cosine(a: Arrays, b: Arrays) -> Float[Array, ""]:
    square = _dot(a, a) * _dot(b, b)
    return jnp.where(square > 0, _dot(a, b) / jnp.sqrt(jnp.where(square > 0, square, 1)), 0.0)
