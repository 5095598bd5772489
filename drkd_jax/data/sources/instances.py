"""Checks COCO's instances file entry by entry and converts it to flat arrays.

Faults of single entries are distinguished from faults of the file. In strict mode the first one is
an error; otherwise faulty entries are left out and returned as a list.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.data.sources.records import AnnotationTable, Category, Id, id_array, id_key
from drkd_jax.errors import UserError
from drkd_jax.words import counted, listed

_LONGEST = 2**31  # pixels of a side
_LARGEST = 1e150  # of any number: products of two are finite


class Fault(NamedTuple):
    """A fault of one entry of an instances file."""

    kind: str  # "category", "image" or "annotation"
    which: str  # "id 101", or "number 3" (counted from 0) if it has no id
    reason: str
    follows: bool = False  # left out because of another entry, so not counted itself

    def __str__(self) -> str:
        return f"{self.kind} {self.which}: {self.reason}"


class _Image(NamedTuple):
    key: Id  # what annotations refer to: "7" and 7 are the same
    id: Id  # as in the file
    name: str
    height: int
    width: int


class _Annotation(NamedTuple):
    key: Id
    id: Id
    image: Id
    category: Id
    box: list[float]
    area: float
    crowd: bool


def parse_instances(
    content: dict[str, Any],
    name: str,
    faults: list[Fault] | None = None,
    paths: Mapping[str, str] | None = None,
    mended: list[str] | None = None,
) -> AnnotationTable:
    """Checks an instances dict and converts it to flat arrays, images in the file's order.

    ``iscrowd`` may be missing or null (0), and ``area`` (width x height). Ids may be strings; a
    string with an integer is the same id as the integer.

    Args:
        content: ``images``, ``annotations`` and ``categories`` in COCO's form.
        name: the file's name in messages.
        faults: receives the entries that are left out; None leaves none out. Images with the
            same id are all left out with their boxes, since the boxes are ambiguous.
        paths: paths of images whose ``file_name`` is not their path.
        mended: receives a line for each kind of correction made while reading.

    Raises:
        UserError: a list is missing, there is no image or no class. If ``faults`` is None also: a
            missing key, a duplicate or unknown id, a box that is not four finite numbers, a file
            name that leads out of the folder, an invalid size.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{name}: no list '{key}'; a COCO instances file has one")
        if not content[key] and key != "annotations":
            raise UserError(f"{name}: its list '{key}' is empty; there is nothing to detect")
    found: list[Fault] = []
    classes = _rows(content["categories"], _category, "category", found)
    classes.sort(key=lambda row: (isinstance(row[0], str), row[0]))  # numbers first
    categories = tuple(row[1] for row in classes)
    label_of = {key: label for label, (key, _) in enumerate(classes)}
    known = listed(label_of)
    images = _rows(content["images"], lambda row: _image(row, paths or {}), "image", found)
    image_of = {image.key: position for position, image in enumerate(images)}
    gone = _keys(content["images"]) - image_of.keys()
    annotations, places, labels = [], [], []
    for annotation in _rows(content["annotations"], _annotation, "annotation", found):
        which, image = f"id {annotation.id}", annotation.image
        if image in gone:
            reason = f"its image, id {image}, is left out"
            found.append(Fault("annotation", which, reason, follows=True))
        elif image not in image_of:
            found.append(Fault("annotation", which, f"unknown image_id {image}"))
        elif annotation.category not in label_of:
            reason = f"unknown category_id {annotation.category} ('categories' has {known})"
            found.append(Fault("annotation", which, reason))
        else:
            annotations.append(annotation)
            places.append(image_of[image])
            labels.append(label_of[annotation.category])
    if found and faults is None:
        count = sum(not fault.follows for fault in found)
        more = f"; {count} entries have faults in all" if count > 1 else ""
        raise UserError(f"{name}: {found[0]}{more} (`prepare --check SOURCE` lists all faults)")
    if faults is not None:
        faults.extend(found)
    if not images or not categories:
        raise UserError(f"{name}: {found[0]}; no {'class' if images else 'image'} is left")
    if mended is not None:
        mended += _mended(content, images, classes)
    order = np.argsort(np.array(places, np.int64), kind="stable")
    starts = np.searchsorted(np.array(places, np.int64)[order], np.arange(len(images) + 1))
    return AnnotationTable(
        categories=categories,
        names=tuple(image.name for image in images),
        image_ids=id_array([image.id for image in images]),
        sizes=np.array([(i.height, i.width) for i in images], np.int64).reshape(-1, 2),
        starts=starts.astype(np.int64),
        ids=id_array([a.id for a in annotations])[order],
        bbox=np.array([a.box for a in annotations], np.float64).reshape(-1, 4)[order],
        area=np.array([a.area for a in annotations], np.float64)[order],
        labels=np.array(labels, np.int32)[order],
        crowd=np.array([a.crowd for a in annotations], bool)[order],
    )


