"""A file of weights, ours or another library's, as arrays by our names with their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from drkd_jax.data.classes import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.weights import detectron2
from drkd_jax.weights.by_name import is_name, local_file
from drkd_jax.weights.checkpoint_spec import CheckpointSpec
from drkd_jax.weights.files import ForeignFile, checked_name, is_safetensors, read_foreign, sha256
from drkd_jax.weights.key_report import KeyReport
from drkd_jax.weights.ours import About, is_ours, read_ours
from drkd_jax.weights.understanding import Understood, abstract, model_shapes, understand
from drkd_jax.weights.wrappers import Unwrapped, unwrap

# Keys of a config that say how to read a file, and not what its model is.
_READING = ("data", "prefix", "part")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Arrays by our names, and the model that they fill to the last one.

    Attributes:
        path: of the file on this machine.
        name: what it was asked for by: its path, or a name of `by_name.py`.
        arrays: float32.
        about: settings, classes, origin.
        account: what became of every key; None for a file of ours.
        lines: what is printed.
    """

    path: Path
    name: str
    arrays: dict[str, np.ndarray]
    about: About
    account: KeyReport | None
    lines: tuple[str, ...]

    @property
    def origin(self) -> str:
        """One line: the file, and what became of its keys."""
        source = self.about.source
        place = f"{self.name} ({self.path})" if is_name(self.name) else str(self.path)
        words = f"{place}, {self.about.part}"
        if "library" in source:
            words += f" of {source['library']}"
        if self.account is None:
            return f"{words}, {len(self.arrays)} arrays"
        reasons = {
            reason.split(":")[0]: list(self.account.skipped.values()).count(reason)
            for reason in dict.fromkeys(self.account.skipped.values())
        }
        skipped = "".join(f", {count} of {reason} skipped" for reason, count in reasons.items())
        head = f"; its head is {source['head']}" if "head" in source else ""
        return f"{words}, all {len(self.arrays)} arrays{skipped}{head}"

    def model(self, dtype: Any = jnp.float32) -> Any:
        """The model without values: a detector, a feature extractor or a backbone."""
        return abstract(self.about.part, self.about.settings, self.about.num_classes, dtype)


def open_weights(
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    library: str | None = None,
    *,
    heads: bool = True,
) -> Weights:
    """Reads a file of weights, whichever it is.

    Args:
        path: of ours, of torchvision, mmdetection or Detectron2; or a name of one
            (`by_name.py`), as text.
        config: model settings of the user. They have to agree with what shows in the file, and
            decide what does not show. Under "data" what its network reads (`mean`, `std`,
            `channels`, `resize`), where that is not what the file or its library says. "prefix"
            names one of several models in the file; "part" = "pyramid" leaves its head out.
        library: one of `understanding.LIBRARIES`; None looks at the keys.
        heads: whether a head that the file's own config makes one that is not built here is an
            error; otherwise it is left out, which is said.

    Returns:
        weights that fill their model completely.

    Raises:
        UserError: the file cannot be read, is no model of ours, does not agree with the config,
            or has keys missing, left over or of other shapes, which are listed; or its name leads
            to no file.
    """
    name, path, asked = str(path), local_file(path), dict(config or {})
    config = {key: value for key, value in asked.items() if key not in _READING}
    said = asked.get("data") or {}
    if is_safetensors(path) and is_ours(path):
        return _open_ours(path, name, config, said)
    found = read_foreign(path)
    how: dict[str, Any] = {"part": str(asked.get("part", "")), "heads": heads}
    inner = _unwrap(found, path, config, library, asked.get("prefix"))
    arrays = {name: found.arrays[key] for name, key in inner.names.items()}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    known = understand(shapes, found.meta, path, config, library, arrays=arrays, **how)
    reading, settings = known.reading, known.settings
    known.account.check(f"{path} as {_say(settings, reading.part)}")
    account = dataclasses.replace(known.account, skipped={**known.account.skipped, **inner.outside})
    digest = sha256(path)
    source = {"file": path.name, "sha256": digest, "library": known.library, "form": found.form}
    if is_name(name):
        source["name"] = name
    if inner.prefix:
        source["prefix"] = inner.prefix
    if reading.unbuilt:
        source["head"] = f"left out: {'; '.join(reading.unbuilt)}"
    lines = [
        f"{path.name}: {known.library}, {found.form}, SHA-256 {digest[:16]}... "
        f"({checked_name(path, digest)})",
        *inner.lines,
        *reading.lines(asked),
        *_said_of(known),
        *account.lines(),
        *_left(found, inner),
    ]
    data = reading.data(said, str(path))
    about = About(reading.part, settings, reading.num_classes, _categories(reading), source, data)
    own = known.arrays(arrays)
    _check_numbers(path, own, {ours: key for key, ours in known.used.items()}, arrays)
    return Weights(path, name, own, about, account, tuple(lines))


