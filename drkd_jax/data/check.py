"""A whole set read once, before a run trips over it: what is wrong, what is odd, what is in it.

An error is what stops a run (``on_error = "stop"``); a warning is what it works with, in a way that
its owner may not expect. Letters: P pictures, M annotations.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.data.coco import CocoSource
from drkd_jax.data.instances import Fault
from drkd_jax.data.shapes import ShapesSource
from drkd_jax.data.sources import open_source
from drkd_jax.data.table import AnnotationTable
from drkd_jax.data.tfds import TfdsSource
from drkd_jax.errors import UserError

SMALL, MEDIUM = 32**2, 96**2  # square pixels: COCO's limits, compared with the stated area
_SMALLEST_SIDE = 32  # pixels; training leaves smaller pictures out
_ROWS = 100  # boxes a picture: `data.max_boxes` by default
_NAMED = 5  # examples in a warning


class Problem(NamedTuple):
    """Something that its owner should know."""

    kind: str  # "error" or "warning"
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a set holds.

    Attributes:
        source: the string that opened it.
        pictures: entries that could be used.
        readable: pictures that could be read.
        empty: pictures without a box to train on.
        boxes: that training sees.
        crowd: regions, which training leaves out.
        left_out: annotations that training leaves out, by reason.
        most_boxes: in one picture.
        shorter: smallest, median and largest shorter side in pixels.
        longer: the same of the longer side.
        classes: a dict each: id, name, pictures, boxes, small, medium, large, crowd.
        problems: errors first.
        samples: positions of a few telling pictures: the fullest, then rare classes first.
    """

    source: str
    pictures: int
    readable: int
    empty: int
    boxes: int
    crowd: int
    left_out: dict[str, int]
    most_boxes: int
    shorter: tuple[int, int, int]
    longer: tuple[int, int, int]
    classes: list[dict[str, Any]]
    problems: list[Problem]
    samples: list[int]

    @property
    def errors(self) -> list[str]:
        """What would stop a run."""
        return [problem.text for problem in self.problems if problem.kind == "error"]

    @property
    def warnings(self) -> list[str]:
        """What its owner may not expect."""
        return [problem.text for problem in self.problems if problem.kind == "warning"]

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return dataclasses.asdict(self) | {"errors": self.errors, "warnings": self.warnings}


