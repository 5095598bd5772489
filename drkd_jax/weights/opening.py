"""A file of weights, ours or another library's, as arrays by our names with their settings."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.data.coco_names import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.resnet import ResNet
from drkd_jax.models.settings import BackboneSettings, PyramidSettings, from_dict
from drkd_jax.weights import mmdet, reading_mmdet, reading_torchvision, torchvision
from drkd_jax.weights.account import Account, Entry, account_for, take
from drkd_jax.weights.files import checked_name, is_safetensors, read_foreign, sha256
from drkd_jax.weights.ours import About, is_ours, read_ours
from drkd_jax.weights.reading import Reading
from drkd_jax.weights.resnet_names import Shapes

LIBRARIES = ("torchvision", "mmdet")


class Understood(NamedTuple):
    """What the keys and shapes of a foreign file say."""

    library: str
    reading: Reading
    settings: dict[str, Any]
    table: list[Entry]
    account: Account


@dataclasses.dataclass(frozen=True)
class Weights:
    """Arrays by our names, and the model that they fill to the last one.

    Attributes:
        path: of the file.
        arrays: float32.
        about: settings, classes, origin.
        account: what became of every key; None for a file of ours.
        lines: what is printed.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    about: About
    account: Account | None
    lines: tuple[str, ...]

    @property
    def origin(self) -> str:
        """One line: the file, and what became of its keys."""
        source = self.about.source
        words = f"{self.path}, {self.about.part}"
        if "library" in source:
            words += f" of {source['library']}"
        if self.account is None:
            return f"{words}, {len(self.arrays)} arrays"
        reasons = {
            reason.split(":")[0]: list(self.account.skipped.values()).count(reason)
            for reason in dict.fromkeys(self.account.skipped.values())
        }
        skipped = "".join(f", {count} of {reason} skipped" for reason, count in reasons.items())
        return f"{words}, all {len(self.arrays)} arrays{skipped}"

    def model(self, dtype: Any = jnp.float32) -> Any:
        """The model without values: a detector, a feature extractor or a backbone."""
        return abstract(self.about.part, self.about.settings, self.about.num_classes, dtype)


def open_weights(
    path: str | Path, config: Mapping[str, Any] | None = None, library: str | None = None
) -> Weights:
    """Reads a file of weights, whichever it is.

    Args:
        path: of ours, of torchvision or of mmdetection.
        config: model settings of the user. They have to agree with what shows in the file, and
            decide what does not show. Under "data" what its network reads (`mean`, `std`,
            `channels`, `resize`), where that is not what the file or its library says.
        library: "torchvision" or "mmdet"; None looks at the keys.

    Returns:
        weights that fill their model completely.

    Raises:
        UserError: the file cannot be read, is no model of ours, does not agree with the config,
            or has keys missing, left over or of other shapes, which are listed.
    """
    path, asked = Path(path), dict(config or {})
    config = {key: value for key, value in asked.items() if key != "data"}
    said = asked.get("data") or {}
    if is_safetensors(path) and is_ours(path):
        return _open_ours(path, config, said)
    found = read_foreign(path)
    known = understand(found.shapes, found.meta, path, config, library)
    reading, settings, account = known.reading, known.settings, known.account
    account.check(f"{path} as {_say(settings, reading.part)}")
    arrays = take(found.arrays, known.table, account.used)
    digest = sha256(path)
    source = {"file": path.name, "sha256": digest, "library": known.library, "form": found.form}
    lines = [
        f"{path.name}: {known.library}, {found.form}, SHA-256 {digest[:16]}... "
        f"({checked_name(path, digest)})",
        *reading.lines(asked),
        *account.lines(),
    ]
    if found.inert:
        lines.append(f"  left unbuilt beside the weights: {', '.join(found.inert)}")
    lines += [f"  {key} under the weights is {what}" for key, what in found.left_out.items()]
    data = reading.data(said, str(path))
    about = About(reading.part, settings, reading.num_classes, _categories(reading), source, data)
    return Weights(path, arrays, about, account, tuple(lines))


