"""Which model of ours a foreign file fills: from keys, shapes and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.weights import (
    detectron2,
    mmdet,
    spec_mmdet,
    spec_torchvision,
    torchvision,
)
from drkd_jax.weights.checkpoint_spec import CheckpointSpec
from drkd_jax.weights.empty_models import model_shapes
from drkd_jax.weights.key_report import Entry, KeyReport, Skip, account_for, take
from drkd_jax.weights.pyramid_norms import (
    Fold,
    find_folds,
    folded_arrays,
    folded_keys,
    folded_shapes,
)
from drkd_jax.weights.resnet_names import Shapes

LIBRARIES = ("torchvision", "mmdet", "detectron2")

_IS: Mapping[str, Callable[[Shapes], bool]] = MappingProxyType(
    {
        "detectron2": detectron2.is_detectron2,
        "mmdet": spec_mmdet.is_mmdet,
        "torchvision": spec_torchvision.is_torchvision,
    }
)
_SKIPS: Mapping[str, Callable[[str], tuple[Skip, ...]]] = MappingProxyType(
    {
        "detectron2": detectron2.skips,
        "mmdet": mmdet.skips,
        "torchvision": spec_torchvision.skips,
    }
)


class Understood(NamedTuple):
    """What the keys and shapes of a foreign file say."""

    library: str
    reading: CheckpointSpec
    settings: dict[str, Any]
    table: list[Entry]
    account: KeyReport
    folds: tuple[Fold, ...]
    used: dict[str, str]  # as `KeyReport.used`, with folded norms as the biases that they become

    def arrays(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The file's arrays by our names, with the norms of its pyramid folded."""
        folded = folded_arrays(found, self.folds, self.reading.neck_eps)
        return take(folded, self.table, self.used)


def understand(
    shapes: Shapes,
    meta: Mapping[str, Any],
    path: Path,
    config: Mapping[str, Any],
    library: str | None = None,
    *,
    part: str = "",
    heads: bool = True,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Understood:
    """What a foreign file holds, from its keys and shapes alone.

    Args:
        shapes: of the file's arrays, by a model's own names.
        meta: what else it holds.
        path: for its name and for messages; it is not opened.
        config: as in `open_weights`.
        library: as in `open_weights`.
        part: "pyramid" leaves the head out whatever it is; "": as much as can be built.
        heads: whether a head that the file's own config makes one that is not built here is an
            error; otherwise it is left out.
        arrays: the arrays themselves, for those that hold settings.

    Raises:
        UserError: no model of ours, another library's keys, or a config that does not agree.
    """
    library = library or next((name for name, is_its in _IS.items() if is_its(shapes)), "")
    library = library or "torchvision"
    try:
        folds = find_folds(shapes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    folded = folded_shapes(shapes, folds)
    reading = _read(folded, meta, path, library, arrays or {})
    if reading.unbuilt and heads and part != "pyramid":
        raise UserError(
            f"{path}: its own config gives its head what is not built here: "
            f"{'; '.join(reading.unbuilt)}. A teacher can use its backbone and pyramid; convert "
            "takes them by --set part=pyramid"
        )
    whole = reading.part == "detector"
    if part not in ("", "pyramid", reading.part) or (
        part == "pyramid" and reading.part == "backbone"
    ):
        raise UserError(f"{path}: holds a {reading.part}, no {part}")
    if whole and (reading.unbuilt or part == "pyramid"):
        reading = reading.without_head()
    settings = reading.settings(config, str(path))
    wanted = model_shapes(reading.part, settings, reading.num_classes)
    prefixed = any(key.startswith("backbone.") for key in shapes)
    table = library_table(library, wanted, prefixed)
    account = account_for(folded, table, wanted, _SKIPS[library](reading.part))
    used = dict(account.used)
    honest = KeyReport(
        folded_keys(used, folds, shapes),
        account.skipped,
        account.missing,
        {key: shape for key, shape in account.unexpected.items() if key in shapes},
        account.misshapen,
    )
    return Understood(library, reading, settings, table, honest, folds, used)


def library_table(library: str, names: Mapping[str, Any], prefixed: bool = True) -> list[Entry]:
    """The names of a library for arrays of ours.

    Args:
        library: one of `LIBRARIES`.
        names: ours.
        prefixed: whether a backbone's keys have the prefix of a detector's file.

    Raises:
        UserError: the library has no such array.
    """
    if library == "detectron2":
        return detectron2.table(names, prefixed)
    if library == "mmdet":
        return mmdet.table(names, "backbone." if prefixed else "")
    try:
        make = torchvision.entries if prefixed else torchvision.classifier_entries
        return list(make(names))
    except KeyError as error:
        raise UserError(f"{error.args[0]}: has no name in torchvision") from error


def _read(
    shapes: Shapes,
    meta: Mapping[str, Any],
    path: Path,
    library: str,
    arrays: Mapping[str, np.ndarray],
) -> CheckpointSpec:
    if library not in LIBRARIES:
        raise UserError(f"library {library!r}: one of {', '.join(LIBRARIES)}")
    other = next((name for name in LIBRARIES if name != library and _IS[name](shapes)), None)
    if other and not _IS[library](shapes):
        raise UserError(f"{path}: its keys are those of {other}, not of {library}")
    try:
        if library == "detectron2":
            return detectron2.read(shapes, arrays, path.name)
        if library == "mmdet":
            return spec_mmdet.read(shapes, meta, path.name)
        return spec_torchvision.read(shapes, meta, path.name)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise UserError(f"{path}: its arrays have shapes that no model of ours has") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
