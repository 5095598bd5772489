"""COCO's instances file, checked entry by entry, as flat arrays.

A fault of one entry is kept apart from a fault of the file. Strictly read, the first one stops;
otherwise entries with a fault are left out and handed back as a list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.data.records import Category
from drkd_jax.data.table import AnnotationTable
from drkd_jax.errors import UserError


class Fault(NamedTuple):
    """What is wrong with one entry of an instances file."""

    kind: str  # "category", "image" or "annotation"
    which: str  # "id 101", or "number 3" (counted from 0) where it has no id
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.which}: {self.reason}"


def load_json(path: Path) -> dict[str, Any]:
    """Reads a json object (UTF-8, UTF-16 or UTF-32, with or without a byte order mark).

    Raises:
        UserError: no such file, not json, not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"annotations {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"annotations {path} are not valid json: not {error.encoding} text ({error.reason} at "
            f"byte {error.start}); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} are not valid json: {error}") from error
    if not isinstance(content, dict):
        hint = "; it looks like a list of results, not like annotations"
        looks = isinstance(content, list) and content and isinstance(content[0], dict)
        raise UserError(
            f"annotations {path} hold a {type(content).__name__}, not a json object"
            + (hint if looks and "bbox" in content[0] else "")
        )
    return content


def parse_instances(
    content: dict[str, Any], name: str, faults: list[Fault] | None = None
) -> AnnotationTable:
    """Checks an instances dict and lays it out in flat arrays, pictures in the file's order.

    ``iscrowd`` may be missing (0), and ``area`` (width x height).

    Args:
        content: ``images``, ``annotations`` and ``categories`` as COCO has them.
        name: what messages call the file.
        faults: takes the entries that are left out; None leaves none out.

    Raises:
        UserError: a list is missing, there is no picture or no class. Where ``faults`` is None
            also: a missing key, a duplicate or unknown id, a box that is not four finite
            numbers, a file name that leads out of the folder, a size that is no size.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{name}: no list '{key}'; a COCO instances file has one")
        if not content[key] and key != "annotations":
            raise UserError(f"{name}: its list '{key}' is empty; there is nothing to detect")
    found: list[Fault] = []
    categories = sorted(_rows(content["categories"], _category, "category", found))
    label_of = {category.id: label for label, category in enumerate(categories)}
    images = _rows(content["images"], _image, "image", found)
    picture_of = {image[0]: position for position, image in enumerate(images)}
    annotations, pictures, labels = [], [], []
    for annotation in _rows(content["annotations"], _annotation, "annotation", found):
        annotation_id, image_id, category_id, *_ = annotation
        which = f"id {annotation_id}"
        if image_id not in picture_of:
            found.append(Fault("annotation", which, f"unknown image_id {image_id}"))
        elif category_id not in label_of:
            found.append(Fault("annotation", which, f"unknown category_id {category_id}"))
        else:
            annotations.append(annotation)
            pictures.append(picture_of[image_id])
            labels.append(label_of[category_id])
    if found and faults is None:
        more = f"; {len(found)} entries have faults in all" if len(found) > 1 else ""
        raise UserError(f"{name}: {found[0]}{more} (`prepare --check SOURCE` lists all faults)")
    if faults is not None:
        faults.extend(found)
    if not images or not categories:
        raise UserError(f"{name}: {found[0]}; no {'class' if images else 'picture'} is left")
    order = np.argsort(np.array(pictures, np.int64), kind="stable")
    starts = np.searchsorted(np.array(pictures, np.int64)[order], np.arange(len(images) + 1))
    return AnnotationTable(
        categories=tuple(categories),
        names=tuple(image[1] for image in images),
        image_ids=np.array([image[0] for image in images], np.int64),
        sizes=np.array([image[2:] for image in images], np.int64).reshape(-1, 2),
        starts=starts.astype(np.int64),
        ids=np.array([a[0] for a in annotations], np.int64)[order],
        bbox=np.array([a[3] for a in annotations], np.float64).reshape(-1, 4)[order],
        area=np.array([a[4] for a in annotations], np.float64)[order],
        labels=np.array(labels, np.int32)[order],
        crowd=np.array([a[5] for a in annotations], bool)[order],
    )


def _rows(
    rows: list[Any], parse: Callable[[dict[str, Any]], Any], kind: str, found: list[Fault]
) -> list[Any]:
    """Parses each entry. What cannot be, or has an id that was there before, becomes a fault."""
    parsed, seen = [], set()
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not a json object")
            entry = parse(row)
            if entry[0] in seen:
                raise ValueError("occurs twice; ids must be unique")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            shown = row.get("id") if isinstance(row, dict) else None
            which = f"id {shown}" if shown is not None else f"number {position}"
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            found.append(Fault(kind, which, reason))
            continue
        seen.add(entry[0])
        parsed.append(entry)
    return parsed


def _category(row: dict[str, Any]) -> Category:
    name = row["name"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name {name!r} is not a text")
    return Category(_whole(row["id"], "id"), name)


def _image(row: dict[str, Any]) -> tuple[int, str, int, int]:
    height, width = _whole(row["height"], "height"), _whole(row["width"], "width")
    if height < 1 or width < 1:
        raise ValueError(f"its size {width}x{height} is not positive")
    return _whole(row["id"], "id"), _file_name(row["file_name"]), height, width


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"file_name {name!r} is not the name of a file")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"file_name '{name}' leads out of the picture folder; it must be relative to it"
        )
    return name


def _annotation(row: dict[str, Any]) -> tuple[int, int, int, list[float], float, bool]:
    stated = row["bbox"]
    if not isinstance(stated, list) or len(stated) != 4 or not all(map(_is_number, stated)):
        raise ValueError(f"bbox {_short(stated)} is not four finite numbers (x, y, width, height)")
    box = [float(value) for value in stated]
    area = row.get("area", box[2] * box[3])
    if not _is_number(area):
        raise ValueError(f"area {_short(area)} is not a finite number")
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {_short(crowd)} is neither 0 nor 1")
    ids = (_whole(row[key], key) for key in ("id", "image_id", "category_id"))
    return *ids, box, float(area), bool(crowd)  # type: ignore[return-value]


def _is_number(value: Any) -> bool:
    """A finite number; a text that looks like one is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _whole(value: Any, key: str) -> int:
    if not _is_number(value) or value != int(value) or abs(value) >= 2**63:
        raise ValueError(f"{key} {_short(value)} is not a whole number")
    return int(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
