"""The demo's output: PNGs of its first pair of students and their teacher, and its HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.sources import Source
from drkd_jax.data.sources.records import id_key
from drkd_jax.demo import DISTILLED, KINDS, PLAIN, TEACHER
from drkd_jax.report import figures
from drkd_jax.report.curves import curves, read_metrics
from drkd_jax.report.figures import Scene
from drkd_jax.report.found import NOTHING, Found, by_image
from drkd_jax.report.page import page
from drkd_jax.report.relations import LEAST, Relations, choose_images, similarity
from drkd_jax.report.runs import RunFiles, read_run

_SIDES = {"teacher": TEACHER, "student": DISTILLED}


def draw_figures(
    workdir: Path, val: Source, folders: Mapping[str, Path], shown: Relations
) -> dict[str, str]:
    """Draws all figures of a demo.

    Args:
        workdir: The folder for the PNGs.
        val: The images that the runs were evaluated on.
        folders: The run of each kind (``KINDS``), finished.
        shown: The result of `see_relations`.

    Returns:
        File name to caption, in the order of the report.
    """
    names = [category.name for category in val.categories]
    figures.detections(workdir / "detections.png", _scenes(val, folders), names)
    captions = {
        "detections.png": "Ground truth, and of each detector its best boxes, as many as there are "
        f"objects, on the first validation images with at least {LEAST} objects (the fullest "
        "ones where there are too few of them)."
    }
    if shown.pixel and len(shown.boxes):
        largest = shown.largest[0]
        point = shown.centre(largest)
        titles = ("features x", "relation features φ(x)")
        rows = [
            (point, {title: similarity(x, point) for title, x in zip(titles, maps, strict=True)})
            for maps in shown.pixel.values()
        ]
        figures.draw_pixels(
            workdir / "pixel_relation.png",
            shown.image,
            shown.stride,
            rows,
            heading=f"{figures.PIXELS_HEADING}, before and after the relation module",
            labels=[_SIDES[side] for side in shown.pixel],
            box=shown.boxes[largest],
        )
        captions["pixel_relation.png"] = (
            "How alike every pixel's features are to those at the centre of the largest object, "
            "before (x) and after (φ(x)) the relation module of each side."
        )
    if shown.instance and len(shown.boxes):
        matrices = {_SIDES[side]: psi for side, psi in shown.instance.items()}
        path = workdir / "instance_relation.png"
        figures.draw_boxes(path, shown.image, shown.boxes, shown.labels, names, matrices)
        captions["instance_relation.png"] = (
            "The relation matrix ψ between the objects of one image, on both sides."
        )
    records = {kind: read_metrics(folders[kind] / "metrics.jsonl") for kind in KINDS}
    scored = json.loads((folders[TEACHER] / "eval.json").read_text())
    curves(workdir / "curves.png", records, {} if records[TEACHER] else {TEACHER: scored["AP"]})
    captions["curves.png"] = (
        "Detection loss and AP over the steps, and what each term of the distillation is of the "
        "DRKD student's total loss."
    )
    return captions


def _scenes(source: Source, folders: Mapping[str, Path]) -> list[Scene]:
    detections = {
        kind: by_image(
            json.loads((folders[kind] / "detections.json").read_text()), source.categories
        )
        for kind in KINDS
    }
    scenes = []
    for record in map(source.record, choose_images(source)):
        key, kept = id_key(record.image_id), ~record.crowd
        found = {kind: rows.get(key, NOTHING) for kind, rows in detections.items()}
        truth = Found(record.boxes[kept], record.labels[kept])
        scenes.append(Scene(np.asarray(record.image), truth, found, record.name))
    return scenes


def demo_page(
    folders: Mapping[str, Path],
    configs: Mapping[str, dict[str, Any]],
    results: Mapping[str, Any],
    shown: Relations,
    draws: int,
) -> str:
    """One HTML page about a demo.

    Args:
        folders: The run of each kind (``KINDS``), finished.
        configs: The config of each kind that was trained here.
        results: The content of ``results.json``.
        shown: The distilled run's relations on one image.
        draws: Number of bootstrap draws of the validation images, for the intervals.
    """
    runs = [
        _run(kind, folders[kind], configs.get(kind, {}), results)
        for kind in (PLAIN, DISTILLED, TEACHER)
    ]
    data, seeds = results["data"], len(results["drkd_minus_plain"])
    words = [
        f"The students learn from {data['train_images']} labelled images ({data['train']}, "
        f"{data['train_boxes']} objects), the teacher learnt from {results['teacher']['train']}.",
        *results["verdict"],
        results["last_word"]["text"],
    ]
    if seeds > 1:
        words.append(f"All {seeds} pairs of students are in results.md; below is the first one.")
    title = f"DRKD demo: {results['detector']}"
    return page(runs, title=title, words=words, relations=(shown, _SIDES), draws=draws)


def _run(kind: str, folder: Path, config: dict[str, Any], results: Mapping[str, Any]) -> RunFiles:
    row = next(row for row in results["runs"] if row["folder"] == folder.name)
    summary = {
        "parameters": {"student": row["parameters"]},
        "steps": row["steps"],
        "best_step": row["best_step"],
        "seconds": row["train_seconds"],
        "warnings": row["warnings"],
    }
    return dataclasses.replace(
        read_run(kind, folder), data=results["data"]["val"], config=config, summary=summary
    )