def _check_numbers(
    path: Path,
    own: Mapping[str, np.ndarray],
    keys: Mapping[str, str],
    found: Mapping[str, np.ndarray],
) -> None:
    """Refuses arrays that are no weights whatever their shapes: quantised, or of a run gone wrong.

    Args:
        path: for messages.
        own: arrays by our names.
        keys: the file's keys by our names.
        found: the file's arrays by its keys.
    """
    for name, array in own.items():
        key = keys.get(name, name)
        kind = found[key].dtype if key in found else array.dtype
        if kind.kind in "iub":
            raise UserError(f"{path}: {key} is of {kind}: quantised weights, which are not read")
        if not np.isfinite(array).all():
            raise UserError(
                f"{path}: {key} holds values that are no finite numbers (a training gone wrong, or "
                "numbers too large for half precision); take an earlier checkpoint"
            )
        if name.endswith(".var") and array.size and array.min() < 0:
            raise UserError(f"{path}: {key} holds variances below 0; the file is damaged")


def _unwrap(
    found: ForeignFile,
    path: Path,
    config: Mapping[str, Any],
    library: str | None,
    prefix: Any,
) -> Unwrapped:
    """The names of the one model in a file."""
    shapes = found.shapes
    if detectron2.is_caffe2(name.rpartition("blobs.")[2] for name in shapes):
        raise UserError(
            f"{path}: blobs of Detectron's Caffe2 (MSRA's ImageNet weights), which have no batch "
            "norm; take Detectron2's own files, or torchvision's or mmdetection's of that backbone"
        )

    def is_whole(names: Mapping[str, str]) -> bool:
        own = {name: shapes[key] for name, key in names.items()}
        try:
            return understand(own, found.meta, path, config, library, heads=False).account.whole
        except UserError:
            return False

    try:
        return unwrap(shapes, is_whole, None if prefix is None else str(prefix))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _said_of(known: Understood) -> list[str]:
    """What was done to a model that is not said anywhere else."""
    lines = []
    if known.folds:
        lines.append(
            f"  {len(known.folds)} batch norms of the pyramid folded into its convolutions, with "
            f"an eps of {known.reading.neck_eps:g}"
        )
    if known.reading.unbuilt:
        lines.append(f"  its head is left out: {'; '.join(known.reading.unbuilt)}")
    return lines


def _left(found: ForeignFile, inner: Unwrapped) -> list[str]:
    """What of a file is no array."""
    lines = []
    if found.inert:
        lines.append(f"  left unbuilt beside the weights: {', '.join(found.inert)}")
    lines += [
        f"  {key} under the weights is {what}"
        for key, what in found.left_out.items()
        if key.startswith(inner.prefix) and inner.prefix
    ]
    return lines


def _open_ours(
    path: Path, given: str, config: Mapping[str, Any], said: Mapping[str, Any]
) -> Weights:
    arrays, about = read_ours(path)
    reading = CheckpointSpec(about.part, about.settings, {})
    settings = reading.settings(config, str(path))
    reading.data(said, str(path))  # the keys are known ones
    about = dataclasses.replace(about, settings=settings, data=dict(about.data) | dict(said))
    wanted = model_shapes(about.part, settings, about.num_classes)
    wrong = sorted(
        name
        for name in wanted.keys() | arrays.keys()
        if name not in arrays or wanted.get(name) != arrays[name].shape
    )
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} arrays are not those of its settings; the first is {wrong[0]}"
        )
    _check_numbers(path, arrays, {}, arrays)
    line = f"{path.name}: ours, {about.part}, {len(arrays)} arrays, all used"
    return Weights(path, given, arrays, about, None, (line,))


def _categories(reading: CheckpointSpec) -> tuple[tuple[int, str], ...]:
    coco = {category.name: int(category.id) for category in COCO_CATEGORIES}
    names = reading.class_names
    if set(names) <= set(coco):
        return tuple((coco[name], name) for name in names)
    return tuple((number + 1, name) for number, name in enumerate(names))


def _say(settings: Mapping[str, Any], part: str) -> str:
    backbone = settings["backbone"]
    return f"{settings.get('detector', part)} on ResNet-{backbone['depth']}"
