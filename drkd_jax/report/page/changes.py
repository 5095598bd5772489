"""Which pictures changed most from one run to another.

The score of a picture is how many of its n objects are found by the run's best n boxes (same class,
overlap of at least half): precision at n, which is recall too. It needs no threshold on the score,
so a careful and a bold detector are compared on the same terms, and it can be seen in the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.data.records import id_key
from drkd_jax.report.figures import Found, count
from drkd_jax.report.page.runs import RunFiles, Truth


class Looked(NamedTuple):
    """One picture with what each run found on it.

    Attributes:
        place: Position in the source.
        truth: Its objects, crowd regions left out.
        found: For each run its best boxes, as many as there are objects.
        right: For each run, how many objects these find.
    """

    place: int
    truth: Found
    found: tuple[Found, ...]
    right: tuple[int, ...]


def look(runs: Sequence[RunFiles], truth: Truth) -> list[Looked]:
    """Counts found objects in every picture that has any, in the order of the source."""
    label_of = {
        id_key(category.id): label for label, category in enumerate(truth.source.categories)
    }
    objects = _by_picture(
        [row for row in truth.coco["annotations"] if not row.get("iscrowd")], label_of
    )
    found = [_by_picture(run.found or [], label_of) for run in runs]
    pictures = []
    for index in range(len(truth.source)):
        key = id_key(truth.source.meta(index).image_id)
        if key not in objects:  # no object, or not among the pictures that were scored
            continue
        wanted = objects[key]
        number = len(wanted.boxes)
        best = tuple(each.get(key, _NOTHING).best(number) for each in found)
        right = tuple(count(wanted, each)[0] for each in best)
        pictures.append(Looked(index, Found(wanted.boxes, wanted.labels), best, right))
    return pictures


def most_changed(
    pictures: Sequence[Looked], first: int, second: int, most: int
) -> tuple[list[Looked], list[Looked]]:
    """The pictures in which a run finds more than another, and those in which it finds less.

    Args:
        pictures: From `look`.
        first: Position of the run that is compared with.
        second: Position of the other run.
        most: Of each kind.

    Returns:
        (helped, hurt), the largest change first. Of equal changes the one with fewer objects goes
        first, since it is the larger part of the picture, and then the earlier picture.
    """

    def change(picture: Looked) -> int:
        return picture.right[second] - picture.right[first]

    ordered = sorted(pictures, key=lambda p: (-abs(change(p)), len(p.truth.boxes), p.place))
    helped = [picture for picture in ordered if change(picture) > 0]
    hurt = [picture for picture in ordered if change(picture) < 0]
    return helped[:most], hurt[:most]


_NOTHING = Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def _by_picture(rows: Sequence[dict[str, Any]], label_of: dict[Any, int]) -> dict[Any, Found]:
    """Boxes of each picture, xyxy; annotations have the score 1."""
    gathered: dict[Any, list[tuple[list[float], int, float]]] = {}
    for row in rows:
        label = label_of.get(id_key(row["category_id"]))
        if label is not None:
            entry = (row["bbox"], label, float(row.get("score", 1.0)))
            gathered.setdefault(id_key(row["image_id"]), []).append(entry)
    found = {}
    for key, entries in gathered.items():
        boxes = np.array([box for box, _, _ in entries], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label for _, label, _ in entries], np.int64)
        found[key] = Found(boxes, labels, np.array([score for _, _, score in entries]))
    return found