def _mended(content: dict[str, Any], images: list[_Image], classes: list[Any]) -> list[str]:
    """The corrections made while reading, one line per kind."""
    texts = sum(isinstance(image.id, str) for image in images)
    texts += sum(isinstance(category.id, str) for _, category in classes)
    nulls, ignored = {"area": 0, "iscrowd": 0}, 0
    for row in content["annotations"]:
        if isinstance(row, dict):
            ignored += bool(row.get("ignore")) and not row.get("iscrowd")
            texts += sum(type(row.get(key)) is str for key in ("id", "image_id", "category_id"))
            for key in nulls:
                nulls[key] += key in row and row[key] is None
    lines = []
    names = [row.get("name") for row in content["categories"] if isinstance(row, dict)]
    untidy = [name for name in names if isinstance(name, str) and name != _tidy(name)]
    if untidy:
        lines.append(
            f"{counted(len(untidy), 'class name', 'are')} read without blanks at the ends and with "
            f"composed letters: {', '.join(map(repr, untidy[:3]))}"
        )
    if texts:
        lines.append(
            f"{counted(texts, 'id')} given as text; whole numbers among them count as such, and "
            "images and classes keep them as they stand"
        )
    for key, instead in (("area", "width x height is used"), ("iscrowd", "0 is used")):
        if nulls[key]:
            lines.append(f"{counted(nulls[key], 'annotation', 'have')} '{key}' null; {instead}")
    if ignored:
        lines.append(
            f"{counted(ignored, 'annotation', 'have')} 'ignore', which neither COCO's score nor "
            "this program uses: such boxes are trained on and scored; 'iscrowd': 1 excludes them"
        )
    return lines


def _rows(
    rows: list[Any], parse: Callable[[dict[str, Any]], Any], kind: str, found: list[Fault]
) -> list[Any]:
    """Parses each entry, its id's key first; invalid entries and duplicate ids are faults.

    All images with the same id are faults, unless they are copies of one entry; this includes
    entries that cannot be parsed, since boxes may belong to them.
    """
    parsed: list[Any] = []
    broken: set[Any] = set()
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not a json object")
            parsed.append(parse(row))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            shown = row.get("id") if isinstance(row, dict) else None
            which = f"id {shown}" if shown is not None else f"number {position}"
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            if "no key 'bbox'" in reason and row.get("segmentation"):
                reason += "; it has an outline ('segmentation'): write the box around it as 'bbox'"
            found.append(Fault(kind, which, reason))
            if kind == "image":
                broken |= _keys([row])
    keys = Counter(entry[0] for entry in parsed)
    if len(keys) == len(parsed) and broken.isdisjoint(keys):
        return parsed
    variants: dict[Id, set[Any]] = {}
    if kind == "image":
        for entry in parsed:
            if keys[entry[0]] > 1:
                variants.setdefault(entry[0], set()).add(entry[2:])
    kept, seen = [], set()
    for entry in parsed:
        ambiguous = len(variants.get(entry[0], ())) > 1 or entry[0] in broken
        if entry[0] in seen or ambiguous:
            named = f" ({entry.name})" if kind == "image" else ""
            reason = f"occurs twice; ids must be unique{named}"
            found.append(Fault(kind, f"id {entry[0]}", reason, entry[0] not in seen))
            seen.add(entry[0])
            continue
        seen.add(entry[0])
        kept.append(entry)
    return kept


