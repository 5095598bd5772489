"""Every annotation of a source in a few flat arrays: small to pickle, quick to count.

Letters: P pictures, M annotations, n boxes of one picture.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped

from drkd_jax.data.records import Category, Id, Meta


@dataclasses.dataclass(frozen=True)
class AnnotationTable:
    """Annotations of P pictures, grouped by picture; rows ``starts[i]:starts[i + 1]`` are i's."""

    categories: tuple[Category, ...]
    names: tuple[str, ...]  # file names
    image_ids: Shaped[np.ndarray, "P"]  # int64, or objects where one is a text or past int64
    sizes: Int64[np.ndarray, "P 2"]  # height, width
    starts: Int64[np.ndarray, "P1"]  # P + 1 rows
    ids: Shaped[np.ndarray, "M"]  # annotation ids, as image_ids
    bbox: Float64[np.ndarray, "M 4"]  # x, y, width, height in source pixels, as stated
    area: Float64[np.ndarray, "M"]  # square pixels, as stated
    labels: Int32[np.ndarray, "M"]
    crowd: Bool[np.ndarray, "M"]

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def picture_of(self) -> Int64[np.ndarray, "M"]:
        """The picture's position for each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @functools.cached_property
    def clipped(self) -> Float64[np.ndarray, "M 4"]:
        """All boxes as xyxy inside their pictures."""
        height, width = self.sizes[self.picture_of].T
        x, y, w, h = self.bbox.T
        right, bottom = x + w, y + h
        return np.stack(
            [
                np.clip(x, 0, width),
                np.clip(y, 0, height),
                np.clip(right, 0, width),
                np.clip(bottom, 0, height),
            ],
            axis=1,
        )

    @functools.cached_property
    def usable(self) -> Bool[np.ndarray, "M"]:
        """Which annotations can be trained on (crowd regions may be among them).

        Left out: nothing of the box inside the picture, stated area <= 0, width or height under
        one pixel.

        Source: open-mmlab/mmdetection, mmdet/datasets/coco.py (the checks on each annotation).
        """
        x1, y1, x2, y2 = self.clipped.T
        inside = (x2 > x1) & (y2 > y1)
        return inside & (self.area > 0) & (self.bbox[:, 2] >= 1) & (self.bbox[:, 3] >= 1)

    @functools.cached_property
    def num_boxes(self) -> Int64[np.ndarray, "P"]:
        """Boxes that training sees, for each picture: usable and not crowd."""
        trained = self.usable & ~self.crowd
        return np.bincount(self.picture_of[trained], minlength=len(self)).astype(np.int64)

    def meta(self, index: int) -> Meta:
        """What is known of picture ``index`` without its pixels."""
        height, width = self.sizes[index]
        return Meta(
            plain_id(self.image_ids[index]), int(height), int(width), int(self.num_boxes[index])
        )

    def boxes(
        self, index: int
    ) -> tuple[Float32[np.ndarray, "n 4"], Int32[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Usable boxes (xyxy, clipped, source pixels), labels and crowd flags of one picture."""
        rows = np.arange(self.starts[index], self.starts[index + 1])
        rows = rows[self.usable[rows]]
        return self.clipped[rows].astype(np.float32), self.labels[rows], self.crowd[rows]

    def describe(self, spec: str) -> dict[str, Any]:
        """Counts of pictures, boxes and classes; ``boxes`` are those that training sees."""
        return {
            "source": spec,
            "pictures": len(self),
            "boxes": int(self.num_boxes.sum()),
            "classes": len(self.categories),
            "crowd": int((self.usable & self.crowd).sum()),
            "empty": int((self.num_boxes == 0).sum()),  # pictures without a box to train on
            "dropped": int((~self.usable).sum()),  # degenerate annotations
        }

    def ground_truth(self) -> dict[str, Any]:
        """The COCO instances dict that evaluation scores against: every annotation, as stated."""
        images = [
            {"id": plain_id(i), "file_name": name, "height": int(h), "width": int(w)}
            for i, name, (h, w) in zip(self.image_ids, self.names, self.sizes, strict=True)
        ]
        annotations = [
            {
                "id": plain_id(self.ids[row]),
                "image_id": plain_id(self.image_ids[picture]),
                "category_id": self.categories[self.labels[row]].id,
                "bbox": self.bbox[row].tolist(),
                "area": float(self.area[row]),
                "iscrowd": int(self.crowd[row]),
            }
            for row, picture in enumerate(self.picture_of)
        ]
        categories = [{"id": c.id, "name": c.name} for c in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}


def id_array(ids: Sequence[Id]) -> Shaped[np.ndarray, "n"]:
    """Ids as int64 where they are numbers that it holds, as Python objects otherwise."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in ids):
        return np.array(ids, np.int64)
    array = np.empty(len(ids), object)
    array[:] = ids
    return array


def plain_id(value: Any) -> Id:
    """An id of such an array as Python's own int or str."""
    return value if isinstance(value, str) else int(value)
