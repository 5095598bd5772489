"""Compares the gradients of detection and distillation in the student's backbone and pyramid.

If the distillation gradient is a hundredth of detection's, it teaches nothing; if it is ten times
as large, it drowns detection; if it points the other way, it undoes it. The losses show none of
this.

The comparison is a separate program that runs at some steps only, so it does not slow the step.
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

#: Name in the log: the detector's module.
PARTS = {"backbone": "backbone", "pyramid": "neck"}

GradientReport = Callable[[TrainState, Arrays, Batch], StepValues]


def gradient_report(recipe: Recipe, mesh: Mesh) -> GradientReport:
    """The jitted `(state, teacher arrays, batch) -> values`; it leaves the state unchanged.

    The values, with PART "backbone" or "pyramid": "gradient/TERM/PART" is the gradient norm of
    each distillation term with its weight at this step, and of "detection" (all of the detector's
    own terms); "gradient/cosine/PART" is the cosine between the gradients of detection and of the
    whole distillation, or 0 if one of them is 0. With gradient accumulation they are those of the
    first part. The program compiles once per canvas.
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
    # One gradient per term: the backward pass of the others is left out, and the compiler merges
    # the forward passes, which are equal.
    return jax.grad(lambda params: terms(params)[name])(student)


def _dot(a: Arrays, b: Arrays) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y).astype(jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _cosine(a: Arrays, b: Arrays) -> Float[Array, ""]:
    square = _dot(a, a) * _dot(b, b)
    return jnp.where(square > 0, _dot(a, b) / jnp.sqrt(jnp.where(square > 0, square, 1)), 0.0)
