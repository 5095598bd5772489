"""Boxes of named pictures from a COCO json, wherever the pictures lie.

Letters: n boxes of a picture.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from drkd_jax.data.coco import load_json
from drkd_jax.data.instances import parse_instances
from drkd_jax.data.records import id_key
from drkd_jax.errors import UserError


class PictureBoxes(NamedTuple):
    """What a file says of one picture; crowd regions and boxes that cannot be used are left out."""

    boxes: Float[np.ndarray, "n 4"]  # xyxy, pixels of the picture
    labels: Int[np.ndarray, "n"]  # 0..K-1
    names: tuple[str, ...]  # of the K classes
    height: int
    width: int


def boxes_of(file: Path, pictures: Sequence[Path]) -> list[PictureBoxes]:
    """The boxes of each picture, found by its file name.

    Of several entries with that name the one counts that shares most of its folders with the path.

    Raises:
        UserError: it is no instances file, or a picture has no entry, several, or no box.
    """
    content = load_json(file)
    images = content.get("images")
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in images if isinstance(images, list) else []:
        if isinstance(row, dict) and isinstance(row.get("file_name"), str):
            by_name.setdefault(_parts(row["file_name"])[-1], []).append(row)
    annotations = content.get("annotations")
    rows = annotations if isinstance(annotations, list) else []
    found = []
    for picture in pictures:
        image = _entry(file, picture, by_name.get(_parts(str(picture))[-1], []))
        key = id_key(image.get("id"))
        own = [r for r in rows if isinstance(r, dict) and id_key(r.get("image_id")) == key]
        table = parse_instances({**content, "images": [image], "annotations": own}, str(file))
        boxes, labels, crowd = table.boxes(0)
        if crowd.all():
            raise UserError(f"{picture}: --boxes={file} has no usable box of it")
        names = tuple(category.name for category in table.categories)
        size = table.meta(0)
        found.append(PictureBoxes(boxes[~crowd], labels[~crowd], names, size.height, size.width))
    return found


def _entry(file: Path, picture: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        raise UserError(f"{picture}: --boxes={file} has no picture of that name")
    own = _parts(os.path.abspath(picture))
    shared = [_shared(own, _parts(row["file_name"])) for row in rows]
    best = max(shared)
    if shared.count(best) > 1:
        raise UserError(f"{picture}: --boxes={file} has {shared.count(best)} pictures of that name")
    return rows[shared.index(best)]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths have in common, from their ends on."""
    same = (a == b for a, b in zip(reversed(one), reversed(other), strict=False))
    return sum(itertools.takewhile(bool, same))


def _parts(path: str) -> list[str]:
    tidy = unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()
    return list(PurePosixPath(tidy).parts) or [""]
