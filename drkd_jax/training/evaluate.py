"""A detector over every picture of a source, scored by COCO's numbers.

Letters: B pictures, N detections.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from drkd_jax.data.pipeline import PipelineConfig, eval_batches
from drkd_jax.data.sources import Source
from drkd_jax.evaluation import coco_numbers, to_coco
from drkd_jax.ops.pictures import prepare
from drkd_jax.training.settings import EvalSettings
from drkd_jax.training.sharding import put_batch, replicated
from drkd_jax.training.state import Arrays
from drkd_jax.training.step import Pixels
from drkd_jax.types import Batch, Detections

Predict = Callable[[Arrays, Batch], Detections]


def predictor(graph: nnx.GraphDef, pixels: Pixels, mesh: Mesh) -> Predict:
    """The jitted function `(arrays of the module, batch) -> detections on the canvas`.

    Args:
        graph: of a detector.
        pixels: the network's input.
        mesh: the devices; it compiles once for each canvas.
    """

    def predict(arrays: Arrays, batch: Batch) -> Detections:
        detector = nnx.merge(graph, *arrays, copy=True)
        images, targets = prepare(batch, pixels.mean, pixels.std, pixels.dtype)
        return detector.predict(detector.features(images), targets.sizes)

    return jax.jit(predict, out_shardings=replicated(mesh))


def evaluate(
    predict: Predict,
    arrays: Arrays,
    source: Source,
    pipeline: PipelineConfig,
    settings: EvalSettings,
    mesh: Mesh,
    *,
    progress: bool = False,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Predicts on every picture and scores the result.

    Args:
        predict: from `predictor`.
        arrays: tuple of the states that its graph is merged with.
        source: pictures and ground truth.
        pipeline: sizes and reading; its batch size is replaced by that of `settings`.
        settings: batch size and how many pictures.
        mesh: the devices.
        progress: whether a bar is shown.

    Returns:
        (the 12 numbers by their usual names, detections in COCO's form).
    """
    batch_size = -(-settings.batch_size // mesh.size) * mesh.size
    pipeline = dataclasses.replace(pipeline, batch_size=batch_size, flip=0.0, drop_empty=False)
    batches = eval_batches(source, pipeline, max_pictures=settings.max_pictures)
    found: list[dict[str, Any]] = []
    waiting: tuple[Batch, Detections] | None = None
    hidden = None if progress else True  # None: shown on a terminal only
    for batch in tqdm(batches, total=len(batches), unit="batch", disable=hidden):
        detections = predict(arrays, put_batch(batch, mesh))
        if waiting is not None:  # read one batch late: the device works meanwhile
            found += _read(*waiting, source)
        waiting = (batch, detections)
    if waiting is not None:
        found += _read(*waiting, source)
    image_ids = batches.image_ids if settings.max_pictures else None
    return coco_numbers(source.coco_ground_truth(), found, image_ids), found


def write_evaluation(
    workdir: Path, step: int, source: Source, numbers: dict[str, float], found: list[dict[str, Any]]
) -> None:
    """Writes `eval.json` (numbers, step, data) and `detections.json` (COCO's form)."""
    content = {"step": step, "data": source.spec, "pictures": len(source), **numbers}
    (workdir / "eval.json").write_text(json.dumps(content, indent=2) + "\n")
    (workdir / "detections.json").write_text(json.dumps(found) + "\n")


def _read(batch: Batch, detections: Detections, source: Source) -> list[dict[str, Any]]:
    return to_coco(Detections(*jax.device_get(tuple(detections))), batch, source)
