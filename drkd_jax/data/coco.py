"""``coco:IMAGES_DIR:INSTANCES_JSON``: a folder of pictures beside COCO's instances file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.decode import decode_picture
from drkd_jax.data.records import Category, Meta, Record
from drkd_jax.data.table import AnnotationTable
from drkd_jax.errors import UserError


class CocoSource:
    """Pictures of a folder, boxes of an instances file.

    Args:
        images_dir: folder of the pictures; ``file_name`` of the json is relative to it.
        instances_json: COCO's instances file.

    Raises:
        UserError: a missing folder or file, or a fault of the json (each is named).
    """

    def __init__(self, images_dir: str | Path, instances_json: str | Path):
        self.images_dir, self.instances_json = Path(images_dir), Path(instances_json)
        if not self.images_dir.is_dir():
            raise UserError(f"picture folder {self.images_dir} does not exist")
        self.spec = f"coco:{images_dir}:{instances_json}"
        self.table = parse_instances(load_json(self.instances_json), str(self.instances_json))

    @property
    def categories(self) -> tuple[Category, ...]:
        """Classes by rising id."""
        return self.table.categories

    def __len__(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        """Counts of pictures, boxes, classes, crowd regions, empty pictures, dropped boxes."""
        return self.table.describe(self.spec)

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes of picture ``index``."""
        return self.table.meta(index)

    def record(self, index: int) -> Record:
        """Reads picture ``index``.

        Raises:
            UserError: the file is missing, no picture, or of another size than the json says.
        """
        path = self.images_dir / self.table.names[index]
        meta = self.table.meta(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"picture {path} (id {meta.image_id} in {self.instances_json}) cannot be read: "
                f"{error.strerror}"
            ) from error
        image = decode_picture(data, str(path), meta.height, meta.width)
        return Record(image, *self.table.boxes(index), meta.image_id, str(path))

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict with the original ids, areas and crowd flags."""
        return self.table.ground_truth()


def load_json(path: Path) -> dict[str, Any]:
    """Reads a json object.

    Raises:
        UserError: no such file, not json, not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"annotations {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"annotations {path} are not valid json: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"annotations {path} hold a {type(content).__name__}, not a json object")
    return content


def parse_instances(content: dict[str, Any], name: str) -> AnnotationTable:
    """Checks an instances dict and lays it out in flat arrays, pictures in the file's order.

    ``iscrowd`` may be missing (0), and ``area`` (width x height).

    Args:
        content: ``images``, ``annotations`` and ``categories`` as COCO has them.
        name: what messages call the file.

    Raises:
        UserError: a missing key, a duplicate or unknown id, a box that is not four finite numbers.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{name}: no list '{key}'; a COCO instances file has one")
    categories = sorted(
        _rows(content["categories"], _category, name, "category"), key=lambda c: c.id
    )
    label_of = _positions([c.id for c in categories], name, "category")
    images = _rows(content["images"], _image, name, "image")
    picture_of = _positions([image[0] for image in images], name, "image")
    annotations = _rows(content["annotations"], _annotation, name, "annotation")
    _positions([a[0] for a in annotations], name, "annotation")

    pictures = np.empty(len(annotations), np.int64)
    labels = np.empty(len(annotations), np.int32)
    for row, (annotation_id, image_id, category_id, *_) in enumerate(annotations):
        if image_id not in picture_of:
            raise UserError(f"{name}: annotation {annotation_id} has unknown image_id {image_id}")
        if category_id not in label_of:
            raise UserError(
                f"{name}: annotation {annotation_id} has unknown category_id {category_id}"
            )
        pictures[row], labels[row] = picture_of[image_id], label_of[category_id]
    order = np.argsort(pictures, kind="stable")
    starts = np.searchsorted(pictures[order], np.arange(len(images) + 1))
    return AnnotationTable(
        categories=tuple(categories),
        names=tuple(image[1] for image in images),
        image_ids=np.array([image[0] for image in images], np.int64),
        sizes=np.array([image[2:] for image in images], np.int64).reshape(-1, 2),
        starts=starts.astype(np.int64),
        ids=np.array([a[0] for a in annotations], np.int64)[order],
        bbox=np.array([a[3] for a in annotations], np.float64).reshape(-1, 4)[order],
        area=np.array([a[4] for a in annotations], np.float64)[order],
        labels=labels[order],
        crowd=np.array([a[5] for a in annotations], bool)[order],
    )


def _rows(rows: list, parse: Callable[[dict[str, Any]], Any], name: str, what: str) -> list:
    """Parses each entry; what goes wrong is told with the entry's id or position."""
    parsed = []
    for position, row in enumerate(rows):
        try:
            parsed.append(parse(row))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            shown = row.get("id") if isinstance(row, dict) else None
            which = f"id {shown}" if shown is not None else f"number {position}"
            fault = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{name}: {what} {which}: {fault}") from error
    return parsed


def _positions(ids: list[int], name: str, what: str) -> dict[int, int]:
    position_of: dict[int, int] = {}
    for position, key in enumerate(ids):
        if key in position_of:
            raise UserError(f"{name}: {what} id {key} occurs twice; ids must be unique")
        position_of[key] = position
    return position_of


def _category(row: dict[str, Any]) -> Category:
    return Category(_whole(row["id"]), str(row["name"]))


def _image(row: dict[str, Any]) -> tuple[int, str, int, int]:
    height, width = _whole(row["height"]), _whole(row["width"])
    if height < 1 or width < 1:
        raise ValueError(f"its size {width}x{height} is not positive")
    return _whole(row["id"]), str(row["file_name"]), height, width


def _annotation(row: dict[str, Any]) -> tuple[int, int, int, list[float], float, bool]:
    box = [float(value) for value in row["bbox"]]
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise ValueError(f"bbox {row['bbox']} is not four finite numbers (x, y, width, height)")
    area = float(row.get("area", box[2] * box[3]))
    if not math.isfinite(area):
        raise ValueError(f"area {row['area']} is not a finite number")
    ids = (_whole(row["id"]), _whole(row["image_id"]), _whole(row["category_id"]))
    return *ids, box, area, bool(row.get("iscrowd", 0))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)
