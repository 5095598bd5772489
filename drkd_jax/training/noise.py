"""A COCO set of noise: pictures and boxes that need no file, for measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_BOXES = 8  # a picture; COCO's own has 7.3


def write_noise(
    folder: Path, *, pictures: int, classes: int, shape: tuple[int, int], seed: int = 0
) -> str:
    """Writes pictures and annotations.

    Args:
        folder: where to.
        pictures: how many.
        classes: all of them are in the annotations' list.
        shape: height and width, pixels.
        seed: of pictures and boxes.

    Returns:
        The source's spec.
    """
    rng = np.random.default_rng(seed)
    height, width = shape
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, pictures + 1):
        # Coarse noise, so that a JPEG of it is of a photograph's size.
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        name = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (width, height)))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(_BOXES):
            w, h = rng.uniform(0.05, 0.5, 2) * (width, height)
            x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(1, classes + 1)),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return f"coco:{folder}:{folder / 'instances.json'}"
