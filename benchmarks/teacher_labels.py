"""Lets a teacher label the images of a set that a student has no labels for.

    python benchmarks/teacher_labels.py --teacher=runs/gain/teachers/deeppcb/faster_rcnn \
        --labelled=runs/gain/deeppcb_few_labels/labels/deeppcb-84.json \
        --all=DIR/deeppcb/instances_train.json --images=DIR/deeppcb/images --out=runs/teacher_labels

calls `predict --keep=SCORE --root=IMAGES --no-drawings` on every image of ``--all`` that is not
in ``--labelled``, and prints how many of its boxes are right: of the true class and with an overlap
of at least a half, each true box once. `benchmarks/gain/deeppcb_teacher_labels.toml` trains
students on both files.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax import __main__ as command_line
from drkd_jax import boxes as box_ops


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("teacher", "labelled", "all", "images", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of a label")
    given = parser.parse_args()
    known = {row["file_name"] for row in _read(given.labelled)["images"]}
    truth = _read(given.all)
    others = [row for row in truth["images"] if row["file_name"] not in known]
    paths = [str(given.images / row["file_name"]) for row in others]
    options = [f"--workdir={given.teacher}", f"--out={given.out}", f"--keep={given.score}"]
    options += [f"--root={given.images}", "--no-drawings"]
    code = command_line.main(["predict", *options, *paths])
    if code:
        raise SystemExit(code)
    counts = compare(truth, _read(given.out / "detections.json"))
    (given.out / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    print(
        f"{counts['images']} images: {counts['labels']} boxes of the teacher, "
        f"{counts['right']} of them right; {counts['truths']} true boxes"
    )


def compare(truth: dict[str, Any], found: dict[str, Any]) -> dict[str, int]:
    """Counts of images and of found, true and correctly found boxes.

    Args:
        truth: COCO's instances dict of these images, and possibly others.
        found: the instances dict of `predict`, with the same image names.
    """
    true_boxes, class_of = (
        defaultdict(list),
        {row["id"]: row["name"] for row in truth["categories"]},
    )
    name_of = {row["id"]: row["file_name"] for row in truth["images"]}
    for row in truth["annotations"]:
        key = name_of[row["image_id"]], class_of[row["category_id"]]
        true_boxes[key].append(row["bbox"])
    named = {row["id"]: row["name"] for row in found["categories"]}
    files = {row["id"]: row["file_name"] for row in found["images"]}
    taken: dict[Any, set[int]] = defaultdict(set)
    right = 0
    for row in sorted(found["annotations"], key=lambda row: -row["score"]):
        key = files[row["image_id"]], named[row["category_id"]]
        overlaps = _overlaps(row["bbox"], true_boxes.get(key, []))
        free = [i for i in np.argsort(-overlaps) if overlaps[i] >= 0.5 and i not in taken[key]]
        if free:
            taken[key].add(int(free[0]))
            right += 1
    seen = set(files.values())
    truths = sum(len(boxes) for (name, _), boxes in true_boxes.items() if name in seen)
    return {
        "images": len(files),
        "labels": len(found["annotations"]),
        "truths": truths,
        "right": right,
    }


def _overlaps(box: list[float], others: list[list[float]]) -> np.ndarray:
    corners = np.asarray([box, *others], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return np.asarray(box_ops.pairwise_iou(corners[:1], corners[1:]))[0]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    main()
