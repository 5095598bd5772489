"""`load`: the one entry point for loading a model, whatever its form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.errors import UserError, faults_of
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.filling import as_tuples, from_dict
from drkd_jax.models.pixels import read_pixels
from drkd_jax.weights.fetch.by_name import is_name, local_file
from drkd_jax.weights.foreign.files import (
    ForeignFile,
    checked_name,
    is_safetensors,
    read_foreign,
    sha256,
)
from drkd_jax.weights.foreign.wrappers import Unwrapped, unwrap
from drkd_jax.weights.libraries import detectron2
from drkd_jax.weights.libraries.checkpoint_spec import CheckpointSpec
from drkd_jax.weights.libraries.understanding import Understood, model_shapes, understand
from drkd_jax.weights.loaded import Weights
from drkd_jax.weights.ours import (
    ABOUT_FILE,
    WHICH,
    About,
    is_ours,
    read_export,
    read_ours,
    read_run,
)
from drkd_jax.words import counted

# Keys of a config that say how to read a file, not which model it contains.
_READING = ("data", "prefix", "part")


def is_work_folder(place: str | Path) -> bool:
    """Whether a path is a run's work folder, or would be read as one if it existed."""
    path = Path(place)
    if is_name(str(place)) or not path.exists():
        return not (is_name(str(place)) or path.suffix)
    # A run's folder may contain such a file, too, put there by the user.
    has_run = any((path / name).is_dir() for name in WHICH.values())
    return path.is_dir() and (has_run or not (path / ABOUT_FILE).exists())


def load(
    place: str | Path,
    config: Mapping[str, Any] | None = None,
    library: str | None = None,
    *,
    which: str = "best",
    heads: bool = True,
) -> Weights:
    """Opens a model: a detector, a backbone with its pyramid, or a backbone.

    Args:
        place: a work folder; the folder of `export --to=orbax`; a file of ours, of torchvision,
            mmdetection or Detectron2; or the name of a file (`by_name.py`), as text.
        config: model settings of the user. They must agree with what the file shows, and determine
            what it does not show. "data" holds the input format (`mean`, `std`, `channels`,
            `resize`) if it differs from that of the file or its library. "prefix" selects one of
            several models in the file; "part" = "pyramid" leaves its head out.
        library: the file's library, one of `understanding.LIBRARIES`; None detects it by the keys.
        which: "best" or "last" checkpoint of a work folder.
        heads: whether a head that cannot be built here, according to the file's own config, is an
            error; otherwise it is left out, with a message.

    Returns:
        weights that fill their model completely.

    Raises:
        UserError: there is no checkpoint, or the file cannot be read; its model is not supported,
            does not agree with the config, or has keys missing, left over or of other shapes, which
            are listed; or its name leads to no file.
    """
    name, asked = str(place), dict(config or {})
    if library is None and is_work_folder(place):
        return _open_run(Path(place), name, which, asked)
    path = local_file(place)
    if library is None and path.is_dir():
        return _open_ours(path, read_export(path), name, asked)
    if is_safetensors(path) and is_ours(path):
        return _open_ours(path, read_ours(path), name, asked)
    found = read_foreign(path)
    config = _without_reading(asked)
    part, prefix = str(asked.get("part", "")), asked.get("prefix")
    with faults_of(path):
        inner = _unwrap(found, path, config, library, None if prefix is None else str(prefix))
    arrays = {name: found.arrays[key] for name, key in inner.names.items()}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    known = understand(
        shapes, found.meta, path, config, library, part=part, heads=heads, arrays=arrays
    )
    spec, settings = known.spec, known.settings
    model = f"{settings.get('detector', spec.part)} on ResNet-{settings['backbone']['depth']}"
    known.report.check(f"{path} as {model}")
    empty = {key: "an array without numbers" for key, shape in found.shapes.items() if 0 in shape}
    report = dataclasses.replace(
        known.report, skipped={**known.report.skipped, **inner.outside, **empty}
    )
    digest = sha256(path)
    source = {"file": path.name, "sha256": digest, "library": known.library, "form": found.form}
    if is_name(name):
        source["name"] = name
    if inner.prefix:
        source["prefix"] = inner.prefix
    if spec.unbuilt:
        source["head"] = f"left out: {'; '.join(spec.unbuilt)}"
    lines = [
        f"{path.name}: {known.library}, {found.form}, SHA-256 {digest[:16]}... "
        f"({checked_name(path, digest)})",
        *inner.lines,
        *spec.lines(asked),
        *_done(known),
        *report.lines(),
        *_left(found, inner),
    ]
    own = known.arrays(arrays)
    with faults_of(path):
        data = spec.data(asked.get("data") or {})
        _check_numbers(own, {ours: key for key, ours in known.used.items()}, arrays)
    about = About(spec.part, settings, spec.num_classes, _categories(spec), source, data)
    return Weights(path, name, own, about, report, tuple(lines))


