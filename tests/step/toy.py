"""A detector, a teacher and a distiller of one kernel each: `step.train_step` in milliseconds.

Letters: B images, H W pixels, G padded ground truths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from drkd_jax.models.pixels import Pixels
from drkd_jax.step.state import new_state, split_module
from drkd_jax.step.train_step import Recipe
from drkd_jax.types import Batch, Features, FeatureSpec

SPEC = FeatureSpec((2,), (4,), ("lateral",))


class Detector(nnx.Module):
    """Backbone and neck of one kernel each, and two different losses."""

    def __init__(self, key: int):
        rngs = nnx.Rngs(key)
        self.backbone = nnx.Linear(3, 4, rngs=rngs)
        self.neck = nnx.Linear(4, 2, rngs=rngs)
        self.head = nnx.Linear(2, 1, rngs=rngs)

    def features(self, images: Any, image_valid: Any = None) -> Features:
        return Features((self.neck(jnp.tanh(self.backbone(images[:, ::4, ::4]))),), SPEC)

    def losses(self, features: Features, targets: Any, keys: Any) -> dict[str, Any]:
        found = self.head(features.maps[0])
        return {"cls_loss": jnp.mean(found**2), "box_loss": jnp.mean(jnp.abs(found - 1))}


class Output(NamedTuple):
    total: Any
    losses: dict[str, Any]
    diagnostics: dict[str, Any]


WEIGHTS = {"near": 0.5, "far": 0.25}


class Distiller(nnx.Module):
    """Two terms between the maps, after a kernel on the student's side."""

    head_layers = None  # it reads no head

    def __init__(self, key: int):
        self.adapt = nnx.Linear(2, 2, rngs=nnx.Rngs(key))

    def __call__(self, student: Any, teacher: Any, *targets: Any, keys: Any) -> Output:
        off = self.adapt(student[0]) - jax.lax.stop_gradient(teacher[0])
        losses = {"near": jnp.mean(off**2), "far": jnp.mean(jnp.sqrt(1 + off**2))}
        total = sum(WEIGHTS[name] * loss for name, loss in losses.items())
        return Output(total, losses, {"off": jnp.mean(jnp.abs(off))})  # which has a gradient


def is_trained(path: Any, variable: Any) -> bool:
    """Selects all parameters."""
    return isinstance(variable, nnx.Param)


def recipe(tx: optax.GradientTransformation | None = None, **settings: Any) -> Any:
    """(recipe, parts by name, the teacher's arrays)."""
    modules = {"student": Detector(0), "distiller": Distiller(1)}
    parts = {name: split_module(module, is_trained) for name, module in modules.items()}
    graph, teacher = nnx.split(Detector(2))
    made = Recipe(
        graphs={**{name: part.graph for name, part in parts.items()}, "teacher": graph},
        is_trained=dict.fromkeys(parts, is_trained),
        weights=WEIGHTS,
        tx=tx or optax.sgd(0.1),
        schedule=lambda step: jnp.asarray(0.1),
        pixels=Pixels((120.0,) * 3, (60.0,) * 3),
        seed=0,
        **settings,
    )
    return made, parts, nnx.as_pure(teacher)


def state(made: Recipe, parts: Any, **kept: Any) -> Any:
    """The state of step 0."""
    return new_state(parts, made.tx, **kept)


def batch(seed: int = 0) -> Batch:
    """Two images of noise."""
    rng = np.random.default_rng(seed)
    return Batch(
        images=rng.integers(0, 256, (2, 16, 16, 3), np.uint8),
        sizes=np.full((2, 2), 16, np.int32),
        flip=np.zeros(2, bool),
        boxes=np.zeros((2, 1, 4), np.float32),
        labels=np.zeros((2, 1), np.int32),
        valid=np.zeros((2, 1), bool),
        image_valid=np.ones(2, bool),
        index=np.arange(2, dtype=np.int32),
        scale=np.ones((2, 2), np.float32),
    )
