"""Counts found objects per image, and finds the images that changed most between two runs.

The score of an image is how many of its n objects are found by the run's best n boxes (same class,
overlap of at least half): precision at n, which equals recall. It needs no score threshold, so a
cautious and a bold detector are compared on the same terms, and it is visible in the drawing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from drkd_jax.data.sources.records import Category, id_key
from drkd_jax.report.runs import RunFiles, Truth


@dataclasses.dataclass(frozen=True)
class Found:
    """Boxes of one image, from a detector or (scores None) from the annotations.

    Attributes:
        boxes: [n, 4] xyxy, pixels of the image.
        labels: [n], 0..K-1.
        scores: [n], 0..1, or None.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"] | None = None

    def best(self, number: int) -> Found:
        """The `number` boxes with the highest scores."""
        if self.scores is None:
            return self
        keep = np.argsort(-self.scores, kind="stable")[:number]
        return Found(self.boxes[keep], self.labels[keep], self.scores[keep])


_OVERLAP = 0.5  # least intersection over union of a correct box
NOTHING = Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def by_image(rows: Sequence[dict[str, Any]], categories: Sequence[Category]) -> dict[Any, Found]:
    """Annotations or detections in COCO's form, by the `id_key` of their image.

    Args:
        rows: Annotations have the score 1.
        categories: Classes of the source; rows of other classes are left out.
    """
    label_of = {id_key(category.id): label for label, category in enumerate(categories)}
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


def count(truth: Found, found: Found) -> tuple[int, int]:
    """How many objects were found, and how many boxes were wrong.

    A box, best score first, takes the free annotated object of its class that it overlaps most, if
    the overlap is at least half.

    Args:
        truth: Annotations.
        found: Detections.

    Returns:
        The number of objects found, and of boxes that found none.
    """
    right = int((matched(truth, found) >= 0).sum())
    return right, len(found.boxes) - right


def matched(truth: Found, found: Found) -> Int[np.ndarray, "n"]:
    """The annotated object that each box takes, by the rule of `count`; -1 if it takes none."""
    free = np.ones(len(truth.boxes), bool)
    taken = np.full(len(found.boxes), -1)
    scores = np.zeros(len(found.boxes)) if found.scores is None else found.scores
    for i in np.argsort(-scores, kind="stable"):
        value = _overlaps(found.boxes[i], truth.boxes) * (free & (truth.labels == found.labels[i]))
        if value.size and value.max() >= _OVERLAP:
            taken[i] = value.argmax()
            free[taken[i]] = False
    return taken


class Looked(NamedTuple):
    """One image with the detections of each run.

    Attributes:
        place: Position in the source.
        truth: Its objects, without crowd regions.
        found: For each run its best boxes, as many as there are objects.
        right: For each run, how many objects these find.
    """

    place: int
    truth: Found
    found: tuple[Found, ...]
    right: tuple[int, ...]


def look(runs: Sequence[RunFiles], truth: Truth) -> list[Looked]:
    """Counts found objects in every image that has any, in the order of the source."""
    categories = truth.source.categories
    objects = by_image(truth.objects, categories)
    found = [by_image(run.found or [], categories) for run in runs]
    images = []
    for index in range(len(truth.source)):
        key = id_key(truth.source.meta(index).image_id)
        if key not in objects:  # no object, or not among the scored images
            continue
        wanted = objects[key]
        number = len(wanted.boxes)
        best = tuple(each.get(key, NOTHING).best(number) for each in found)
        right = tuple(count(wanted, each)[0] for each in best)
        images.append(Looked(index, Found(wanted.boxes, wanted.labels), best, right))
    return images


def most_changed(
    images: Sequence[Looked], first: int, second: int, most: int
) -> tuple[list[Looked], list[Looked]]:
    """The images in which a run finds more than another, and those in which it finds less.

    Args:
        images: From `look`.
        first: Index of the reference run.
        second: Index of the other run.
        most: The most images of each kind.

    Returns:
        (helped, hurt), the largest change first. Of equal changes, images with fewer objects come
        first, since there the change is relatively larger, and then earlier images.
    """

    def change(image: Looked) -> int:
        return image.right[second] - image.right[first]

    ordered = sorted(images, key=lambda p: (-abs(change(p)), len(p.truth.boxes), p.place))
    helped = [image for image in ordered if change(image) > 0]
    hurt = [image for image in ordered if change(image) < 0]
    return helped[:most], hurt[:most]


def _overlaps(
    box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n"]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - common
    return np.where(union > 0, common / np.maximum(union, 1e-12), 0.0)