def _without_reading(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model alone, from a config that also says how to read its file."""
    return {key: value for key, value in asked.items() if key not in _READING}


def _open_run(folder: Path, name: str, which: str, asked: Mapping[str, Any]) -> Weights:
    arrays, about, config = read_run(folder, which)
    wrong = [key for key in asked if as_tuples(asked[key]) != as_tuples(about.settings.get(key))]
    if wrong:
        raise UserError(
            f"{name}: the config and the checkpoint differ in {', '.join(wrong)}; leave the "
            "model's settings out: they are read from the checkpoint"
        )
    return Weights(folder, name, arrays, about, config=config)


def _check_numbers(
    own: Mapping[str, np.ndarray], keys: Mapping[str, str], found: Mapping[str, np.ndarray]
) -> None:
    """Refuses arrays that cannot be weights: quantised, or from a run that diverged.

    Args:
        own: arrays by our names.
        keys: the file's keys by our names.
        found: the file's arrays by its keys.
    """
    for name, array in own.items():
        key = keys.get(name, name)
        kind = found[key].dtype if key in found else array.dtype
        if kind.kind in "iubc":
            what = "complex" if kind.kind == "c" else "quantised"
            raise UserError(f"{key} is of {kind}: {what} weights, which are not read")
        if not np.isfinite(array).all():
            raise UserError(
                f"{key} holds values that are no finite numbers (a training gone wrong, or numbers "
                "too large for half precision); take an earlier checkpoint"
            )
        if name.endswith(".var") and array.size and array.min() < 0:
            raise UserError(f"{key} holds variances below 0; the file is damaged")


def _unwrap(
    found: ForeignFile,
    path: Path,
    config: Mapping[str, Any],
    library: str | None,
    prefix: str | None,
) -> Unwrapped:
    """The names of the one model in a file."""
    # If one dimension is 0, the others may be arbitrarily large in a file of any size.
    shapes = {key: shape for key, shape in found.shapes.items() if 0 not in shape}
    if detectron2.is_caffe2(name.rpartition("blobs.")[2] for name in shapes):
        raise UserError(
            "blobs of Detectron's Caffe2 (MSRA's ImageNet weights), which have no batch norm; take "
            "Detectron2's own files, or torchvision's or mmdetection's of that backbone"
        )

    def is_whole(names: Mapping[str, str]) -> bool:
        own = {name: shapes[key] for name, key in names.items()}
        try:
            return understand(own, found.meta, path, config, library, heads=False).report.whole
        except UserError:
            return False

    return unwrap(shapes, is_whole, prefix)


def _done(known: Understood) -> Iterator[str]:
    """Messages about changes to a model that are not mentioned elsewhere."""
    if known.folds:
        yield (
            f"  {len(known.folds)} batch norms of pyramid and heads folded into convolutions, with "
            f"an eps of {known.spec.neck_eps:g}"
        )
    if known.spec.unbuilt:
        yield f"  its head is left out: {'; '.join(known.spec.unbuilt)}"


def _left(found: ForeignFile, inner: Unwrapped) -> Iterator[str]:
    """Messages about the parts of a file that are not arrays."""
    if found.inert:
        yield f"  left unbuilt beside the weights: {', '.join(found.inert)}"
    for key, what in found.left_out.items():
        if key.startswith(inner.prefix) and inner.prefix:
            yield f"  {key} under the weights is {what}"


def _open_ours(
    path: Path,
    content: tuple[dict[str, np.ndarray], About],
    given: str,
    asked: Mapping[str, Any],
) -> Weights:
    arrays, about = content
    config, said = _without_reading(asked), asked.get("data") or {}
    with faults_of(path):
        if asked.get("prefix") or (asked.get("part") or about.part) != about.part:
            raise UserError(
                f"a file of ours, which holds one {about.part} under no prefix; leave `prefix` and "
                "`part` out"
            )
        _check_counts(about, arrays)
        # Settings that it does not list are the defaults, with which the user's must agree.
        backbone = from_dict(BackboneSettings(), about.settings.get("backbone") or {})
        shown = {**about.settings, "backbone": dataclasses.asdict(backbone)}
        CheckpointSpec(about.part, shown, {}).settings(config)
        spec = CheckpointSpec(about.part, about.settings, {})
        settings = spec.settings(config)
        spec.data(said)  # refuses unknown keys
        wanted = model_shapes(about.part, settings, about.num_classes)
        wrong = sorted(
            name
            for name in wanted.keys() | arrays.keys()
            if name not in arrays or wanted.get(name) != arrays[name].shape
        )
        if wrong:
            text = counted(len(wrong), "array", "are not of its settings")
            raise UserError(f"{text}; the first is {wrong[0]}")
        _check_numbers(arrays, {}, arrays)
    about = dataclasses.replace(about, settings=settings, data=dict(about.data) | dict(said))
    line = f"{path.name}: ours, {about.part}, {len(arrays)} arrays, all used"
    weights = Weights(path, given, arrays, about, lines=(line,))
    with faults_of(path):
        weights.pipeline()
        read_pixels(weights.as_config()["data"], weights.dtype)
    return weights


def _check_counts(about: About, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses models that take long to build and that the arrays cannot fill."""
    anchors = about.settings.get("anchors")
    numbers = sum(array.size for array in arrays.values())
    counts = {
        "num_classes": (about.num_classes, numbers),
        "head_convs": (about.settings.get("head_convs"), len(arrays)),
        "anchors.octaves": (
            anchors.get("octaves") if isinstance(anchors, Mapping) else None,
            numbers,
        ),
    }
    for name, (said, most) in counts.items():
        if isinstance(said, int) and said > most:
            raise UserError(f"{name} is {said}, which its arrays cannot be; the file is damaged")
    if about.part == "detector" and len(about.categories) not in (0, about.num_classes):
        raise UserError(
            f"it names {counted(len(about.categories), 'class')} and counts {about.num_classes}; "
            "the file is damaged"
        )


def _categories(spec: CheckpointSpec) -> tuple[tuple[int, str], ...]:
    coco = {category.name: int(category.id) for category in COCO_CATEGORIES}
    names = spec.class_names
    if set(names) <= set(coco):
        return tuple((coco[name], name) for name in names)
    return tuple((number + 1, name) for number, name in enumerate(names))
