"""From the string in the config to a source of pictures and boxes."""

from __future__ import annotations

from pathlib import Path

from drkd_jax.data.coco import CocoSource
from drkd_jax.data.records import Category, Meta, Record, Source
from drkd_jax.data.shapes import ShapesSource
from drkd_jax.data.tfds import TfdsSource
from drkd_jax.errors import UserError
from drkd_jax.paths import expand_home

__all__ = ["Category", "Meta", "Record", "Source", "open_source"]

_FORMS = "shapes:N[:SEED], coco:IMAGES_DIR:INSTANCES_JSON or tfds:coco/2017:SPLIT[@DATA_DIR]"


def open_source(spec: str, on_error: str = "stop") -> Source:
    """Opens a source by its name in a config.

    - ``shapes:N[:SEED]``: N pictures drawn by the program, the same for the same SEED (default 0).
    - ``coco:IMAGES_DIR:INSTANCES_JSON``: pictures of a folder, boxes of COCO's instances file.
    - ``tfds:coco/2017:SPLIT[@DATA_DIR]``: a prepared TensorFlow dataset, read without TensorFlow.

    Args:
        spec: one of these.
        on_error: what happens to an entry of an instances file that has a fault; see
            ``CocoSource``.

    Raises:
        UserError: another form, or what it names does not exist or is broken.
    """
    spec = expand_home(spec)
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(spec, rest)
    if kind == "coco":
        return CocoSource(*_split_paths(spec, rest), on_error)
    if kind == "tfds":
        name, _, where = rest.partition(":")
        split, _, data_dir = where.partition("@")
        if not name or not split:
            raise UserError(f"data source '{spec}': wanted tfds:coco/2017:SPLIT[@DATA_DIR]")
        return TfdsSource(name, split, data_dir or None)
    raise UserError(f"unknown data source '{spec}': wanted {_FORMS}")


def _open_shapes(spec: str, rest: str) -> ShapesSource:
    parts = rest.split(":")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) < 1:
        raise UserError(
            f"data source '{spec}': wanted shapes:N[:SEED] with whole numbers, N at least 1"
        )
    return ShapesSource(*(int(part) for part in parts))


def _split_paths(spec: str, rest: str) -> tuple[str, str]:
    """Splits ``IMAGES_DIR:INSTANCES_JSON``; where paths hold colons, by what exists."""
    cuts = [i for i, letter in enumerate(rest) if letter == ":" and 0 < i < len(rest) - 1]
    if not cuts:
        raise UserError(f"data source '{spec}': wanted coco:IMAGES_DIR:INSTANCES_JSON")
    pairs = [(rest[:cut], rest[cut + 1 :]) for cut in cuts]
    for images_dir, instances in pairs:
        if Path(images_dir).is_dir() and Path(instances).is_file():
            return images_dir, instances
    return pairs[0]
