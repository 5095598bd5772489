"""Unexpected facts about a data set, worded alike at a run's start and in its check.

Letters: P images, M annotations, n images of a choice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from drkd_jax.data.checking.box_form import LARGE, BoxForm, box_form, cut
from drkd_jax.data.decode import Scan, brightest
from drkd_jax.data.skipped import SHARE
from drkd_jax.data.sources.records import AnnotationTable, Source
from drkd_jax.errors import UserError
from drkd_jax.words import counted, listed

SMALLEST_SIDE = 32  # pixels; training leaves smaller images out
MAX_BOXES = 100  # `data.max_boxes` by default
MAX_DETECTIONS = 100  # by COCO's rule


class Finding(NamedTuple):
    """One line about a set.

    Attributes:
        text: what, how often, and examples.
        grave: whether something is likely wrong; otherwise it is only for information.
        fatal: whether a run would learn nonsense without stopping; a check counts it as an error.
    """

    text: str
    grave: bool = False
    fatal: bool = False


def find(
    source: Source,
    *,
    max_boxes: int | None = MAX_BOXES,
    max_detections: int | None = MAX_DETECTIONS,
) -> list[Finding]:
    """All findings about a set that need no pixels, grave ones first.

    Args:
        source: the set.
        max_boxes: rows for ground truth in a batch; None for a set that is not trained on.
        max_detections: detections per class and image that an evaluation counts; None for a set
            that is not scored.
    """
    table = source.table
    found = [Finding(line) for line in source.mended]
    found += _boxes(table, unread(source))
    found += _images(table, max_boxes, max_detections)
    pairs = zip(places(source), table.names, strict=True)
    found += _names(table, [place or name for place, name in pairs])
    found += _files(source)
    return sorted(found, key=lambda finding: not finding.grave)


def left_out(table: AnnotationTable) -> dict[str, Bool[np.ndarray, "M"]]:
    """The annotations that training leaves out, each under the first reason that applies."""
    width, height = table.bbox[:, 2:].T
    x1, y1, x2, y2 = table.clipped.T
    reasons = {
        "negative width or height": (width < 0) | (height < 0),
        "no area": (width == 0) | (height == 0),
        "outside the image": (x2 <= x1) | (y2 <= y1),
        "narrower or lower than a pixel": (width < 1) | (height < 1),
        "stated area not positive": table.area <= 0,
    }
    taken = np.zeros(len(table.ids), bool)
    for reason, rows in reasons.items():
        reasons[reason] = rows & ~taken
        taken |= rows
    return reasons


def unread(source: Source) -> str:
    """Why none of a file's annotations are usable; "" if some are, or if it has none.

    The reason is the one that most of them share, such as an outline in place of a box.
    """
    reasons = Counter(fault.reason for fault in source.faults if fault.kind == "annotation")
    if len(source.table.ids) or not reasons:
        return ""
    ((reason, count),) = reasons.most_common(1)
    return f"none of its {reasons.total()} annotations can be used ({count} times: {reason})"


def _boxes(table: AnnotationTable, why_none: str) -> list[Finding]:
    found, form, count = [], box_form(table), len(table.ids)
    if not count:
        what = why_none or "there is no annotation at all"
        return [Finding(f"{what}: nothing to learn from or to score", True)]
    if form.share >= LARGE or form.cause:
        found.append(Finding(_odd_form(form, count), grave=True, fatal=form.wrong))
    odd = {f"are left out of training, {reason}": rows for reason, rows in left_out(table).items()}
    odd["are cut at the image's edge"] = cut(table)
    for what, rows in odd.items():
        if rows.any():
            ids = listed(table.ids[rows].tolist())
            found.append(Finding(f"{counted(int(rows.sum()), 'annotation', what)}: {ids}"))
    return found


def _odd_form(form: BoxForm, count: int) -> str:
    why = f" ({form.cause})" if form.cause else ""
    what = f"of {count} boxes are cut at the edge of their image or unusable{why}"
    what += "; convert them: nothing is right to learn from or to score" if form.wrong else ""
    return f"{form.share:.0%} {what}"


def _images(
    table: AnnotationTable, max_boxes: int | None, max_detections: int | None
) -> list[Finding]:
    rows: dict[str, tuple[np.ndarray, bool]] = {
        "have no box to train on": (table.num_boxes == 0, False),
        f"have a side under {SMALLEST_SIDE} pixels": (
            table.sizes.min(axis=1) < SMALLEST_SIDE,
            False,
        ),
    }
    if max_boxes is not None:
        past = int(np.maximum(table.num_boxes - max_boxes, 0).sum())
        what = (
            f"have more than data.max_boxes = {max_boxes} boxes: training leaves {past} boxes "
            "per epoch out"
        )
        rows[what] = table.num_boxes > max_boxes, True
    if max_detections is not None:
        crowded = _most_of_a_class(table)
        what = (
            f"have more than {max_detections} boxes of a class (at most "
            f"{crowded.max(initial=0)}), and of each class only the best {max_detections} "
            "detections count in an image, see eval.max_detections"
        )
        rows[what] = crowded > max_detections, True
        in_all = np.bincount(table.image_of[~table.crowd], minlength=len(table))
        what = (
            f"have more than {max_detections} boxes of all classes (at most "
            f"{in_all.max(initial=0)}), and a detector gives {max_detections} detections per "
            "image unless test.max_out or eval.max_detections says more"
        )
        rows[what] = (in_all > max_detections) & (crowded <= max_detections), True
    found = []
    for what, (which, grave) in rows.items():
        if which.any():
            named = listed([table.names[i] for i in np.flatnonzero(which)])
            found.append(Finding(f"{counted(int(which.sum()), 'image', what)}: {named}", grave))
    seen = np.bincount(table.labels[table.usable & ~table.crowd], minlength=len(table.categories))
    unseen = [category.name for category, n in zip(table.categories, seen, strict=True) if not n]
    if unseen:
        found.append(Finding(f"{counted(len(unseen), 'class', 'have no box')}: {listed(unseen)}"))
    return found


def _most_of_a_class(table: AnnotationTable) -> np.ndarray:
    """For each image the largest number of boxes of one class, without crowd regions."""
    most = np.zeros(len(table), np.int64)
    classes = max(1, len(table.categories))
    keys = table.image_of[~table.crowd] * classes + table.labels[~table.crowd]
    pairs, counts = np.unique(keys, return_counts=True)
    np.maximum.at(most, pairs // classes, counts)
    return most


def _names(table: AnnotationTable, places: Sequence[str]) -> list[Finding]:
    found = []
    names = [category.name for category in table.categories]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        text = counted(len(twice), "class name", "occur more than once")
        found.append(Finding(f"{text}: {listed(twice)}", True))
    counts = Counter(places)
    shown = dict(zip(places, table.names, strict=True))
    same = [shown[place] for place, count in counts.items() if count > 1]
    if same:
        text = counted(len(same), "file", "are listed as several images")
        found.append(Finding(f"{text}: {listed(same)}", True))
    return found


def places(source: Source) -> list[str | None]:
    """A unique path of each image file, even if folders have aliases; None: not a file."""
    folders: dict[str, str] = {}  # resolving each file is slow over a network
    found: list[str | None] = []
    for index in range(len(source)):
        path = source.path(index)
        if path is None:
            found.append(None)
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        found.append(os.path.join(folders[folder], name))
    return found


def _files(source: Source) -> list[Finding]:
    """Findings about files that are not images, orientations, and bit depths."""
    found, scanned, table = [], source.scan, source.table
    if scanned is None:
        return []
    broken = _broken(source)
    if broken:
        named = listed([table.names[i] for i in broken])
        text = counted(len(broken), "image file", "are missing, empty or not an image")
        found.append(Finding(f"{text}: {named}", grave=True))
    if (scanned.orientation > 1).any():
        found.append(_turned(table, scanned, source.exif))
    deep = np.flatnonzero(scanned.bits > 8)
    if len(deep):
        value, looked = brightest([path for i in deep if (path := source.path(int(i)))])
        used = max(8, int(value).bit_length())
        taken = source.depth or int(scanned.bits[deep].max())
        text = (
            f"{counted(len(deep), 'image', 'hold')} 16-bit numbers; the brightest of {looked} "
            f"looked at is {value} of {(1 << 16) - 1}, read as {taken} bits: "
            f"{listed([table.names[i] for i in deep])}"
        )
        if value and used < taken:
            text += f". They come out dark: data.depth = {used} makes {(1 << used) - 1} white"
        elif used > taken:
            text += f". What is brighter than {(1 << taken) - 1} becomes white"
        found.append(Finding(text, grave=bool(value) and used != taken))
    return found


def _turned(table: AnnotationTable, scanned: Scan, exif: str) -> Finding:
    turned = scanned.orientation > 1
    stored = turned & ((scanned.orientation < 5) | (scanned.sizes == table.sizes).all(axis=1))
    named = [table.names[i] for i in np.argsort(~stored, kind="stable") if turned[i]]
    text = counted(int(turned.sum()), "image", "are marked as turned or mirrored (EXIF)")
    text += f": {listed(named)}. "
    if exif != "auto":
        how = {"stored": "Taken as stored", "turned": "Turned"}[exif]
        return Finding(f"{text}{how}, as data.exif = {exif} says")
    rest = turned & ~stored
    ways = []
    if stored.any():
        ways.append(f"{stored.sum()} taken as stored, which the stated size allows")
    if rest.any():
        ways.append(f"{rest.sum()} turned, since only that has the stated size")
    text += ", ".join(ways)
    if stored.any():
        beside = _only_inside_turned(table, stored & (scanned.orientation >= 5))
        if beside:
            text += f"; {counted(beside, 'box', 'fit into the turned image only')}"
        text += "; if boxes lie beside their objects, set data.exif = turned"
    return Finding(text, grave=bool(stored.any()))


def _only_inside_turned(table: AnnotationTable, lying: np.ndarray) -> int:
    """The number of boxes of rotated images that fit the rotated but not the stored pixels."""
    x, y, w, h = table.bbox[lying[table.image_of]].T
    height, width = table.sizes[table.image_of][lying[table.image_of]].T
    right, bottom = x + w - 1, y + h - 1  # a pixel of slack
    out = (right > width) | (bottom > height)
    return int((out & (right <= height) & (bottom <= width)).sum())


def require_readable(source: Source, key: str, on_error: str, read: Int64[np.ndarray, "n"]) -> None:
    """Refuses a set with files at which the run would stop sooner or later.

    Args:
        source: the set.
        key: its key in a config.
        on_error: "stop" allows none, "skip" as many as `data.skipped` allows.
        read: positions of the images that the run reads.

    Raises:
        UserError: names the first of them.
    """
    total = len(read)
    broken = sorted(set(_broken(source)).intersection(read.tolist()))
    if not broken or (on_error == "skip" and len(broken) <= SHARE * total):
        return
    named = listed([str(source.path(i)) for i in broken])
    what = f"{key} = {source.spec}: {len(broken)} of {total} image files are missing, empty or "
    mend = "Fix them, or leave them out of the instances file"
    if len(broken) <= SHARE * total:
        mend += ", or set data.on_error = skip"
    first = ""
    try:
        source.record(broken[0])
    except UserError as error:
        first = f". The first: {error}"
    raise UserError(f"{what}not images, and the run would stop there: {named}. {mend}{first}")


def _broken(source: Source) -> list[int]:
    """The images whose files are known to be missing, empty or not images."""
    if source.scan is None:
        return []
    # In joined sets some images are not files.
    return [i for i in map(int, np.flatnonzero(source.scan.broken)) if source.path(i) is not None]


def require_boxes(source: Source) -> None:
    """Refuses a set that has no box to train on, or whose boxes are wrong.

    Raises:
        UserError: gives the likely cause.
    """
    if problem := no_box(source):
        raise UserError(f"{source.spec}: {problem}")
    if (form := box_form(source.table)).wrong:
        raise UserError(f"{source.spec}: {_odd_form(form, len(source.table.ids))}")


def require_usable(source: Source) -> None:
    """Refuses a set for scoring if all its annotations are unusable or wrong; it may have none.

    Raises:
        UserError: gives the likely cause.
    """
    table = source.table
    if len(table.ids) and (not table.usable.any() or box_form(table).wrong):
        require_boxes(source)


def no_box(source: Source) -> str:
    """Why a set has nothing to train on; "" if it has something."""
    table = source.table
    form, count = box_form(table), len(table.ids)
    if (table.usable & ~table.crowd).any() and not form.none_usable:
        return ""
    if not count:
        return f"no box to train on: {unread(source) or 'it has no annotation'}"
    why = [f"{rows.sum()} {reason}" for reason, rows in left_out(table).items() if rows.any()]
    crowd = int((table.usable & table.crowd).sum())
    why += [counted(crowd, "crowd region")] if crowd else []
    why += [form.cause] if form.cause else []
    return f"no box to train on among its {count} annotations: {'; '.join(why)}"
