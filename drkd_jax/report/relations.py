"""Applies the relation modules of a distilled run to one image, to get arrays for the figures.

Figures show the first images with enough objects, whatever any detector finds in them.

Letters: B = 1 image, H W pixels of the canvas, n boxes of the image, h w one map, C channels.
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
from drkd_jax.data.sources import Source
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.step.sharding import replicated
from drkd_jax.step.state import split_module
from drkd_jax.training.setup import Run, build_run
from drkd_jax.types import Batch, Features

SHOWN = 3  # images in a figure
LEAST = 4  # least number of objects in such an image
SIDES: tuple[Literal["teacher"], Literal["student"]] = ("teacher", "student")


@dataclasses.dataclass(frozen=True)
class Relations:
    """Both sides' relations on one image, at the finest level that they have in common.

    Attributes:
        image: RGB, as the detectors saw it, without padding.
        boxes: Ground truth, xyxy, pixels of ``image``.
        labels: 0..K-1.
        stride: Pixels of ``image`` from one feature pixel to the next.
        pixel: For each side x and phi(x), [h, w, C]; empty if the run has no pixel relation.
        instance: For each side psi, [n, n]; empty if the run has no instance relation.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    stride: int
    pixel: dict[str, tuple[Float[np.ndarray, "_ _ _"], Float[np.ndarray, "_ _ _"]]]
    instance: dict[str, Float[np.ndarray, "n n"]]

    @property
    def largest(self) -> Int[np.ndarray, "n"]:
        """The boxes' indices, the largest box first."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return np.argsort(-sides.prod(axis=1), kind="stable")

    def centre(self, box: int) -> tuple[int, int]:
        """Row and column of the feature pixel at a box's centre."""
        (maps, _), *_ = self.pixel.values()
        x, y = (self.boxes[box, :2] + self.boxes[box, 2:]) / 2
        return pixel_at(float(x), float(y), self.stride, maps.shape)


def relations(config: Mapping[str, Any], workdir: str | Path, index: int) -> Relations:
    """Runs a distilled run's student, teacher and relation modules on one validation image.

    Args:
        config: Config of the run; it has a teacher and a distillation.
        workdir: Folder of the run; its newest checkpoint is read (the student's average, if kept).
        index: Position of the image in ``config.data.val``.

    Raises:
        UserError: The run, its teacher or the image cannot be read.
    """
    run = build_run(config)
    assert run.teacher is not None
    checkpoints = Checkpoints(Path(workdir), run.train.keep, read_only=True)
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
        arrays = {
            "student": state.student,  # its average, where that is what is scored
            "distiller": (state.params["distiller"], state.model_state["distiller"]),
        }
        modules = {
            name: nnx.merge(graph, *arrays[name], copy=True) for name, graph in graphs.items()
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
            if distiller.pixel_relation is not None:
                pixel[side] = distill.relation_features(unit, maps, side, 0, targets)
            if distiller.instance_relation is not None:
                instance[side] = distill.relation_matrix(unit, maps, targets, side, 0)
        return pixel, instance

    batch = _one_image(run, index)
    pixel, instance = jax.device_get(jax.jit(compute)(state, run.teacher_arrays, batch))
    height, width = batch.sizes[0]
    valid = np.asarray(batch.valid[0])
    num_boxes = int(valid.sum())
    rows, columns = (-(-int(size) // pair.stride) for size in (height, width))

    return Relations(
        image=np.rint(batch.images[0, :height, :width]).astype(np.uint8),
        boxes=np.asarray(batch.boxes[0])[valid],
        labels=np.asarray(batch.labels[0])[valid],
        stride=pair.stride,
        # jit hands dicts back in alphabetical order
        pixel={
            side: (of_image(x, rows, columns), of_image(phi, rows, columns))
            for side in SIDES
            if side in pixel
            for x, phi in [pixel[side]]
        },
        instance={
            side: of_image(instance[side], num_boxes, num_boxes)
            for side in SIDES
            if side in instance
        },
    )


def of_image(arrays: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The rows and columns of a batch of one image, without padding."""
    return np.asarray(arrays[0, :rows, :columns], np.float32)


def _one_image(run: Run, index: int) -> Batch:
    pipeline = dataclasses.replace(run.pipeline, batch_size=1, flip=0.0, drop_empty=False)
    for batch in eval_batches(run.val_source, pipeline, max_images=index + 1):
        if int(batch.index[0]) == index:
            return batch
    raise IndexError(f"{run.val_source.spec} has no image {index}")


def see_relations(val: Source, config: Mapping[str, Any], workdir: str | Path) -> Relations:
    """`relations` for the first image that figures show."""
    return relations(config, workdir, choose_images(val)[0])


def choose_images(source: Source, number: int = SHOWN, least: int = LEAST) -> list[int]:
    """The first images with enough objects; if there are too few, those with the most."""
    counts = np.array([source.meta(i).num_boxes for i in range(len(source))])
    enough = np.flatnonzero(counts >= least)
    if len(enough) < number:
        enough = np.argsort(-counts, kind="stable")
    return [int(i) for i in enough[:number]]


def pixel_at(x: float, y: float, stride: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Row and column of the feature pixel under a point of the image; `shape` is the map's."""
    return min(int(y / stride), shape[0] - 1), min(int(x / stride), shape[1] - 1)


def similarity(
    features: Float[np.ndarray, "h w C"], point: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """The similarity of every pixel's channels to those of one pixel.

    The mean over the map is subtracted first: the features of a network have a large common part,
    due to which all pixels would look alike.

    Args:
        features: One map.
        point: Row and column of the reference pixel.

    Returns:
        Cosine, -1..1; 1 at the point itself, 0 for a pixel that equals the mean.
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean((0, 1))
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[point]
