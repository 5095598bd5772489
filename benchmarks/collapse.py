"""Which ways to embed the teacher collapse if there is nothing to learn.

    python benchmarks/collapse.py [--steps N] [--json FILE]

Student and teacher features are independent noise, drawn anew at each step, so no distiller can
predict one from the other: a loss that falls far below its start has collapsed to an empty
agreement. In a second table the student's features are a noisy linear image of the teacher's; there
the loss should fall. Each way is trained by SGD with momentum 0.9, as a detector is.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from drkd_jax.distill import Distiller, distill_config
from drkd_jax.monitoring.collapse import CollapseMonitor
from drkd_jax.types import Features, FeatureSpec, Targets

CHANNELS = 32
STRIDES = (8, 16)
CANVAS = 128
SPEC = FeatureSpec((CHANNELS,) * 2, STRIDES, ("lateral",) * 2)


def draw(key: jax.Array, related: bool, boxes: int) -> tuple[Features, Features, Targets]:
    """A batch of two images: noise maps and random boxes."""
    maps: tuple[list[jax.Array], list[jax.Array]] = ([], [])
    mixing = jax.random.normal(jax.random.key(99), (CHANNELS, CHANNELS)) / CHANNELS**0.5
    for i, stride in enumerate(STRIDES):
        shape = (2, CANVAS // stride, CANVAS // stride, CHANNELS)
        student, teacher = (
            jax.random.normal(jax.random.fold_in(key, 2 * i + side), shape) for side in (0, 1)
        )
        maps[0].append(teacher @ mixing + 0.3 * student if related else student)
        maps[1].append(teacher)
    corner = jax.random.uniform(jax.random.fold_in(key, 7), (2, boxes, 2), maxval=0.6 * CANVAS)
    side = jax.random.uniform(
        jax.random.fold_in(key, 8), (2, boxes, 2), minval=8.0, maxval=0.4 * CANVAS
    )
    targets = Targets(
        jnp.full((2, 2), CANVAS),
        jnp.concatenate([corner, corner + side], -1),
        jnp.zeros((2, boxes), jnp.int32),
        jnp.ones((2, boxes), bool),
        jnp.ones(2, bool),
    )
    return Features(tuple(maps[0]), SPEC), Features(tuple(maps[1]), SPEC), targets


def train(
    settings: dict[str, Any],
    *,
    related: bool,
    steps: int,
    learning_rate: float,
    boxes: int = 8,
    log_every: int = 20,
) -> tuple[list[dict[str, float]], list[str]]:
    """Trains only a distiller; returns its log and the monitor's messages."""
    distiller = Distiller(distill_config(settings), SPEC, SPEC, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(distiller, distiller.is_trained, ...)
    optimizer = optax.sgd(learning_rate, momentum=0.9)

    @jax.jit
    def step(params: Any, rest: Any, state: Any, key: jax.Array) -> Any:
        student, teacher, targets = draw(key, related, boxes)

        def loss(params: Any) -> Any:
            module = nnx.merge(graph, params, rest, copy=True)
            boxes, valid, sizes = targets.boxes, targets.valid, targets.sizes
            output = module(student.maps, teacher.maps, boxes, valid, sizes)
            return output.total, (output, nnx.split(module, module.is_trained, ...)[2])

        (_, (output, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), moved, state, output

    state = optimizer.init(params)
    monitor = CollapseMonitor(warmup=1, patience=2)
    rows, warnings = [], []
    for i in range(steps + 1):
        params, rest, state, output = step(params, rest, state, jax.random.key(1000 + i))
        if i % log_every == 0:
            row = {**output.losses, **output.diagnostics}
            rows.append({name: float(value) for name, value in row.items()})
            warnings += monitor.observe(rows[-1])
    return rows, warnings


WAYS = ("trained", "frozen", "shared", "average")


def settings(form: str, way: str) -> dict[str, Any]:
    """Settings of all three terms in one form, with one way to embed the teacher."""
    weights = {"paper": (1.0, 1.0, 1.0), "official": (1e-3, 4e-3, 2.4e-3)}[form]
    common = {"form": form, "teacher_modules": way}
    if way == "average":
        common["momentum"] = 0.99
    return {
        "pixel_relation": {**common, "weight": weights[0], "nodes": (8,)},
        "instance_relation": {**common, "weight": weights[1]},
        "instance_feature": {"form": form, "weight": weights[2]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--forms", default="paper,official")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", help="write all logged rows to this file")
    arguments = parser.parse_args()
    watched = ("pixel_relation", "pixel_relation/P3/teacher_norm", "instance_relation")
    watched += ("instance_relation/P3/teacher_entropy",)
    everything = []
    for related in (False, True):
        print("related features" if related else "independent noise", "(first -> last)")
        heads = ("L_PR", "norm of phi_t over t", "L_IR", "entropy over log n")
        print("form     teacher ", " ".join(f"{head:21}" for head in heads), "warnings")
        for form in arguments.forms.split(","):
            for way in arguments.ways.split(","):
                rows, warnings = train(
                    settings(form, way),
                    related=related,
                    steps=arguments.steps,
                    learning_rate=arguments.learning_rate,
                )
                first, last = rows[0], rows[-1]
                parts = [f"{first[name]:9.4g} -> {last[name]:<8.3g}" for name in watched]
                named = sorted({w.split()[1] for w in warnings})
                print(f"{form:8} {way:8} {' '.join(parts)} {', '.join(named) or '-'}", flush=True)
                everything.append({"related": related, "form": form, "way": way, "rows": rows})
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(everything, file)


if __name__ == "__main__":
    main()
