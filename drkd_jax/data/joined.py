"""``A + B``: several sources as one, in this order, their classes brought together by name.

Letters: P pictures, M annotations of all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.classes import free_id
from drkd_jax.data.records import Category, Id, Meta, Record, Source, id_key
from drkd_jax.data.scan import Scan, scan
from drkd_jax.data.table import AnnotationTable, id_array, plain_id
from drkd_jax.errors import UserError


class JoinedSource:
    """Pictures of several sources.

    A class has the id of the first source that has it, or a free one where another class has
    taken that. Picture ids stay where no two are the same; otherwise pictures are numbered from 1.

    Args:
        sources: at least two.

    Attributes:
        faults: of all of them.
        mended: what was read in another way than it stands.

    Raises:
        UserError: two classes of one name in one of them.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self.spec = " + ".join(source.spec for source in self.sources)
        self.faults = [f for source in self.sources for f in getattr(source, "faults", ())]
        self.mended = [line for source in self.sources for line in getattr(source, "mended", ())]
        self.exif = getattr(self.sources[0], "exif", "auto")
        self.depth = getattr(self.sources[0], "depth", 0)
        self.categories = self._join_classes()
        label_of = {category.name: label for label, category in enumerate(self.categories)}
        self._labels = [
            np.array([label_of[category.name] for category in source.categories], np.int32)
            for source in self.sources
        ]
        self._starts = np.cumsum([0, *(len(source) for source in self.sources)])
        ids = [source.meta(i).image_id for source in self.sources for i in range(len(source))]
        self._renumbered = len(set(map(id_key, ids))) < len(ids)
        self._ids = id_array(list(range(1, len(ids) + 1)) if self._renumbered else ids)
        if self._renumbered:
            self.mended.append(
                f"pictures of {self.spec} share ids and are numbered from 1 to {len(ids)}"
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

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, int(index) - int(self._starts[part])

    @functools.cached_property
    def scan(self) -> Scan | None:
        """What the picture files say of themselves; None where none is a file."""
        paths = [self.path(index) for index in range(len(self))]
        # A picture that is no file is one that cannot be read, here.
        return scan([path or Path() for path in paths]) if any(paths) else None

    def path(self, index: int) -> Path | None:
        """Where picture ``index`` lies; None where it is no file."""
        part, at = self._place(index)
        find = getattr(self.sources[part], "path", None)
        return find(at) if find is not None else None

    @functools.cached_property
    def table(self) -> AnnotationTable:
        """All annotations, by the joined labels and ids."""
        tables = [source.table for source in self.sources]  # type: ignore[attr-defined]
        counts = np.concatenate([np.diff(table.starts) for table in tables])
        annotations = int(counts.sum())
        return AnnotationTable(
            categories=self.categories,
            names=tuple(name for table in tables for name in table.names),
            image_ids=self._ids,
            sizes=np.concatenate([table.sizes for table in tables]),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            ids=np.arange(1, annotations + 1, dtype=np.int64),
            bbox=np.concatenate([table.bbox for table in tables]),
            area=np.concatenate([table.area for table in tables]),
            labels=np.concatenate(
                [labels[table.labels] for labels, table in zip(self._labels, tables, strict=True)]
            ),
            crowd=np.concatenate([table.crowd for table in tables]),
        )

    def describe(self) -> dict[str, Any]:
        """Counts of pictures, boxes, classes, crowd regions, empty pictures, dropped boxes."""
        return self.table.describe(self.spec)

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes of picture ``index``."""
        part, at = self._place(index)
        return self.sources[part].meta(at)._replace(image_id=plain_id(self._ids[index]))

    def record(self, index: int) -> Record:
        """Reads picture ``index``.

        Raises:
            UserError: as of its source.
        """
        part, at = self._place(index)
        record = self.sources[part].record(at)
        return record._replace(
            labels=self._labels[part][record.labels], image_id=plain_id(self._ids[index])
        )

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict of all of them, annotations numbered from 1."""
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
