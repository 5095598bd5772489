"""Opens data sources by their names in a config; joins several, and selects a part of one.

Letters: P images, M annotations of a source.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.decode import Scan, scan
from drkd_jax.data.sources.classes import free_id
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.data.sources.records import (
    AnnotationTable,
    Category,
    Id,
    Record,
    Source,
    id_array,
    id_key,
    plain_id,
)
from drkd_jax.data.sources.shapes import ShapesSource
from drkd_jax.errors import UserError
from drkd_jax.paths import expand_home

_FORMS = "shapes:N[:SEED[:easy]], coco:IMAGES_DIR:INSTANCES_JSON or tfds:coco/2017:SPLIT[@DATA_DIR]"
# A plus joins sources only if a source follows, since folder names may contain one.
_JOINT = re.compile(r"\s*\+\s*(?=(?:shapes|coco|tfds):)")


def open_source(spec: str, on_error: str = "stop", *, exif: str = "auto", depth: int = 0) -> Source:
    """Opens a source by its name in a config.

    - ``shapes:N[:SEED[:easy]]``: N images drawn by the program, the same for the same SEED
      (default 0); easy ones a small detector learns within minutes.
    - ``coco:IMAGES_DIR:INSTANCES_JSON``: images of a folder, boxes of COCO's instances file.
    - ``tfds:coco/2017:SPLIT[@DATA_DIR]``: a prepared TensorFlow dataset, read without TensorFlow.
    - ``A + B``: several of these as one, their classes joined by name.

    Args:
        spec: one of these.
        on_error: what happens to an entry of an instances file that has a fault; see
            ``CocoSource``.
        exif: which pixels the boxes of a turned photograph refer to; see ``decode_image``.
        depth: bits that 16-bit images use; see ``decode_image``.

    Raises:
        UserError: the name has another form, or the source does not exist or is broken.
    """
    parts = _JOINT.split(expand_home(spec).strip())
    if len(parts) > 1:
        return JoinedSource([_open(part, on_error, exif, depth) for part in parts])
    return _open(parts[0], on_error, exif, depth)


def _open(spec: str, on_error: str, exif: str, depth: int) -> Source:
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(spec, rest)
    if kind == "coco":
        return CocoSource(*_split_paths(spec, rest), on_error, exif, depth)
    if kind == "tfds":
        name, _, where = rest.partition(":")
        split, _, data_dir = where.partition("@")
        if not name or not split:
            raise UserError(f"data source '{spec}': expected tfds:coco/2017:SPLIT[@DATA_DIR]")
        if exif == "turned":
            raise UserError(
                f"data source '{spec}': COCO's boxes refer to the pixels as stored; "
                "set data.exif = auto"
            )
        # Half a second of imports, which no other source needs.
        from drkd_jax.data.sources.tfds import TfdsSource

        return TfdsSource(name, split, data_dir or None)
    raise UserError(f"unknown data source '{spec}': expected {_FORMS}, or several joined by ' + '")


def _open_shapes(spec: str, rest: str) -> ShapesSource:
    parts = rest.split(":")
    easy = len(parts) == 3 and parts[-1] == "easy"
    if easy:
        parts.pop()
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) < 1:
        raise UserError(
            f"data source '{spec}': expected shapes:N[:SEED[:easy]] in whole numbers, N at least 1"
        )
    return ShapesSource(*(int(part) for part in parts), easy=easy)


def _split_paths(spec: str, rest: str) -> tuple[str, str]:
    """Splits ``IMAGES_DIR:INSTANCES_JSON``; if paths contain colons, by which paths exist."""
    cuts = [i for i, letter in enumerate(rest) if letter == ":" and 0 < i < len(rest) - 1]
    if not cuts:
        raise UserError(f"data source '{spec}': expected coco:IMAGES_DIR:INSTANCES_JSON")
    pairs = [(rest[:cut], rest[cut + 1 :]) for cut in cuts]
    for images_dir, instances in pairs:
        if Path(images_dir).is_dir() and Path(instances).is_file():
            return images_dir, instances
    return pairs[0]


class JoinedSource(Source):
    """``A + B``: several sources as one, in this order, their classes joined by name.

    A class has the id of the first source that has the class, or a free one if another class uses
    that id. Image ids stay unchanged if all are different; otherwise images are numbered from
    1.

    Args:
        sources: at least two sources.

    Attributes:
        faults: the faults of all sources.
        mended: the corrections made while reading them.

    Raises:
        UserError: a source has two classes with one name.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self.spec = " + ".join(source.spec for source in self.sources)
        self.faults = [fault for source in self.sources for fault in source.faults]
        self.mended: list[str] = [line for source in self.sources for line in source.mended]
        # The requested value; sources for which it does not apply have the default.
        self.exif = next((s.exif for s in self.sources if s.exif != Source.exif), Source.exif)
        self.depth = max(source.depth for source in self.sources)
        self.categories = self._join_classes()
        label_of = {category.name: label for label, category in enumerate(self.categories)}
        self._labels = [
            np.array([label_of[category.name] for category in source.categories], np.int32)
            for source in self.sources
        ]
        self._starts = np.cumsum([0, *(len(source) for source in self.sources)])
        ids = [plain_id(key) for source in self.sources for key in source.table.image_ids]
        self._renumbered = len(set(map(id_key, ids))) < len(ids)
        self._ids = id_array(list(range(1, len(ids) + 1)) if self._renumbered else ids)
        if self._renumbered:
            self.mended.append(
                f"images of {self.spec} share ids and are numbered from 1 to {len(ids)}"
            )

    def _join_classes(self) -> tuple[Category, ...]:
        found: dict[str, Id] = {}
        taken: set[Id] = set()
        for source in self.sources:
            names = [category.name for category in source.categories]
            if len(set(names)) < len(names):
                raise UserError(f"{source.spec}: two classes of one name; they cannot be joined")
            for category in source.categories:
                if category.name not in found:
                    number = free_id(taken) if id_key(category.id) in taken else category.id
                    found[category.name] = number
                    taken.add(id_key(number))
        moved = [
            f"'{c.name}' is {found[c.name]} for {c.id}"
            for source in self.sources
            for c in source.categories
            if found[c.name] != c.id
        ]
        if moved:
            self.mended.append(f"classes are joined by name: {', '.join(moved[:5])}")
        pairs = [Category(number, name) for name, number in found.items()]
        return tuple(sorted(pairs, key=lambda c: (isinstance(c.id, str), c.id)))

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, int(index) - int(self._starts[part])

    @functools.cached_property
    def scan(self) -> Scan | None:  # type: ignore[override]  # made once, where wanted
        """The header data of the image files; None if none is a file."""
        paths = [self.path(index) for index in range(len(self))]
        # An image that is not a file is treated like one that cannot be read.
        return scan([path or Path() for path in paths]) if any(paths) else None

    def path(self, index: int) -> Path | None:
        """The path of image ``index``; None if it is not a file."""
        part, at = self._place(index)
        return self.sources[part].path(at)

    @functools.cached_property
    def table(self) -> AnnotationTable:  # type: ignore[override]  # made once, where wanted
        """All annotations, with the joined labels and ids."""
        tables = [source.table for source in self.sources]
        labels = [rows[table.labels] for rows, table in zip(self._labels, tables, strict=True)]
        counts = np.concatenate([np.diff(table.starts) for table in tables])

        def joined(key: str) -> np.ndarray:
            return np.concatenate([getattr(table, key) for table in tables])

        return AnnotationTable(
            categories=self.categories,
            names=tuple(name for table in tables for name in table.names),
            image_ids=self._ids,
            sizes=joined("sizes"),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            ids=np.arange(1, int(counts.sum()) + 1, dtype=np.int64),
            bbox=joined("bbox"),
            area=joined("area"),
            labels=np.concatenate(labels),
            crowd=joined("crowd"),
        )

    def record(self, index: int) -> Record:
        """Reads image ``index``.

        Raises:
            UserError: as its source does.
        """
        part, at = self._place(index)
        record = self.sources[part].record(at)
        return record._replace(
            labels=self._labels[part][record.labels], image_id=plain_id(self._ids[index])
        )

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict of all sources, annotations numbered from 1."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        id_of = {category.name: category.id for category in self.categories}
        for part, source in enumerate(self.sources):
            truth, start = source.coco_ground_truth(), int(self._starts[part])
            new = {
                source.meta(at).image_id: plain_id(self._ids[start + at])
                for at in range(len(source))
            }
            names = {category["id"]: category["name"] for category in truth["categories"]}
            images += [{**image, "id": new[image["id"]]} for image in truth["images"]]
            for row in truth["annotations"]:
                annotations.append(
                    {
                        **row,
                        "id": len(annotations) + 1,
                        "image_id": new[row["image_id"]],
                        "category_id": id_of[names[row["category_id"]]],
                    }
                )
        categories = [{"id": c.id, "name": c.name} for c in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}


class Part(Source):
    """The images of a source at some of its positions, in that order.

    Args:
        source: the whole source.
        indices: positions in it.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, [int(index) for index in indices]
        self.spec, self.categories = source.spec, source.categories
        self.table = source.table.take(self._indices)

    def record(self, index: int) -> Record:
        """The image and its boxes; raises the same errors as the whole source."""
        return self._source.record(self._indices[index])
