"""A small COCO-style set on disk, written anew for each test that uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

IMAGES = [  # id, file name, height, width
    (7, "a.jpg", 60, 80),
    (3, "b.jpg", 90, 50),
    (9, "c.jpg", 40, 40),
    (12, "d.jpg", 48, 64),
]
ANNOTATIONS = [  # id, image, category, bbox, crowd
    (101, 7, 1, [10.5, 12.25, 30.0, 20.0], 0),
    (102, 7, 90, [70.0, 50.0, 10.0, 10.0], 0),
    (103, 7, 1, [0.0, 0.0, 40.0, 30.0], 1),
    (104, 3, 17, [5.0, 5.0, 40.37, 80.11], 0),
    (106, 12, 1, [3.0, 4.0, 5.0, 6.0], 1),
    (105, 3, 1, [1.0, 2.0, 3.0, 4.0], 0),
]


def instances() -> dict[str, Any]:
    """An instances dict with unordered ids and gaps between category ids."""
    return {
        "images": [
            {"id": i, "file_name": name, "height": h, "width": w} for i, name, h, w in IMAGES
        ],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, image, category, box, crowd in ANNOTATIONS
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 1, "name": "person"},
            {"id": 17, "name": "cat"},
        ],
    }


class CocoFolder:
    """A folder with ``images/`` and ``instances.json`` that tests may damage."""

    def __init__(self, root: Path):
        self.images, self.json = root / "images", root / "instances.json"
        self.images.mkdir(parents=True)
        self.content = instances()
        rng = np.random.default_rng(0)
        for _, name, h, w in IMAGES:
            cv2.imwrite(str(self.images / name), rng.integers(0, 256, (h, w, 3), np.uint8))
        self.write()

    def write(self) -> None:
        self.json.write_text(json.dumps(self.content))

    @property
    def spec(self) -> str:
        return f"coco:{self.images}:{self.json}"


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path / "set")
