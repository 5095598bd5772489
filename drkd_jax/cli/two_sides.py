"""The input of `visualize`: the two models with their graph units, and the boxes of an image.

Boxes are those of a COCO json, wherever its images are, or the first model's detections.

Letters: N detections, n boxes, K classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from drkd_jax.boxes import pairwise_iou
from drkd_jax.cli.detector import Read, open_named, read, size_of_a_run
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources.coco import load_json
from drkd_jax.data.sources.instances import parse_instances
from drkd_jax.data.sources.records import id_key
from drkd_jax.errors import UserError, faults_of
from drkd_jax.fault_tolerance.kept_distiller import load_distiller
from drkd_jax.report.two_models import Model, Seen, Units
from drkd_jax.training.teacher import teacher_spec

SIDES = ("weights", "against")  # the arguments that name them
SAME_PLACE = 0.5  # overlap from which two detections count as one place
MOST_PIXELS = 4  # most pixels to show if none is given


class Side(NamedTuple):
    """One of the two models, and where it was read from."""

    read: Read
    model: Model
    said: str  # about its graph units


def read_sides(arguments: argparse.Namespace) -> tuple[Side, Side]:
    """Reads both models; prints which of them have graph units.

    Args:
        arguments: with the places `weights` and `against`, `which` and `size`.

    Raises:
        UserError: there is no checkpoint, it cannot be used, or --size is given for two runs.
    """
    places = [getattr(arguments, side) for side in SIDES]
    found = []
    for place in places:
        found.append(
            open_named(argparse.Namespace(workdir=None, weights=place, which=arguments.which))
        )
    if arguments.size and all(each.config for each in found):
        raise UserError(size_of_a_run(places[0]))
    reads = [read(each, None if each.config else arguments.size) for each in found]
    sides = []
    for own, other in ((0, 1), (1, 0)):
        units, said = _units(places[own], reads[own], places[other], reads[other])
        letter, name = "AB"[own], Path(places[own]).resolve().name
        print(f"{letter} {places[own]}, step {reads[own].step}: {said}")
        model = Model(f"{letter} {name}", reads[own].detector, reads[own].pixels, units)
        sides.append(Side(reads[own], model, said))
    return sides[0], sides[1]


def _units(place: str, read: Read, other: str, of_other: Read) -> tuple[Units | None, str]:
    """The graph units of a model: of its own run, else of the run that it teaches."""
    if _is_distilled(read):
        taught = _teaches(other, read)
        with faults_of(f"{place}: its config.teacher"):
            teacher = read.config["teacher"]
            spec = of_other.detector.spec if taught else teacher_spec(teacher, read.num_classes)
        specs = read.detector.spec, spec
        found = load_distiller(place, read.step, read.config, specs)
        if found is None:
            return None, (
                f"its run keeps no graph units of step {read.step}; --which=last takes a step "
                "that has them"
            )
        if found.pixel_relation is None:
            return None, "its distillation has no pixel relation, so no graph units"
        return Units(found, "student"), "before (x) and after (φ(x)) the student's graph units"
    if _is_distilled(of_other) and _teaches(place, of_other):
        specs = of_other.detector.spec, read.detector.spec
        found = load_distiller(other, of_other.step, of_other.config, specs)
        if found is not None and found.pixel_relation is not None:
            return Units(found, "teacher"), (
                "before (x) and after (φ(x)) the teacher's graph units of the run that it taught"
            )
    return None, "features only: it has no graph units"


def _is_distilled(read: Read) -> bool:
    return read.config.get("distill") is not None and read.config.get("teacher") is not None


def _teaches(place: str, student: Read) -> bool:
    named = student.config["teacher"].get("checkpoint")
    return bool(named) and Path(named).resolve() == Path(place).resolve()


def joint_pipeline(own: Read, other: Read) -> PipelineConfig:
    """The sizes of --weights, on canvases that both pyramids can halve evenly."""
    stride = math.lcm(own.detector.stride, other.detector.stride)
    canvases = tuple(
        (-(-height // stride) * stride, -(-width // stride) * stride)
        for height, width in own.pipeline.canvases
    )
    keys = "shorter", "longer", "resize"
    of = [", ".join(str(getattr(each.pipeline, key)) for key in keys) for each in (own, other)]
    if of[0] != of[1]:
        print(f"both see images resized as A does ({of[0]}); B was made for {of[1]}")
    return dataclasses.replace(own.pipeline, batch_size=1, canvases=canvases)


class ImageBoxes(NamedTuple):
    """The boxes of one image in a file, without crowd regions and unusable boxes."""

    boxes: Float[np.ndarray, "n 4"]  # xyxy, pixels of the image
    labels: Int[np.ndarray, "n"]  # 0..K-1
    names: tuple[str, ...]  # of the K classes
    height: int
    width: int


def boxes_of(file: Path, paths: Sequence[Path]) -> list[ImageBoxes]:
    """The boxes of each image, found by its file name.

    Of several entries with that name, the one that shares most folders with the path is used.

    Raises:
        UserError: it is not an instances file, or an image has no entry, several, or no box.
    """
    content = load_json(file)
    images = content.get("images")
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in images if isinstance(images, list) else []:
        if isinstance(row, dict) and isinstance(row.get("file_name"), str):
            by_name.setdefault(_parts(row["file_name"])[-1], []).append(row)
    annotations = content.get("annotations")
    rows = annotations if isinstance(annotations, list) else []
    found = []
    for path in paths:
        image = _entry(file, path, by_name.get(_parts(str(path))[-1], []))
        key = id_key(image.get("id"))
        own = [r for r in rows if isinstance(r, dict) and id_key(r.get("image_id")) == key]
        table = parse_instances({**content, "images": [image], "annotations": own}, str(file))
        boxes, labels, crowd = table.boxes(0)
        if crowd.all():
            raise UserError(f"{path}: --boxes={file} has no usable box of it")
        names = tuple(category.name for category in table.categories)
        size = table.meta(0)
        found.append(ImageBoxes(boxes[~crowd], labels[~crowd], names, size.height, size.width))
    return found


class Boxes(NamedTuple):
    """The boxes of one image, on its canvas; `scores` None: ground truth."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"] | None
    names: tuple[str, ...]
    left_out: int  # by --max

    def entries(self, scale: Float[np.ndarray, "2"]) -> list[dict[str, Any]]:
        """The boxes in COCO's form (x, y, width, height), pixels of the image, by row."""
        corners = self.boxes.astype(np.float64) / np.tile(scale, 2)
        corners[:, 2:] -= corners[:, :2]
        rows = []
        for i, box in enumerate(np.round(corners, 2).tolist()):
            row: dict[str, Any] = {"bbox": box, "name": self.names[int(self.labels[i])]}
            if self.scores is not None:
                row["score"] = round(float(self.scores[i]), 4)
            rows.append(row)
        return rows


