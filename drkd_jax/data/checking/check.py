"""Reads a whole data set once, before a run, and reports errors, oddities and statistics.

An error would stop a run (``on_error = "stop"``), or make it learn nonsense, such as boxes that
mostly have another form. A warning does not stop a run, but its effect may be unexpected.
Letters: P images, M annotations.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from drkd_jax.data.checking.findings import find, left_out, no_box
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.data.sources.records import AnnotationTable
from drkd_jax.errors import UserError
from drkd_jax.words import counted, listed

_THREADS = 4  # threads that read images
SMALL, MEDIUM = 32**2, 96**2  # square pixels: COCO's limits, compared with the stated area


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a data set.

    Attributes:
        source: the string that opened it.
        images: usable entries.
        readable: images that could be read.
        empty: images without a box to train on.
        boxes: boxes that training uses.
        crowd: crowd regions, which training leaves out.
        left_out: annotations that training leaves out, by reason.
        most_boxes: most boxes in one image.
        shorter: smallest, median and largest shorter side in pixels.
        longer: the same of the longer side.
        classes: a dict per class: id, name, images, boxes, small, medium, large, crowd.
        samples: positions of a few informative images: the fullest, then rare classes first.
        errors: faults that would stop a run, or make it learn nonsense.
        warnings: facts that may be unexpected.
    """

    source: str
    images: int
    readable: int
    empty: int
    boxes: int
    crowd: int
    left_out: dict[str, int]
    most_boxes: int
    shorter: tuple[int, int, int]
    longer: tuple[int, int, int]
    classes: list[dict[str, Any]]
    samples: list[int]
    errors: list[str]
    warnings: list[str]


def check(
    spec: str,
    *,
    exif: str = "auto",
    depth: int = 0,
    num_samples: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every annotation and every image of a source.

    Args:
        spec: see ``open_source``.
        exif: see ``open_source``.
        depth: see ``open_source``.
        num_samples: the most positions in ``samples``.
        progress: called with the number of images read and the total.

    Raises:
        UserError: the source cannot be opened at all: no such folder, a file that is not json, a
            list that is missing.
    """
    source = open_source(spec, "list", exif=exif, depth=depth)
    table = source.table
    errors, digests = list(map(str, source.faults)), {}
    readable = np.ones(len(source), bool)

    def read(index: int) -> bytes | str:
        try:
            image = source.record(index).image
        except UserError as error:
            return str(error)
        return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()

    with ThreadPoolExecutor(_THREADS) as pool:
        for index, seen in enumerate(pool.map(read, range(len(source)))):
            if isinstance(seen, str):
                readable[index] = False
                errors.append(seen)
            else:
                digests[index] = seen
            if progress is not None:
                progress(index + 1, len(source))
    found = find(source)
    if problem := no_box(source):  # the message includes the cause
        errors.append(problem)
        found = [finding._replace(fatal=False) for finding in found]
    errors += [finding.text for finding in found if finding.fatal]
    warnings = [finding.text for finding in found if not finding.fatal]
    warnings += _same_pixels(table, digests)
    if isinstance(source, CocoSource):
        warnings += _strangers(source)
    unseen = {reason: int(rows.sum()) for reason, rows in left_out(table).items() if rows.any()}
    sides = np.sort(table.sizes, axis=1)
    return Report(
        source=spec,
        images=len(source),
        readable=int(readable.sum()),
        empty=int((table.num_boxes == 0).sum()),
        boxes=int(table.num_boxes.sum()),
        crowd=int((table.usable & table.crowd).sum()),
        left_out=unseen,
        most_boxes=int(table.num_boxes.max(initial=0)),
        shorter=_spread(sides[:, 0]),
        longer=_spread(sides[:, 1]),
        classes=_classes(table),
        samples=_samples(table, readable, num_samples),
        errors=errors,
        warnings=warnings,
    )


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _classes(table: AnnotationTable) -> list[dict[str, Any]]:
    trained = table.usable & ~table.crowd
    rows = []
    for label, category in enumerate(table.categories):
        own = table.labels == label
        area = table.area[own & trained]
        rows.append(
            {
                "id": category.id,
                "name": category.name,
                "images": len(np.unique(table.image_of[own & trained])),
                "boxes": len(area),
                "small": int((area < SMALL).sum()),
                "medium": int(((area >= SMALL) & (area < MEDIUM)).sum()),
                "large": int((area >= MEDIUM).sum()),
                "crowd": int((own & table.usable & table.crowd).sum()),
            }
        )
    return rows


def _same_pixels(table: AnnotationTable, digests: dict[int, bytes]) -> list[str]:
    same: dict[bytes, list[int]] = {}
    for index, digest in digests.items():
        same.setdefault(digest, []).append(index)
    groups = [group for group in same.values() if len({table.names[i] for i in group}) > 1]
    if not groups:
        return []
    named = listed(["=".join(table.names[i] for i in group) for group in groups])
    return [f"{counted(len(groups), 'group')} of images with the same pixels: {named}"]


def _strangers(source: CocoSource) -> list[str]:
    """Files in the folder that the instances file does not name."""
    folder = source.images_dir
    known = {source.path(index).relative_to(folder).as_posix() for index in range(len(source))}
    strange = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in known
    )
    if not strange:
        return []
    text = counted(len(strange), "file", "are not in the instances file")
    return [f"{folder}: {text}: {listed(strange)}"]


def _samples(table: AnnotationTable, readable: np.ndarray, count: int) -> list[int]:
    trained = table.usable & ~table.crowd & readable[table.image_of]
    chosen: list[int] = []
    if trained.any():
        fullest = int(np.argmax(np.where(readable, table.num_boxes, -1)))
        chosen.append(fullest)
    seen = np.bincount(table.labels[trained], minlength=len(table.categories))
    for label in np.argsort(seen, kind="stable"):
        images = table.image_of[trained & (table.labels == label)]
        if len(images) and not np.isin(images, chosen).any():
            chosen.append(int(images[len(images) // 2]))
    others = np.random.default_rng(0).permutation(np.flatnonzero(readable))
    chosen += [int(index) for index in others if index not in chosen]
    return chosen[:count]
