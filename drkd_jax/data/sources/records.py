"""The record type that every source returns, and all annotations of a source in flat arrays.

Letters: H W pixels of an image, n its boxes; P images and M annotations of a source.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, Shaped, UInt8

if TYPE_CHECKING:
    from drkd_jax.data.decode import Scan

Id = int | str  # of an image or class, as in the source's own file

_WHOLE = re.compile(r"-?\d{1,20}")


def id_key(value: Any) -> Any:
    """The key to compare ids by: a string with an integer is the same id as the integer."""
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if _WHOLE.fullmatch(text) else (text or value)


class Category(NamedTuple):
    """A class of objects: its id in the source's own numbering, and its name."""

    id: Id
    name: str


class Meta(NamedTuple):
    """The data of an image that are known before it is read.

    ``num_boxes`` counts the boxes that training uses: neither crowd nor degenerate.
    """

    image_id: Id
    height: int  # pixels
    width: int  # pixels
    num_boxes: int


class Record(NamedTuple):
    """An image of the source, with its boxes in source pixels.

    Boxes are clipped to the image and degenerate ones are left out (see
    ``AnnotationTable.usable``); crowd regions are included and flagged.
    """

    image: UInt8[np.ndarray, "H W 3"]  # RGB
    boxes: Float[np.ndarray, "n 4"]  # xyxy, float32
    labels: Int32[np.ndarray, "n"]  # 0..K-1, in ascending order of category ids
    crowd: Bool[np.ndarray, "n"]
    image_id: Id
    name: str  # file name, or another name for messages


@dataclasses.dataclass(frozen=True)
class AnnotationTable:
    """Annotations of P images, grouped by image; rows ``starts[i]:starts[i + 1]`` are i's."""

    categories: tuple[Category, ...]
    names: tuple[str, ...]  # file names
    image_ids: Shaped[np.ndarray, "P"]  # int64, or objects if one is a string or exceeds int64
    sizes: Int64[np.ndarray, "P 2"]  # height, width
    starts: Int64[np.ndarray, "P1"]  # P + 1 rows
    ids: Shaped[np.ndarray, "M"]  # annotation ids, of the type of image_ids
    bbox: Float64[np.ndarray, "M 4"]  # x, y, width, height in source pixels, as stated
    area: Float64[np.ndarray, "M"]  # square pixels, as stated
    labels: Int32[np.ndarray, "M"]
    crowd: Bool[np.ndarray, "M"]

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def image_of(self) -> Int64[np.ndarray, "M"]:
        """The image's position for each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @functools.cached_property
    def clipped(self) -> Float64[np.ndarray, "M 4"]:
        """All boxes as xyxy inside their images."""
        height, width = self.sizes[self.image_of].T
        x, y, w, h = self.bbox.T
        corners = np.stack([x, y, x + w, y + h], axis=1)
        return np.clip(corners, 0, np.stack([width, height, width, height], axis=1))

    @functools.cached_property
    def usable(self) -> Bool[np.ndarray, "M"]:
        """Marks the annotations that can be trained on (including crowd regions).

        Unusable are boxes outside the image, with a stated area <= 0, or with a width or height
        under one pixel.

        Source: open-mmlab/mmdetection, mmdet/datasets/coco.py (the checks on each annotation).
        """
        x1, y1, x2, y2 = self.clipped.T
        inside = (x2 > x1) & (y2 > y1)
        return inside & (self.area > 0) & (self.bbox[:, 2] >= 1) & (self.bbox[:, 3] >= 1)

    @functools.cached_property
    def num_boxes(self) -> Int64[np.ndarray, "P"]:
        """The number of training boxes of each image: usable and not crowd."""
        trained = self.usable & ~self.crowd
        return np.bincount(self.image_of[trained], minlength=len(self)).astype(np.int64)

    def meta(self, index: int) -> Meta:
        """The data of image ``index`` that need no pixels."""
        height, width = self.sizes[index]
        return Meta(
            plain_id(self.image_ids[index]), int(height), int(width), int(self.num_boxes[index])
        )

    def boxes(
        self, index: int
    ) -> tuple[Float32[np.ndarray, "n 4"], Int32[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Usable boxes (xyxy, clipped, source pixels), labels and crowd flags of one image."""
        rows = np.arange(self.starts[index], self.starts[index + 1])
        rows = rows[self.usable[rows]]
        return self.clipped[rows].astype(np.float32), self.labels[rows], self.crowd[rows]

    def take(self, images: Sequence[int]) -> AnnotationTable:
        """The annotations of the images at some positions, in that order."""
        at = np.asarray(images, np.int64)
        counts = np.diff(self.starts)[at]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(starts[-1]) + np.repeat(self.starts[at] - starts[:-1], counts)
        names = tuple(self.names[i] for i in at)
        of_images = {key: getattr(self, key)[at] for key in ("image_ids", "sizes")}
        boxes = {
            key: getattr(self, key)[rows] for key in ("ids", "bbox", "area", "labels", "crowd")
        }
        return AnnotationTable(self.categories, names, starts=starts, **of_images, **boxes)

    def ground_truth(self) -> dict[str, Any]:
        """The COCO instances dict for evaluation: every annotation, as stated."""
        images = [
            {"id": plain_id(i), "file_name": name, "height": int(h), "width": int(w)}
            for i, name, (h, w) in zip(self.image_ids, self.names, self.sizes, strict=True)
        ]
        annotations = [
            {
                "id": plain_id(self.ids[row]),
                "image_id": plain_id(self.image_ids[image]),
                "category_id": self.categories[self.labels[row]].id,
                "bbox": self.bbox[row].tolist(),
                "area": float(self.area[row]),
                "iscrowd": int(self.crowd[row]),
            }
            for row, image in enumerate(self.image_of)
        ]
        categories = [{"id": c.id, "name": c.name} for c in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}


