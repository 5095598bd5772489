"""The pictures of the demo: which ones are shown, and from which files of the runs they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.sources import Source
from drkd_jax.report import figures
from drkd_jax.report.curves import curves, read_metrics
from drkd_jax.report.figures import Found, Scene
from drkd_jax.report.relations import Relations, relations

TEACHER, PLAIN, DISTILLED = KINDS = ("teacher", "plain student", "DRKD student")
_SCENES = 3  # pictures in the figure of detections
_LEAST = 4  # objects that such a picture has at least


def see_relations(val: Source, config: Mapping[str, Any], folder: Path) -> Relations:
    """A distilled run's relations on the first picture that is shown."""
    return relations(config, folder, choose_pictures(val, _SCENES, _LEAST)[0])


def draw_pictures(
    workdir: Path, val: Source, folders: Mapping[str, Path], shown: Relations
) -> dict[str, str]:
    """Draws everything that the runs of a demo have to show.

    Args:
        workdir: Where the PNGs go.
        val: The pictures that the runs were evaluated on.
        folders: The run of each kind (``KINDS``), finished.
        shown: What `see_relations` gave.

    Returns:
        File name to caption, in the order of the report.
    """
    names = [category.name for category in val.categories]
    indices = choose_pictures(val, _SCENES, _LEAST)
    scenes = _scenes(val, indices, folders)
    figures.detections(workdir / "detections.png", scenes, names)
    captions = {
        "detections.png": "Ground truth, and of each detector its best boxes, as many as there are "
        f"objects, on the first validation pictures with at least {_LEAST} objects (the fullest "
        "ones where there are too few of them)."
    }
    named = {"teacher": TEACHER, "student": DISTILLED}
    if shown.pixel and len(shown.boxes):
        sides = shown.boxes[:, 2:] - shown.boxes[:, :2]
        box = shown.boxes[int(np.argmax(sides[:, 0] * sides[:, 1]))]
        maps = {named[side]: pair for side, pair in shown.pixel.items()}
        figures.pixel_relation(workdir / "pixel_relation.png", shown.image, box, shown.stride, maps)
        captions["pixel_relation.png"] = (
            "How alike every pixel's features are to those at the centre of the largest object, "
            "before (x) and after (φ(x)) the relation module of each side."
        )
    if shown.instance and len(shown.boxes):
        matrices = {named[side]: psi for side, psi in shown.instance.items()}
        path = workdir / "instance_relation.png"
        figures.instance_relation(path, shown.image, shown.boxes, shown.labels, names, matrices)
        captions["instance_relation.png"] = (
            "The relation matrix ψ between the objects of one picture, on both sides."
        )
    records = {kind: read_metrics(folders[kind] / "metrics.jsonl") for kind in KINDS}
    scored = json.loads((folders[TEACHER] / "eval.json").read_text())
    curves(workdir / "curves.png", records, {} if records[TEACHER] else {TEACHER: scored["AP"]})
    captions["curves.png"] = (
        "Detection loss and AP over the steps, and what each term of the distillation is of the "
        "DRKD student's total loss."
    )
    return captions


def choose_pictures(source: Source, number: int, least: int) -> list[int]:
    """The first pictures with enough objects; where there are too few of them, the fullest.

    Which pictures are shown does not depend on what any detector finds in them.
    """
    counts = np.array([source.meta(i).num_boxes for i in range(len(source))])
    enough = np.flatnonzero(counts >= least)
    if len(enough) < number:
        enough = np.argsort(-counts, kind="stable")
    return [int(i) for i in enough[:number]]


def _scenes(source: Source, indices: Sequence[int], folders: Mapping[str, Path]) -> list[Scene]:
    label_of = {category.id: label for label, category in enumerate(source.categories)}
    detections = {
        kind: json.loads((folders[kind] / "detections.json").read_text()) for kind in KINDS
    }
    scenes = []
    for index in indices:
        record = source.record(index)
        kept = ~record.crowd
        found = {}
        for name, rows in detections.items():
            mine = [row for row in rows if row["image_id"] == record.image_id]
            boxes = np.array([row["bbox"] for row in mine], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = np.array([label_of[row["category_id"]] for row in mine], np.int64)
            found[name] = Found(boxes, labels, np.array([row["score"] for row in mine], np.float32))
        truth = Found(record.boxes[kept], record.labels[kept])
        scenes.append(Scene(np.asarray(record.image), truth, found, record.name))
    return scenes
