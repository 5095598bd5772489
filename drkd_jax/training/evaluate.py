"""Runs a detector on every image of a source and computes COCO's numbers.

Letters: B images, N detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from drkd_jax.data.pipeline import PipelineConfig, eval_batches
from drkd_jax.data.sources import Source
from drkd_jax.evaluation import coco_numbers, to_coco
from drkd_jax.fault_tolerance.processes import allgather
from drkd_jax.fault_tolerance.writing import write_json
from drkd_jax.models.pixels import Pixels
from drkd_jax.step.settings import EvalSettings
from drkd_jax.step.sharding import each_device, put_batch, replicated
from drkd_jax.step.state import Arrays
from drkd_jax.types import Batch, Detections

Predict = Callable[[Arrays, Batch], Detections]


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before its end."""


def predictor(graph: nnx.GraphDef, pixels: Pixels, mesh: Mesh, least_limit: int = 0) -> Predict:
    """The jitted function `(arrays of the module, batch) -> detections on the canvas`.

    Args:
        graph: the graph of a detector.
        pixels: the network's input format.
        mesh: the devices; the function compiles once per canvas.
        least_limit: detections per image that the detector's own limits must allow; see
            `raise_limits`.
    """

    def of_own(arrays: Arrays, batch: Batch) -> Detections:
        detector = nnx.merge(graph, *arrays, copy=True)
        if least_limit:
            detector.settings = raise_limits(detector.settings, least_limit)
        images, targets = pixels.prepare(batch)
        return detector.predict(detector.features(images), targets.sizes)

    def predict(arrays: Arrays, batch: Batch) -> Detections:
        return each_device(mesh, of_own)(arrays, batch)

    return jax.jit(predict, out_shardings=replicated(mesh))


def raise_limits(settings: Any, least: int) -> Any:
    """A detector's settings with all limits on counts in evaluation raised to at least `least`.

    Earlier detections are found again in the same order, unless a limit on candidates was reached.

    Args:
        settings: `RetinaNetSettings` or `FasterRCNNSettings`.
        least: detections per image.
    """
    test = settings.test
    test = dataclasses.replace(
        test, max_out=max(test.max_out, least), pre_nms=max(test.pre_nms, least)
    )
    changed = {"test": test}
    if hasattr(settings, "proposals"):
        changed["proposals"] = dataclasses.replace(
            settings.proposals,
            pre_nms_test=max(settings.proposals.pre_nms_test, least),
            max_out_test=max(settings.proposals.max_out_test, least),
        )
    return dataclasses.replace(settings, **changed)


def evaluate(
    predict: Predict,
    arrays: Arrays,
    source: Source,
    pipeline: PipelineConfig,
    settings: EvalSettings,
    mesh: Mesh,
    *,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
    skipped: Path | None = None,
    category_ids: Sequence[Any] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Predicts on every image and scores the result.

    Args:
        predict: from `predictor`.
        arrays: tuple of the states that its graph is merged with.
        source: images and ground truth.
        pipeline: sizes and reading; its batch size is replaced by that of `settings`.
        settings: batch size, number of images, evaluator and counted detections.
        mesh: the devices.
        progress: whether to show a progress bar.
        stop: called before every batch, by all processes alike; True stops the evaluation.
        skipped: called with the list of unreadable images, if those are skipped. Their boxes
            count as missed.
        category_ids: the source's id for each of the detector's classes (`match_classes`); None if
            the classes are the same.

    Returns:
        (the 12 numbers by their usual names, detections in COCO's form). Every process handles its
        share of the images, and all return the same.

    Raises:
        EvaluationStoppedError: `stop` returned True.
    """
    batch_size = -(-settings.batch_size // mesh.size) * mesh.size
    pipeline = dataclasses.replace(pipeline, batch_size=batch_size, flip=0.0, drop_empty=False)
    batches = eval_batches(
        source,
        pipeline,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_images=settings.max_images,
        skipped=skipped,
    )
    rows = _rows_of_all(mesh)
    found: list[dict[str, Any]] = []
    waiting: tuple[Batch, Detections] | None = None
    # None: shown on a terminal only
    hidden = None if progress and jax.process_index() == 0 else True
    for batch in tqdm(batches, total=len(batches), unit="batch", disable=hidden):
        if stop():
            raise EvaluationStoppedError
        placed = put_batch(batch, mesh)
        detections = predict(arrays, placed)
        batch = rows(batch, placed)
        if waiting is not None:  # read one batch late, to keep the device busy
            found += _read(*waiting, source, category_ids)
        waiting = (batch, detections)
    if waiting is not None:
        found += _read(*waiting, source, category_ids)
    batches.share_skipped(allgather)
    image_ids = batches.image_ids if settings.max_images else None
    truth = source.coco_ground_truth()
    numbers = coco_numbers(truth, found, image_ids, settings.evaluator, settings.max_detections)
    return numbers, found


def write_evaluation(
    workdir: Path,
    step: int,
    source: Source,
    numbers: dict[str, float],
    found: list[dict[str, Any]],
    max_images: int = 0,
) -> None:
    """Writes `eval.json` (numbers, step, data) and `detections.json` (COCO's form).

    Args:
        workdir: the folder.
        step: step of the checkpoint.
        source: the scored data.
        numbers: the 12 numbers.
        found: detections in COCO's form.
        max_images: how many images were scored, from the first on; 0: all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    images = min(max_images or len(source), len(source))
    content = {"step": step, "data": source.spec, "images": images, **numbers}
    write_json(workdir / "detections.json", found, indent=None)
    write_json(workdir / "eval.json", content)


def _rows_of_all(mesh: Mesh) -> Callable[[Batch, Batch], Batch]:
    """Gathers the fields of a batch that are needed to read detections, from all processes."""
    names = ("sizes", "flip", "image_valid", "index", "scale")
    spread = jax.jit(lambda rows: rows, out_shardings=replicated(mesh))

    def rows(batch: Batch, placed: Batch) -> Batch:
        if jax.process_count() == 1:
            return batch
        return batch._replace(**spread({name: getattr(placed, name) for name in names}))

    return rows


def _read(
    batch: Batch, detections: Detections, source: Source, category_ids: Sequence[Any] | None
) -> list[dict[str, Any]]:
    return to_coco(Detections(*jax.device_get(tuple(detections))), batch, source, category_ids)