def _keys(rows: list[Any]) -> set[Id]:
    """The ids of all image entries, valid or not."""
    keys = set()
    for row in rows:
        if isinstance(row, dict):
            try:
                keys.add(_id(row.get("id"), "id")[0])
            except ValueError:
                continue
    return keys


def _category(row: dict[str, Any]) -> tuple[Id, Category]:
    name = row["name"]
    if not _is_text(name):
        raise ValueError(f"name {name!r} is not a text")
    key, own = _id(row["id"], "id")
    return key, Category(own, _tidy(name))


def _tidy(name: str) -> str:
    """A class's name without invisible differences: surrounding blanks, composed letters."""
    return unicodedata.normalize("NFC", name).strip()


def _image(row: dict[str, Any], paths: Mapping[str, str]) -> _Image:
    height, width = _whole(row["height"], "height"), _whole(row["width"], "width")
    if height < 1 or width < 1:
        raise ValueError(f"its size {width}x{height} is not positive")
    if max(height, width) >= _LONGEST:
        raise ValueError(f"its size {width}x{height} is not an image's")
    return _Image(*_id(row["id"], "id"), _file_name(row["file_name"], paths), height, width)


def _file_name(name: Any, paths: Mapping[str, str]) -> str:
    if not _is_text(name) or "\0" in name:
        raise ValueError(f"file_name {name!r} is not the name of a file")
    path = PurePosixPath(paths.get(name, name))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"file_name '{name}' leads out of the image folder; it must be relative to it"
        )
    return name


def _annotation(row: dict[str, Any]) -> _Annotation:
    stated = row["bbox"]
    if not isinstance(stated, list) or len(stated) != 4 or not all(map(_is_number, stated)):
        raise ValueError(f"bbox {_short(stated)} is not four finite numbers (x, y, width, height)")
    box = [float(value) for value in stated]
    area = row.get("area")
    area = box[2] * box[3] if area is None else area
    if not _is_number(area):
        raise ValueError(f"area {_short(area)} is not a finite number")
    crowd = row.get("iscrowd")
    crowd = 0 if crowd is None else crowd
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {_short(crowd)} is neither 0 nor 1")
    own, image, category = (_id(row[key], key) for key in ("id", "image_id", "category_id"))
    return _Annotation(*own, image[0], category[0], box, float(area), bool(crowd))


def _id(value: Any, key: str) -> tuple[Id, Id]:
    """(the key for comparisons, the id as in the file)."""
    if type(value) is int and abs(value) < 2**64:
        return value, value
    if isinstance(value, str) and value.strip():
        return id_key(value), value
    # 2**53 as a float may be the rounded 2**53 + 1.
    if isinstance(value, float) and abs(value) >= 2**53:
        raise ValueError(f"{key} {_short(value)} is not a whole number that a double can hold")
    number = _whole(value, key)
    return number, number


def _is_text(value: Any) -> bool:
    """Whether a value is a non-blank text that can be encoded: JSON may have lone surrogates."""
    try:
        return isinstance(value, str) and bool(os.fsencode(value.strip()))
    except UnicodeEncodeError:
        return False


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; a text that looks like one is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST and math.isfinite(value)


def _whole(value: Any, key: str) -> int:
    if not _is_number(value) or value != int(value) or abs(value) >= 2**64:
        raise ValueError(f"{key} {_short(value)} is not a whole number")
    return int(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