def check(
    spec: str,
    *,
    threads: int = 4,
    num_samples: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every annotation and every picture of a source.

    Args:
        spec: as ``open_source`` takes it.
        threads: that read pictures.
        num_samples: how many positions ``samples`` has, at most.
        progress: is told how many pictures of how many are read.

    Raises:
        UserError: the source cannot be opened at all: no such folder, a file that is not json, a
            list that is missing.
    """
    source = open_source(spec, "list")
    assert isinstance(source, CocoSource | ShapesSource | TfdsSource)
    table = source.table
    faults: list[Fault] = getattr(source, "faults", [])
    errors, digests = [f"{fault}" for fault in faults], {}
    readable = np.ones(len(source), bool)

    def read(index: int) -> bytes | str:
        try:
            image = source.record(index).image
        except UserError as error:
            return str(error)
        return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for index, found in enumerate(pool.map(read, range(len(source)))):
            if isinstance(found, str):
                readable[index] = False
                errors.append(found)
            else:
                digests[index] = found
            if progress is not None:
                progress(index + 1, len(source))
    warnings = _warnings(table, digests)
    if isinstance(source, CocoSource):
        warnings += _strangers(source)
    left_out = {reason: int(rows.sum()) for reason, rows in _left_out(table).items() if rows.any()}
    trained = table.usable & ~table.crowd
    sides = np.sort(table.sizes, axis=1)
    return Report(
        source=spec,
        pictures=len(source),
        readable=int(readable.sum()),
        empty=int((table.num_boxes == 0).sum()),
        boxes=int(trained.sum()),
        crowd=int((table.usable & table.crowd).sum()),
        left_out=left_out,
        most_boxes=int(table.num_boxes.max(initial=0)),
        shorter=_spread(sides[:, 0]),
        longer=_spread(sides[:, 1]),
        classes=_classes(table),
        problems=[Problem("error", text) for text in errors]
        + [Problem("warning", text) for text in warnings],
        samples=_samples(table, readable, num_samples),
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
                "pictures": len(np.unique(table.picture_of[own & trained])),
                "boxes": len(area),
                "small": int((area < SMALL).sum()),
                "medium": int(((area >= SMALL) & (area < MEDIUM)).sum()),
                "large": int((area >= MEDIUM).sum()),
                "crowd": int((own & table.usable & table.crowd).sum()),
            }
        )
    return rows


def _left_out(table: AnnotationTable) -> dict[str, np.ndarray]:
    """Which annotations training does not see, each under the first reason that holds."""
    width, height = table.bbox[:, 2:].T
    x1, y1, x2, y2 = table.clipped.T
    reasons = {
        "negative width or height": (width < 0) | (height < 0),
        "no area": (width == 0) | (height == 0),
        "outside the picture": (x2 <= x1) | (y2 <= y1),
        "narrower or lower than a pixel": (width < 1) | (height < 1),
        "stated area not positive": table.area <= 0,
    }
    taken = np.zeros(len(table.ids), bool)
    for reason, rows in reasons.items():
        reasons[reason] = rows & ~taken
        taken |= rows
    return reasons


def _warnings(table: AnnotationTable, digests: dict[int, bytes]) -> list[str]:
    warnings = []
    for reason, rows in _left_out(table).items():
        if rows.any():
            ids = _some(table.ids[rows].tolist())
            warnings.append(f"{rows.sum()} annotations are left out of training, {reason}: {ids}")
    over = np.abs(table.clipped - _corners(table)).max(axis=1, initial=0) > 1
    over &= table.usable
    if over.any():
        ids = _some(table.ids[over].tolist())
        warnings.append(f"{over.sum()} annotations reach out of their picture and are cut: {ids}")
    for what, rows in {
        "have no box to train on": table.num_boxes == 0,
        f"have a side under {_SMALLEST_SIDE} pixels": table.sizes.min(axis=1) < _SMALLEST_SIDE,
        f"have more than {_ROWS} boxes, data.max_boxes by default": table.num_boxes > _ROWS,
    }.items():
        if rows.any():
            named = _some([table.names[i] for i in np.flatnonzero(rows)])
            warnings.append(f"{rows.sum()} pictures {what}: {named}")
    unseen = [row["name"] for row in _classes(table) if not row["boxes"]]
    if unseen:
        warnings.append(f"{len(unseen)} classes have no box: {_some(unseen)}")
    for what, names in {
        "classes have the same name": [category.name for category in table.categories],
        "pictures are the same file": list(table.names),
    }.items():
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            warnings.append(f"{len(twice)} times {what}: {_some(twice)}")
    same: dict[bytes, list[int]] = {}
    for index, digest in digests.items():
        same.setdefault(digest, []).append(index)
    groups = [group for group in same.values() if len({table.names[i] for i in group}) > 1]
    if groups:
        named = _some(["=".join(table.names[i] for i in group) for group in groups])
        warnings.append(f"{len(groups)} times pictures have the same pixels: {named}")
    return warnings


def _corners(table: AnnotationTable) -> np.ndarray:
    corners = table.bbox.copy()
    corners[:, 2:] += corners[:, :2]
    return corners


def _strangers(source: CocoSource) -> list[str]:
    """Files in the folder that the instances file does not name."""
    known = set(source.table.names)
    folder = source.images_dir
    strange = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in known
    )
    if not strange:
        return []
    return [f"{len(strange)} files of {folder} are not in the instances file: {_some(strange)}"]


def _some(names: list[Any]) -> str:
    shown = ", ".join(map(str, names[:_NAMED]))
    return shown + (", ..." if len(names) > _NAMED else "")


def _samples(table: AnnotationTable, readable: np.ndarray, count: int) -> list[int]:
    trained = table.usable & ~table.crowd & readable[table.picture_of]
    chosen: list[int] = []
    if trained.any():
        fullest = int(np.argmax(np.where(readable, table.num_boxes, -1)))
        chosen.append(fullest)
    seen = np.bincount(table.labels[trained], minlength=len(table.categories))
    for label in np.argsort(seen, kind="stable"):
        pictures = table.picture_of[trained & (table.labels == label)]
        if len(pictures) and not np.isin(pictures, chosen).any():
            chosen.append(int(pictures[len(pictures) // 2]))
    others = np.random.default_rng(0).permutation(np.flatnonzero(readable))
    chosen += [int(index) for index in others if index not in chosen]
    return chosen[:count]
