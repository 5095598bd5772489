"""COCO's 12 numbers by both evaluators, alternating: seconds, their ratio, and differences.

    python benchmarks/evaluation.py [--images 5000] [--detections 45] [--repeat 2]

Images have 7.3 boxes of 80 classes on average, as in COCO's validation set; 1 % are crowds. Seven
tenths of the detections are near a box.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from typing import Any

import numpy as np

from drkd_jax.evaluation import EVALUATORS, coco_numbers

CLASSES = 80
BOXES = 7.3


def make(number: int, detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image_id in range(1, number + 1):
        count = rng.poisson(BOXES)
        corners, sides = rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(0.7, 5.7, (count, 2)))
        boxes, labels = np.concatenate([corners, sides], axis=1), rng.integers(1, 81, count)
        annotations += [
            {
                "id": len(annotations) + i + 1,
                "image_id": image_id,
                "category_id": int(labels[i]),
                "bbox": boxes[i].tolist(),
                "area": float(boxes[i, 2] * boxes[i, 3]) * 0.7,
                "iscrowd": int(rng.random() < 0.01),
            }
            for i in range(count)
        ]
        for _ in range(detections):
            label, box = int(rng.integers(1, 81)), rng.uniform(1, 300, 4)
            if count and rng.random() < 0.7:
                at = rng.integers(count)
                label = int(labels[at])
                box = boxes[at] + rng.normal(0, 0.1, 4) * boxes[at, [2, 3, 2, 3]]
            entry = {"image_id": image_id, "category_id": label, "score": float(rng.random())}
            found.append({**entry, "bbox": box.tolist()})
    images = [
        {"id": i + 1, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(number)
    ]
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=45, help="an image")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file as well")
    arguments = parser.parse_args()
    truth, found = make(arguments.images, arguments.detections)
    print(
        f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores): "
        f"{arguments.images} images, {len(truth['annotations'])} boxes, {len(found)} detections"
    )
    seconds: dict[str, list[float]] = {name: [] for name in EVALUATORS}
    numbers = {}
    for _ in range(arguments.repeat):  # alternating, so that a busy machine slows both
        for name in EVALUATORS:
            start = time.perf_counter()
            numbers[name] = coco_numbers(truth, found, evaluator=name)
            seconds[name].append(time.perf_counter() - start)
            print(
                f"  {name:12s} {seconds[name][-1]:7.2f} s  AP {numbers[name]['AP']:.6f}", flush=True
            )
    best = {name: min(taken) for name, taken in seconds.items()}
    ratio = best["pycocotools"] / best["faster"]
    off = max(abs(numbers["faster"][key] - value) for key, value in numbers["pycocotools"].items())
    print(
        f"pycocotools {best['pycocotools']:.2f} s, faster {best['faster']:.2f} s: "
        f"ratio {ratio:.2f}; the 12 numbers differ by {off:.1e} at most"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"seconds": best, "ratio": ratio, "difference": off}, file, indent=1)


if __name__ == "__main__":
    main()
