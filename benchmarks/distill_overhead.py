"""What distillation adds to a step: (student + teacher + DRKD) / (student + teacher), per term.

    python benchmarks/distill_overhead.py [--detector retinanet] [--canvas 256,320] [--json FILE]

Both include the student's forward, losses and gradient and the teacher's forward. Each term alone,
all three, and all three in the official form are added in turn. The programs alternate in each
round, so that a busy machine slows all of them. Batches have 2 images with 20 boxes each.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.distill import Distiller, distill_config
from drkd_jax.types import Targets

TERMS = ("pixel_relation", "instance_relation", "instance_feature")
EXTRA = {"retinanet": "conv_c5", "faster_rcnn": "pool"}  # the possible students' extra level
BOXES = 20
IMAGES = 2


def wanted(*terms: str, **more: Any) -> dict[str, Any]:
    """Settings with only these terms."""
    return {term: dict(more) if term in terms else None for term in TERMS}


CASES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "pixel_relation": wanted("pixel_relation"),
    "pixel_relation, plain arithmetic": wanted("pixel_relation", arithmetic="plain"),
    "instance_relation": wanted("instance_relation"),
    "instance_feature": wanted("instance_feature"),
    "all": wanted(*TERMS),
    "all, official form": wanted(*TERMS, form="official"),
}


def draw(canvas: tuple[int, int]) -> tuple[jax.Array, Targets]:
    random = np.random.default_rng(0)
    low = random.uniform(0, 0.6, (IMAGES, BOXES, 2))
    high = low + random.uniform(0.05, 0.4, low.shape)
    boxes = np.concatenate([low, high], -1) * (canvas[1], canvas[0], canvas[1], canvas[0])
    images = random.standard_normal((IMAGES, *canvas, 3)).astype(np.float32)
    shape = IMAGES, BOXES
    return jnp.asarray(images), Targets(
        jnp.tile(jnp.asarray([canvas], jnp.int32), (IMAGES, 1)),
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(random.integers(0, 80, shape), jnp.int32),
        jnp.ones(shape, bool),
        jnp.ones(IMAGES, bool),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--detector", default="retinanet", choices=EXTRA)
    parser.add_argument("--canvas", default="256,320", help="height,width in pixels")
    parser.add_argument("--student-depth", type=int, default=50)
    parser.add_argument("--teacher-depth", type=int, default=101)
    parser.add_argument("--cases", default=";".join(CASES), help="of them, split by semicolons")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="write the rows to this file as well")
    arguments = parser.parse_args()
    canvas = tuple(int(side) for side in arguments.canvas.split(","))
    images, targets = draw((canvas[0], canvas[1]))

    def detector(depth: int, seed: int) -> Any:
        settings = {"detector": arguments.detector, "backbone": {"depth": depth}}
        settings["extra"] = EXTRA[arguments.detector]
        return models.init_detector(settings, 80, seed)

    student, teacher = detector(arguments.student_depth, 0), detector(arguments.teacher_depth, 1)
    graph, params, rest = nnx.split(student, student.is_trained, ...)
    teacher_graph, teacher_state = nnx.split(teacher)
    keys = jax.random.split(jax.random.key(0), IMAGES)

    def program(settings: dict[str, Any] | None) -> tuple[Any, tuple[Any, ...]]:
        held: tuple[Any, ...] = (None, {}, {})
        if settings is not None:
            specs = student.spec, teacher.spec
            distiller = Distiller(distill_config(settings), *specs, rngs=nnx.Rngs(0))
            held = nnx.split(distiller, distiller.is_trained, ...)

        def loss(
            trained: Any, others: Any, teacher_state: Any, images: jax.Array, targets: Targets
        ) -> Any:
            module = nnx.merge(graph, trained[0], others[0], copy=True)
            teacher_module = nnx.merge(teacher_graph, teacher_state, copy=True)
            features = module.features(images)
            known = teacher_module.features(images)
            total = sum(module.losses(features, targets, keys).values())
            if held[0] is not None:
                extra = nnx.merge(held[0], trained[1], others[1], copy=True)
                boxes, valid, sizes = targets.boxes, targets.valid, targets.sizes
                total = total + extra(features.maps, known.maps, boxes, valid, sizes).total
            return total, sum(x.mean() for x in known.maps)

        state = ((params, held[1]), (rest, held[2]), teacher_state, images, targets)
        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*state).compile(), state

    chosen = {name: CASES[name] for name in arguments.cases.split(";")}
    compiled = {name: program(settings) for name, settings in {"none": None, **chosen}.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(arguments.rounds + 1):
        for name, (function, state) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*state))
            if turn:
                times[name].append(time.perf_counter() - start)
    base = min(times["none"])
    base_mib = compiled["none"][0].memory_analysis().temp_size_in_bytes / 2**20
    rows = []
    print(f"{jax.devices()[0].device_kind}, {arguments.detector}, canvas {canvas}")
    print(f"{'added to student step + teacher forward':40} {'ms':>8} {'ratio':>6} {'MiB more':>9}")
    for name in compiled:
        best = min(times[name])
        more = compiled[name][0].memory_analysis().temp_size_in_bytes / 2**20 - base_mib
        rows.append({"case": name, "ms": 1e3 * best, "ratio": best / base, "mib_more": more})
        print(f"{name:40} {1e3 * best:8.0f} {best / base:6.3f} {more:9.1f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
