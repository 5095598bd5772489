"""Small pyramids and targets for the tests of the distillation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax.distill import Distiller, DistillOutput, distill_config
from drkd_jax.types import Features, FeatureSpec, Targets

CANVAS = 48, 64


def pyramid(
    seed: int,
    channels: int,
    strides: tuple[int, ...] = (8, 16),
    images: int = 2,
    kinds: tuple[str, ...] | None = None,
) -> Features:
    random = np.random.default_rng(seed)
    maps = tuple(
        jnp.asarray(
            random.standard_normal(
                (images, -(-CANVAS[0] // s), -(-CANVAS[1] // s), channels), np.float32
            )
        )
        for s in strides
    )
    spec = FeatureSpec((channels,) * len(strides), strides, kinds or ("lateral",) * len(strides))
    return Features(maps, spec)


def targets(counts: tuple[int, ...] = (3, 2), padding: int = 4, seed: int = 0) -> Targets:
    """Images smaller than the canvas, with the given numbers of valid boxes."""
    random = np.random.default_rng(seed)
    images = len(counts)
    low = random.uniform(0, 0.6, (images, padding, 2))
    high = low + random.uniform(0.05, 0.4, (images, padding, 2))
    boxes = np.concatenate([low, high], -1) * (40, 30, 40, 30)
    valid = np.arange(padding)[None] < np.asarray(counts)[:, None]
    return Targets(
        jnp.tile(jnp.asarray([[32, 44]]), (images, 1)),
        jnp.asarray(boxes, jnp.float32),
        jnp.zeros((images, padding), jnp.int32),
        jnp.asarray(valid),
        jnp.ones(images, bool),
    )


def settings(form: str = "paper", **pixel: Any) -> dict[str, Any]:
    return {
        "pixel_relation": {"form": form, "nodes": (4,), **pixel},
        "instance_relation": {"form": form, "embedding": 8, "filter_rank": 4},
        "instance_feature": {"form": form},
    }


def make(values: dict[str, Any], student: Features, teacher: Features) -> Distiller:
    return Distiller(distill_config(values), student.spec, teacher.spec, rngs=nnx.Rngs(0))


def call(
    module: Distiller, student: Features, teacher: Features, given: Targets, **more: Any
) -> DistillOutput:
    """Calls a distiller on the features and targets of these tests."""
    boxes, valid, sizes = given.boxes, given.valid, given.sizes
    return module(student.maps, teacher.maps, boxes, valid, sizes, given.image_valid, **more)


class Runner:
    """A distiller split into graph and states, with jitted loss and gradient."""

    def __init__(self, values: dict[str, Any], student: Features, teacher: Features):
        self.distiller = nnx.eval_shape(lambda: make(values, student, teacher))
        self.graph = nnx.split(self.distiller, self.distiller.is_trained, ...)[0]

        def start() -> Any:  # one program instead of one a parameter
            module = make(values, student, teacher)
            return nnx.split(module, module.is_trained, ...)[1:]

        self.params, self.rest = jax.jit(start)()
        self.run = jax.jit(self._run, static_argnames="train")
        self.differentiate = jax.jit(self._differentiate)

    def _run(
        self,
        params: Any,
        rest: Any,
        student: Features,
        teacher: Features,
        given: Targets,
        train: bool = True,
    ) -> tuple[DistillOutput, Any]:
        module = nnx.merge(self.graph, params, rest, copy=True)
        output = call(module, student, teacher, given, train=train)
        return output, nnx.split(module, module.is_trained, ...)[2]

    def _differentiate(
        self, params: Any, rest: Any, student: Features, teacher: Features, given: Targets
    ) -> Any:
        def total(params: Any, student: Features) -> Any:
            output, rest_after = self._run(params, rest, student, teacher, given)
            return sum(output.losses.values()), (output, rest_after)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, student)

    def losses(
        self, student: Features, teacher: Features, given: Targets, train: bool = True
    ) -> dict[str, float]:
        output, _ = self.run(self.params, self.rest, student, teacher, given, train=train)
        return {name: float(value) for name, value in output.losses.items()}


def relative(found: Any, wanted: Any) -> float:
    """Relative distance of two trees of arrays, each taken as one vector."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    off = size = 0.0
    for a, b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        off, size = off + ((a - b) ** 2).sum(), size + (b**2).sum()
    return float(np.sqrt(off / max(size, 1e-300)))


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A map [h, w, C] after a 3x3 convolution, in float64."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    (h, w), k = x.shape[:2], np.asarray(kernel, np.float64)
    return np.asarray(bias) + sum(
        padded[i : i + h, j : j + w] @ k[i, j] for i in range(3) for j in range(3)
    )