def given(truth: ImageBoxes, scale: Float[np.ndarray, "2"], most: int) -> Boxes:
    """The first boxes of a json, on the canvas; `scale` is canvas over image pixels (x, y)."""
    on_canvas = (truth.boxes * np.tile(scale, 2)).astype(np.float32)
    left_out = max(0, len(on_canvas) - most)
    return Boxes(on_canvas[:most], truth.labels[:most], None, truth.names, left_out)


def detected(seen: Seen, read: Read, lowest: float, most: int) -> Boxes:
    """The best detections of a model with at least a given score."""
    assert seen.found is not None
    found, scores, labels, valid = (np.asarray(v)[0] for v in jax.device_get(tuple(seen.found)))
    good = np.flatnonzero(valid & (scores >= lowest))
    good = _apart(found, good[np.argsort(-scores[good], kind="stable")])
    kept = good[:most]
    names = tuple(category.name for category in read.classes)
    left_out = len(good) - len(kept)
    return Boxes(found[kept].astype(np.float32), labels[kept], scores[kept], names, left_out)


def _apart(found: Float[np.ndarray, "N 4"], best: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """One box per place: of those that overlap by half or more, the first, whatever its class.

    Otherwise boxes of two classes for one object would mostly relate to each other.
    """
    overlaps = np.asarray(pairwise_iou(found, found))
    kept: list[int] = []
    for i in best.tolist():
        if not (overlaps[i, kept] >= SAME_PLACE).any():
            kept.append(i)
    return np.array(kept, np.int64)


def middles(boxes: Boxes, height: int, width: int) -> list[tuple[float, float]]:
    """Centres of the best (of ground truth, largest) boxes; without boxes, of the four quarters."""
    if not len(boxes.boxes):
        return [(width * x, height * y) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    by = sides.prod(axis=1) if boxes.scores is None else boxes.scores
    best = boxes.boxes[np.argsort(-by, kind="stable")[:MOST_PIXELS]]
    return [(float(x), float(y)) for x, y in (best[:, :2] + best[:, 2:]) / 2]


def _entry(file: Path, path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        raise UserError(f"{path}: --boxes={file} has no image of that name")
    own = _parts(os.path.abspath(path))
    shared = [_shared(own, _parts(row["file_name"])) for row in rows]
    best = max(shared)
    if shared.count(best) > 1:
        raise UserError(f"{path}: --boxes={file} has {shared.count(best)} images of that name")
    return rows[shared.index(best)]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths have in common, counted from their ends."""
    same = (a == b for a, b in zip(reversed(one), reversed(other), strict=False))
    return sum(itertools.takewhile(bool, same))


def _parts(path: str) -> list[str]:
    tidy = unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()
    return list(PurePosixPath(tidy).parts) or [""]