class Source:
    """A set of images with boxes, read by position. Picklable, safe to read from threads.

    Attributes:
        spec: the string that opened it.
        categories: classes by ascending id; the position is the label.
        table: all annotations.
        faults: entries of its file that were left out.
        mended: corrections made while reading, one line per kind.
        exif: the pixels that boxes of rotated photos refer to, see ``decode_image``.
        depth: bits that 16-bit images use, see ``decode_image``.
        scan: header data of the image files; None if none is a file.
    """

    spec: str
    categories: tuple[Category, ...]
    table: AnnotationTable
    faults: Sequence[Any] = ()
    mended: Sequence[str] = ()
    exif: str = "auto"
    depth: int = 0
    scan: Scan | None = None

    def __len__(self) -> int:
        return len(self.table)

    def path(self, index: int) -> Path | None:
        """The path of image ``index``; None if it is not a file."""
        return None

    def describe(self) -> dict[str, Any]:
        """Counts of images, boxes and classes; ``boxes`` are those that training uses."""
        table = self.table
        return {
            "images": len(table),
            "boxes": int(table.num_boxes.sum()),
            "classes": len(table.categories),
            "crowd": int((table.usable & table.crowd).sum()),
            "dropped": int((~table.usable).sum()),  # degenerate annotations
        }

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes, without reading pixels."""
        return self.table.meta(index)

    def record(self, index: int) -> Record:
        """The image and its boxes.

        Raises:
            UserError: the image is missing, cannot be decoded or has another size than stated.
        """
        raise NotImplementedError

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict (original ids, crowd included), for evaluation."""
        return self.table.ground_truth()


def id_array(ids: Sequence[Id]) -> Shaped[np.ndarray, "n"]:
    """Ids as int64 if they are integers in its range, otherwise as Python objects."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in ids):
        return np.array(ids, np.int64)
    array = np.empty(len(ids), object)
    array[:] = ids
    return array


def plain_id(value: Any) -> Id:
    """An id of such an array as Python's own int or str."""
    return value if isinstance(value, str) else int(value)


def fingerprint(source: Source) -> dict[str, Any]:
    """Counts and digests of a set: of its images and of their annotations.

    Of image files names, stated sizes, lengths and first bytes count; times and folders do not.

    Returns:
        JSON values: ``images`` and ``annotations`` (how many), ``image_digest`` and
        ``annotation_digest``.
    """
    table, scanned = source.table, source.scan
    content = scanned.content if scanned is not None else np.zeros(0, np.int64)
    images = (repr(table.names), repr(table.image_ids.tolist()), table.sizes, content)
    boxes = (table.starts, table.bbox, table.area, table.labels, table.crowd)
    return {
        "images": len(table),
        "annotations": len(table.ids),
        "image_digest": _digest(*images),
        "annotation_digest": _digest(*boxes),
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> str:
    """What differs between two fingerprints of one source, in a line; "" where nothing does.

    Args:
        old: of the checkpoint; empty where it has none.
        new: of the set as it is now.
        what: the key of the config that names it.
    """
    if not old or not new:
        return ""
    parts = [
        f"{key} ({old[key]} then, {new[key]} now)"
        for key in ("images", "annotations")
        if old[f"{key[:-1]}_digest"] != new[f"{key[:-1]}_digest"]
    ]
    if not parts:
        return ""
    return f"{what} is not what it was at the last checkpoint: other {' and '.join(parts)}"


def _digest(*parts: str | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        digest.update(data + b"\0")
    return digest.hexdigest()