def understand(
    shapes: Shapes,
    meta: Mapping[str, Any],
    path: Path,
    config: Mapping[str, Any],
    library: str | None = None,
) -> Understood:
    """What a foreign file holds, from its keys and shapes alone.

    Args:
        shapes: of the file's arrays.
        meta: what else it holds.
        path: for its name and for messages; it is not opened.
        config: as in `open_weights`.
        library: as in `open_weights`.

    Raises:
        UserError: no model of ours, another library's keys, or a config that does not agree.
    """
    library = library or ("mmdet" if reading_mmdet.is_mmdet(shapes) else "torchvision")
    reading = _read(shapes, meta, path, library)
    settings = reading.settings(config, str(path))
    wanted = model_shapes(reading.part, settings, reading.num_classes)
    prefixed = any(key.startswith("backbone.") for key in shapes)
    table = library_table(library, wanted, prefixed)
    skips = (mmdet if library == "mmdet" else reading_torchvision).skips(reading.part)
    return Understood(library, reading, settings, table, account_for(shapes, table, wanted, skips))


def abstract(part: str, settings: Mapping[str, Any], num_classes: int, dtype: Any) -> Any:
    """A model without values.

    Args:
        part: "detector", "pyramid" or "backbone".
        settings: of the model; a backbone's under "backbone".
        num_classes: of the data.
        dtype: of the computation.

    Raises:
        UserError: an unknown key or value, with its name.
    """
    kind = jnp.dtype(dtype)
    if part == "detector":
        return models.abstract_detector(settings, num_classes, dtype=kind)
    if part == "pyramid":
        pyramid = from_dict(PyramidSettings(), settings)
        return nnx.eval_shape(lambda: FeatureExtractor(pyramid, rngs=nnx.Rngs(0), dtype=kind))
    backbone = from_dict(BackboneSettings(), settings.get("backbone") or {})
    return nnx.eval_shape(lambda: ResNet(backbone, rngs=nnx.Rngs(0), dtype=kind))


def model_shapes(
    part: str, settings: Mapping[str, Any], num_classes: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a model, by flat name; a backbone's begin with "backbone."."""
    return dict(_model_shapes(part, json.dumps(settings, sort_keys=True), num_classes))


@functools.lru_cache(maxsize=32)  # tracing a model takes a second
def _model_shapes(part: str, settings: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    model = abstract(part, json.loads(settings), num_classes, jnp.float32)
    state = nnx.as_pure(nnx.split(model)[1])
    start = "backbone." if part == "backbone" else ""
    return {
        start + jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def library_table(library: str, names: Mapping[str, Any], prefixed: bool = True) -> list[Entry]:
    """The names of a library for arrays of ours.

    Args:
        library: "torchvision" or "mmdet".
        names: ours.
        prefixed: whether a backbone's keys have the prefix of a detector's file.

    Raises:
        UserError: the library has no such array.
    """
    if library == "mmdet":
        return mmdet.table(names, "backbone." if prefixed else "")
    try:
        make = torchvision.entries if prefixed else torchvision.classifier_entries
        return list(make(names))
    except KeyError as error:
        raise UserError(f"{error.args[0]}: has no name in torchvision") from error


def _open_ours(path: Path, config: Mapping[str, Any], said: Mapping[str, Any]) -> Weights:
    arrays, about = read_ours(path)
    reading = Reading(about.part, about.settings, {})
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
    line = f"{path.name}: ours, {about.part}, {len(arrays)} arrays, all used"
    return Weights(path, arrays, about, None, (line,))


def _read(shapes: Shapes, meta: Mapping[str, Any], path: Path, library: str) -> Reading:
    if library not in LIBRARIES:
        raise UserError(f"library {library!r}: one of {', '.join(LIBRARIES)}")
    own = {
        "mmdet": reading_mmdet.is_mmdet(shapes),
        "torchvision": reading_torchvision.is_torchvision(shapes),
    }
    other = next((name for name in LIBRARIES if name != library and own[name]), None)
    if other and not own[library]:
        raise UserError(f"{path}: its keys are those of {other}, not of {library}")
    try:
        if library == "mmdet":
            return reading_mmdet.read(shapes, meta, path.name)
        return reading_torchvision.read(shapes, path.name)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise UserError(f"{path}: its arrays have shapes that no model of ours has") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _categories(reading: Reading) -> tuple[tuple[int, str], ...]:
    coco = {category.name: int(category.id) for category in COCO_CATEGORIES}
    names = reading.class_names
    if set(names) <= set(coco):
        return tuple((coco[name], name) for name in names)
    return tuple((number + 1, name) for number, name in enumerate(names))


def _say(settings: Mapping[str, Any], part: str) -> str:
    backbone = settings["backbone"]
    return f"{settings.get('detector', part)} on ResNet-{backbone['depth']}"
