"""COCO's 80 classes; and the mapping of one set's classes to another's by name."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from drkd_jax.data.sources.records import (
    AnnotationTable,
    Category,
    Id,
    Record,
    Source,
    id_key,
)
from drkd_jax.errors import UserError

if TYPE_CHECKING:
    from drkd_jax.data.decode import Scan


# COCO 2017's classes in the annotation files' order, each row from its first id on: TFDS keeps
# labels 0..79 and names; the ids (1..90, with gaps) used in submitted results are only here.
_NAMES = {
    1: "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant",
    13: "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe",
    27: "backpack, umbrella",
    31: "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle",
    46: "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed",
    67: "dining table",
    70: "toilet",
    72: "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator",
    84: "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
COCO_CATEGORIES = tuple(
    Category(first + offset, name)
    for first, names in _NAMES.items()
    for offset, name in enumerate(names.split(", "))
)


def with_classes(
    source: Source, classes: Sequence[Category], what: str, whose: str
) -> tuple[Source, list[str]]:
    """Changes a source's labels to those of other classes with the same names.

    Ids stay the source's own. A class that the source lacks gets an unused id; evaluations ignore
    it, since there is nothing to find.

    Args:
        source: the source to relabel.
        classes: the other classes, by label.
        what: the source's name in messages, such as "config.data.val".
        whose: the name of the owner of ``classes``, such as "config.data.train".

    Returns:
        (the source, lines that describe the mapping; none if nothing differs).

    Raises:
        UserError: a class with boxes is not among ``classes``, or names occur twice; the message
            shows both lists with ids.
    """
    own, classes = tuple(source.categories), tuple(classes)
    if own == classes:
        return source, []
    names, theirs = [c.name for c in own], [c.name for c in classes]
    lists = f"{what} has {list_classes(own)}; {whose} has {list_classes(classes)}"
    twice = [n for part in (names, theirs) for n, count in Counter(part).items() if count > 1]
    if twice:
        raise UserError(
            f"{what}: its classes cannot be told apart by name: '{twice[0]}' occurs twice. {lists}"
        )
    label_of = {name: label for label, name in enumerate(theirs)}
    used = {own[label].name for label in np.unique(source.table.labels)}
    strange = [c for c in own if c.name not in label_of]
    if not used <= label_of.keys():
        boxed = list_classes([c for c in strange if c.name in used])
        raise UserError(f"{what} has boxes of {boxed}, which {whose} does not have. {lists}")
    notes = []
    if strange:
        notes.append(f"{what}: {list_classes(strange)} without a box, left out")
    lacking = [c for c in classes if c.name not in names]
    if lacking:
        notes.append(f"{what} has no class {list_classes(lacking)}: it is not scored there")
    shared = [name for name in theirs if name in names]
    ids = {c.name: c.id for c in own}
    if [n for n in names if n in label_of] != shared or any(
        ids[c.name] != c.id for c in classes if c.name in ids
    ):
        notes.append(f"classes of {what} are mapped to those of {whose} by name. {lists}")
    taken: set[Id] = {id_key(c.id) for c in own}
    merged = []
    for category in classes:
        number = ids.get(category.name, category.id)
        if category.name not in ids and id_key(number) in taken:
            number = free_id(taken)
        taken.add(id_key(number))
        merged.append(Category(number, category.name))
    labels = np.array([label_of.get(name, 0) for name in names], np.int32)
    return Relabelled(source, tuple(merged), labels), notes


class Relabelled(Source):
    """A source with other labels; images and ids are unchanged.

    Args:
        source: the images.
        categories: by new label.
        labels: the new label of each old one.
    """

    def __init__(
        self, source: Source, categories: tuple[Category, ...], labels: Int32[np.ndarray, "K"]
    ):
        self._source, self.categories, self._labels = source, categories, labels
        self.spec, self.exif, self.depth = source.spec, source.exif, source.depth
        self.faults, self.mended = source.faults, source.mended

    @functools.cached_property
    def table(self) -> AnnotationTable:  # type: ignore[override]  # made once, where wanted
        """All annotations, with the new labels."""
        table = self._source.table
        return dataclasses.replace(
            table, categories=self.categories, labels=self._labels[table.labels]
        )

    @property
    def scan(self) -> Scan | None:  # type: ignore[override]  # never set
        """As of the source."""
        return self._source.scan

    def path(self, index: int) -> Path | None:
        """As of the source."""
        return self._source.path(index)

    def record(self, index: int) -> Record:
        """The source's record, with the new labels.

        Raises:
            UserError: as the source does.
        """
        record = self._source.record(index)
        return record._replace(labels=self._labels[record.labels])

    def coco_ground_truth(self) -> dict[str, Any]:
        """The source's ground truth, with its own ids; classes that it lacks are added."""
        truth = self._source.coco_ground_truth()
        there = {category["id"] for category in truth["categories"]}
        added = [{"id": c.id, "name": c.name} for c in self.categories if c.id not in there]
        return {**truth, "categories": truth["categories"] + added}


def list_classes(classes: Sequence[Category], most: int = 12) -> str:
    """Classes as "(1 nut, 2 bolt)", abbreviated if there are many."""
    shown = ", ".join(f"{c.id} {c.name}" for c in classes[:most])
    more = len(classes) - most
    return f"({shown}{f', and {more} more' if more > 0 else ''})"


def free_id(taken: set[Id]) -> int:
    """A number above all ids in use."""
    return max([number for number in taken if isinstance(number, int)], default=0) + 1
