"""What the relation modules of a distilled run make of one picture: arrays for the figures.

Letters: B = 1 picture, H W pixels of the canvas, n boxes of the picture, h w one map, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from drkd_jax import distill, models
from drkd_jax.data.pipeline import eval_batches
from drkd_jax.training.checkpoint import Checkpoints
from drkd_jax.training.setup import Run, build_run
from drkd_jax.training.sharding import replicated
from drkd_jax.training.state import split_module
from drkd_jax.types import Batch, Features

SIDES: tuple[Literal["teacher"], Literal["student"]] = ("teacher", "student")


@dataclasses.dataclass(frozen=True)
class Relations:
    """Both sides' relations on one picture, at the finest level that they have in common.

    Attributes:
        image: RGB, as the detectors saw it, without padding.
        boxes: Ground truth, xyxy, pixels of ``image``.
        labels: 0..K-1.
        stride: Pixels of ``image`` from one feature pixel to the next.
        pixel: For each side x and phi(x), [h, w, C] over the canvas; empty where the run has no
            pixel relation.
        instance: For each side psi, [n, n]; empty where the run has no instance relation.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    stride: int
    pixel: dict[str, tuple[Float[np.ndarray, "_ _ _"], Float[np.ndarray, "_ _ _"]]]
    instance: dict[str, Float[np.ndarray, "n n"]]


def relations(config: Mapping[str, Any], workdir: str | Path, index: int) -> Relations:
    """Runs a distilled run's student, teacher and relation modules on one validation picture.

    Args:
        config: Of the run; it has a teacher and a distillation.
        workdir: Of the run; its newest checkpoint is read.
        index: Position of the picture in ``config.data.val``.

    Raises:
        UserError: The run, its teacher or the picture cannot be read.
    """
    run = build_run(config)
    assert run.teacher is not None
    checkpoints = Checkpoints(Path(workdir), run.train.keep)
    try:
        state = checkpoints.restore(run.state, replicated(run.mesh))
    finally:
        checkpoints.close()

    settings = {key: value for key, value in run.config["student"].items() if key != "init"}
    student = models.abstract_detector(settings, len(run.categories), dtype=run.pixels.dtype)
    terms = distill.distill_config(run.config["distill"])
    specs = student.spec, run.teacher.detector.spec
    distiller = nnx.eval_shape(lambda: distill.Distiller(terms, *specs, rngs=nnx.Rngs(0)))
    graphs = {
        "student": split_module(student, student.is_trained).graph,
        "distiller": split_module(distiller, distiller.is_trained).graph,
    }
    teacher_graph = run.teacher.graph
    pair = distiller.pairs[0]

    def compute(state: Any, teacher: Any, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        modules = {
            name: nnx.merge(graph, state.params[name], state.rest[name], copy=True)
            for name, graph in graphs.items()
        }
        images, targets = run.pixels.prepare(batch)
        seen = run.recipe.for_teacher(batch, images)
        features: dict[str, Features] = {
            "teacher": nnx.merge(teacher_graph, teacher, copy=True).features(seen),
            "student": modules["student"].features(images),
        }
        pixel: dict[str, Any] = {}
        instance: dict[str, Any] = {}
        for side in SIDES:
            unit, maps = modules["distiller"], features[side]
            if terms.pixel_relation is not None:
                pixel[side] = distill.relation_features(unit, maps, side, 0, targets)
            if terms.instance_relation is not None:
                instance[side] = distill.relation_matrix(unit, maps, targets, side, 0)
        return pixel, instance

    batch = _one_picture(run, index)
    pixel, instance = jax.device_get(jax.jit(compute)(state, run.teacher_arrays, batch))
    height, width = batch.sizes[0]
    valid = np.asarray(batch.valid[0])
    num_boxes = int(valid.sum())
    return Relations(
        image=np.rint(batch.images[0, :height, :width]).astype(np.uint8),
        boxes=np.asarray(batch.boxes[0])[valid],
        labels=np.asarray(batch.labels[0])[valid],
        stride=pair.stride,
        # jit hands dicts back in alphabetical order
        pixel={
            side: (_first(pixel[side][0]), _first(pixel[side][1]))
            for side in SIDES
            if side in pixel
        },
        instance={
            side: _first(instance[side])[:num_boxes, :num_boxes]
            for side in SIDES
            if side in instance
        },
    )


def _first(maps: np.ndarray) -> np.ndarray:
    return np.asarray(maps[0], np.float32)


def _one_picture(run: Run, index: int) -> Batch:
    pipeline = dataclasses.replace(run.pipeline, batch_size=1, flip=0.0, drop_empty=False)
    for batch in eval_batches(run.val_source, pipeline, max_pictures=index + 1):
        if int(batch.index[0]) == index:
            return batch
    raise IndexError(f"{run.val_source.spec} has no picture {index}")
