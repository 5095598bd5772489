"""Data sources by the string that names them in a config."""

from __future__ import annotations

import re
from pathlib import Path

from drkd_jax.data.coco import CocoSource
from drkd_jax.data.joined import JoinedSource
from drkd_jax.data.records import Category, Meta, Record, Source
from drkd_jax.data.shapes import ShapesSource
from drkd_jax.errors import UserError
from drkd_jax.paths import expand_home

__all__ = ["Category", "Meta", "Record", "Source", "open_source"]

_FORMS = "shapes:N[:SEED[:easy]], coco:IMAGES_DIR:INSTANCES_JSON or tfds:coco/2017:SPLIT[@DATA_DIR]"
# A plus joins where a source follows; folders may have one in their name.
_JOINT = re.compile(r"\s*\+\s*(?=(?:shapes|coco|tfds):)")


def open_source(spec: str, on_error: str = "stop", *, exif: str = "auto", depth: int = 0) -> Source:
    """Opens a source by its name in a config.

    - ``shapes:N[:SEED[:easy]]``: N pictures drawn by the program, the same for the same SEED
      (default 0); easy ones a small detector learns within minutes.
    - ``coco:IMAGES_DIR:INSTANCES_JSON``: pictures of a folder, boxes of COCO's instances file.
    - ``tfds:coco/2017:SPLIT[@DATA_DIR]``: a prepared TensorFlow dataset, read without TensorFlow.
    - ``A + B``: several of these as one, their classes joined by name.

    Args:
        spec: one of these.
        on_error: what happens to an entry of an instances file that has a fault; see
            ``CocoSource``.
        exif: which pixels the boxes of a turned photograph refer to; see ``decode_picture``.
        depth: bits that 16-bit pictures use; see ``decode_picture``.

    Raises:
        UserError: another form, or what it names does not exist or is broken.
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
            raise UserError(f"data source '{spec}': wanted tfds:coco/2017:SPLIT[@DATA_DIR]")
        if exif == "turned":
            raise UserError(
                f"data source '{spec}': COCO's boxes refer to the pixels as stored; "
                "set data.exif = auto"
            )
        # Half a second of imports, which no other source needs.
        from drkd_jax.data.tfds import TfdsSource

        return TfdsSource(name, split, data_dir or None)
    raise UserError(f"unknown data source '{spec}': wanted {_FORMS}, or several joined by ' + '")


def _open_shapes(spec: str, rest: str) -> ShapesSource:
    parts = rest.split(":")
    easy = len(parts) == 3 and parts[-1] == "easy"
    if easy:
        parts.pop()
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) < 1:
        raise UserError(
            f"data source '{spec}': wanted shapes:N[:SEED[:easy]] with whole numbers, N at least 1"
        )
    return ShapesSource(*(int(part) for part in parts), easy=easy)


def _split_paths(spec: str, rest: str) -> tuple[str, str]:
    """Splits ``IMAGES_DIR:INSTANCES_JSON``; where paths hold colons, by what exists.

    A ``~`` at the start of either is the home folder.
    """
    cuts = [i for i, letter in enumerate(rest) if letter == ":" and 0 < i < len(rest) - 1]
    if not cuts:
        raise UserError(f"data source '{spec}': wanted coco:IMAGES_DIR:INSTANCES_JSON")
    pairs = [(_home(rest[:cut]), _home(rest[cut + 1 :])) for cut in cuts]
    for images_dir, instances in pairs:
        if Path(images_dir).is_dir() and Path(instances).is_file():
            return images_dir, instances
    return pairs[0]


def _home(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise UserError(f"data source: the home folder of {path} is not known") from error
