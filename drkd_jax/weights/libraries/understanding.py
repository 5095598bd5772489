"""Finds the model that fits a foreign file, from its keys, shapes and metadata.

The pyramids built here have no norms, nor have a region's layers. A batch norm with its running
statistics is one factor and one shift per channel, so it is folded exactly into the convolution
before it while a file is read; a group norm depends on the image and cannot be folded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError, faults_of
from drkd_jax.models.arrays import flatten
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.build import fill_settings
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.filling import from_dict
from drkd_jax.models.resnet import ResNet
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.weights.libraries import detectron2, mmdet, torchvision
from drkd_jax.weights.libraries.checkpoint_spec import UNUSED, Assumed, CheckpointSpec, Shapes
from drkd_jax.weights.libraries.key_report import Entry, KeyReport, Skip, report_keys, take

LIBRARIES = ("torchvision", "mmdet", "detectron2")

# A file is read by the first module whose `is_its` recognises its keys.
_MODULES: Mapping[str, Any] = MappingProxyType(
    {"detectron2": detectron2, "mmdet": mmdet, "torchvision": torchvision}
)
# Keys of torch's and mmengine's `AveragedModel`, which can occur with any library.
_AVERAGED = Skip(r"(n_averaged|steps)$", "a counter of a moving average")
# Settings that do not affect array shapes: files that differ only in them share a traced model.
_NO_SHAPE = (
    *("test", "proposals", "sampler", "extra_relu", "delta_stds"),
    *("roi_stds", "roi_aligned", "roi_sampling", "roi_max_level", "class_ids"),
)
_NO_SHAPE_OF_BACKBONE = ("eps", "style", "pool", "frozen_stages")
_LEAVES = ("weight", "bias", "running_mean", "running_var")
# The module of a norm, and that of the convolution before it.
_PAIRS = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.1", "{0}.0"),  # torchvision's "v2"
    (r"(roi_heads\.box_head\.\d+)\.1", "{0}.0"),
    (
        r"((?:neck\.(?:lateral|fpn)_convs|bbox_head|rpn_head|roi_head)\..+)\.(?:bn|gn)",
        "{0}.conv",
    ),  # mmdetection
    (r"(backbone\.fpn_(?:lateral|output)\d)\.norm", "{0}"),  # Detectron2
)


class Fold(NamedTuple):
    """The modules of a batch norm and of the convolution that it is folded into."""

    norm: str
    conv: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the norm."""
        return tuple(f"{self.norm}.{leaf}" for leaf in _LEAVES)


class Understood(NamedTuple):
    """What the keys and shapes of a foreign file show."""

    library: str
    spec: CheckpointSpec
    settings: dict[str, Any]
    table: list[Entry]
    report: KeyReport
    folds: tuple[Fold, ...]
    used: dict[str, str]  # as `KeyReport.used`, with folded norms as the biases they become

    def arrays(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The file's arrays by our names, with the norms of its pyramid folded."""
        folded = folded_arrays(found, self.folds, self.spec.neck_eps)
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
    """Determines the model in a foreign file from its keys and shapes alone.

    Args:
        shapes: shapes of the file's arrays, by a model's own names.
        meta: its other content.
        path: for its name and for messages; it is not opened.
        config: as in `opening.load`.
        library: as in `opening.load`.
        part: "pyramid" always leaves the head out; "": as much as can be built.
        heads: whether a head that cannot be built here, according to the file's own config, is an
            error; otherwise it is left out.
        arrays: the arrays themselves, for those that hold settings.

    Raises:
        UserError: the model is not supported, the keys are another library's, or the config does
            not agree.
    """
    its = (name for name, module in _MODULES.items() if module.is_its(shapes))
    library = library or next(its, "torchvision")
    with faults_of(path):
        folds = find_folds(shapes)
        folded = folded_shapes(shapes, folds)
        spec = _read(folded, meta, path.name, library, arrays or {})
        if spec.unbuilt and heads and part != "pyramid":
            raise UserError(
                f"its own config gives its head what is not built here: {'; '.join(spec.unbuilt)}. "
                "A teacher can use its backbone and pyramid; convert takes them by --set "
                "part=pyramid"
            )
        if part not in ("", "pyramid", spec.part) or (part, spec.part) == ("pyramid", "backbone"):
            raise UserError(f"holds a {spec.part}, no {part}")
        if spec.part == "detector" and (spec.unbuilt or part == "pyramid"):
            spec = spec.without_head()
        spec = _of_classes(spec, config.get("class_ids"))
        settings = spec.settings(config)
        wanted = model_shapes(spec.part, settings, spec.num_classes)
    prefixed = any(key.startswith("backbone.") for key in shapes)
    table = library_table(library, wanted, prefixed)
    skips = (*_MODULES[library].skips(spec.part), _AVERAGED)
    found = report_keys(folded, table, wanted, skips)
    unexpected = {key: shape for key, shape in found.unexpected.items() if key in shapes}
    report = dataclasses.replace(
        found, used=folded_keys(found.used, folds, shapes), unexpected=unexpected
    )
    return Understood(library, spec, settings, table, report, folds, dict(found.used))


def library_table(library: str, names: Mapping[str, Any], prefixed: bool = True) -> list[Entry]:
    """The names of a library for arrays of ours.

    Args:
        library: one of `LIBRARIES`.
        names: our names.
        prefixed: whether a backbone's keys have the prefix of a detector's file.

    Raises:
        UserError: the library has no such array.
    """
    return _MODULES[library].table(names, prefixed)


def _read(
    shapes: Shapes,
    meta: Mapping[str, Any],
    file_name: str,
    library: str,
    arrays: Mapping[str, np.ndarray],
) -> CheckpointSpec:
    if library not in LIBRARIES:
        raise UserError(f"library {library!r}: one of {', '.join(LIBRARIES)}")
    known = [name for name in LIBRARIES if _MODULES[name].is_its(shapes)]
    other = next((name for name in known if name != library), None)
    if other and library not in known:
        raise UserError(f"its keys are those of {other}, not of {library}")
    try:
        if library == "detectron2":
            return detectron2.read(shapes, arrays)
        return _MODULES[library].read(shapes, meta, file_name)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise UserError("its arrays have shapes that no model of ours has") from error


def _of_classes(spec: CheckpointSpec, ids: Any) -> CheckpointSpec:
    """A file's model with the classes that a user selects among the outputs of its head.

    Args:
        spec: the file's model.
        ids: the output of each class; () for every output; None (not given) for those that the
            file does not call `UNUSED`.

    Raises:
        UserError: the head has no such output.
    """
    if spec.part != "detector":
        return spec
    own = spec.assumed["class_ids"].value if "class_ids" in spec.assumed else ()
    own = own or tuple(range(spec.num_classes))
    if ids is None and UNUSED in spec.class_names:
        named = zip(own, spec.class_names, strict=True)
        ids = tuple(number for number, name in named if name != UNUSED)
        said = Assumed(ids, f"the file calls its other outputs {UNUSED}")
        spec = dataclasses.replace(spec, assumed={**spec.assumed, "class_ids": said})
    if not isinstance(ids, (list, tuple)):
        return spec
    outputs = spec.shown.get("head_classes", spec.num_classes)
    chosen = tuple(ids) or tuple(range(outputs))
    if any(isinstance(number, int) and number >= outputs for number in chosen):
        raise UserError(f"class_ids: its head has {outputs} outputs, from 0 on")
    names = dict(zip(own, spec.class_names, strict=False))
    known = tuple(names[number] for number in chosen if number in names)
    return dataclasses.replace(
        spec,
        shown={**spec.shown, "head_classes": outputs},
        num_classes=len(chosen),
        class_names=known if len(known) == len(chosen) else (),
    )


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
    """Shape of every array of a model, by flat name; a backbone's begin with "backbone.".

    Raises:
        UserError: an unknown key or value, with its name.
    """
    shaped = {key: value for key, value in settings.items() if key not in _NO_SHAPE}
    if part == "detector":
        anchors = getattr(fill_settings(settings)[1], "anchors", None)
        if anchors is not None:  # shapes depend only on their number
            shaped["anchors"] = {"scale": 1.0, "ratios": (1.0,), "octaves": anchors.num_per_cell}
    elif part == "pyramid":
        from_dict(PyramidSettings(), settings)
    else:
        from_dict(BackboneSettings(), settings.get("backbone") or {})
    shaped["backbone"] = {
        key: value
        for key, value in (settings.get("backbone") or {}).items()
        if key not in _NO_SHAPE_OF_BACKBONE
    }
    return dict(_model_shapes(part, json.dumps(shaped, sort_keys=True), num_classes))


@functools.lru_cache(maxsize=32)  # tracing a model takes a second
def _model_shapes(part: str, settings: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    model = abstract(part, json.loads(settings), num_classes, jnp.float32)
    state = nnx.as_pure(nnx.split(model)[1])
    start = "backbone." if part == "backbone" else ""
    return {start + name: tuple(leaf.shape) for name, leaf in flatten(state).items()}


def find_folds(shapes: Shapes) -> tuple[Fold, ...]:
    """The batch norms of a file's pyramid and heads.

    Raises:
        UserError: a norm after a convolution of the pyramid has no running statistics, or its
            arrays do not fit that convolution's outputs.
    """
    folds = []
    for key, shape in shapes.items():
        module = key.removesuffix(".weight")
        if module == key or len(shape) != 1:
            continue
        for pattern, conv in _PAIRS:
            found = re.fullmatch(pattern, module)
            if not found or f"{conv.format(found[1])}.weight" not in shapes:
                continue
            fold = Fold(module, conv.format(found[1]))
            if all(name in shapes for name in fold.keys):
                outputs = shapes[f"{fold.conv}.weight"][:1]
                wrong = next((name for name in fold.keys if shapes[name] != outputs), None)
                if wrong:
                    raise UserError(
                        f"{wrong} is of shape {shapes[wrong]}, the outputs before it of {outputs}"
                    )
                folds.append(fold)
            elif not key.startswith(("bbox_head.", "rpn_head.", "roi_head.", "roi_heads.")):
                raise UserError(
                    f"{key}: a norm in the pyramid without running statistics (a group norm?), "
                    "which depends on the image; only batch norms can be folded"
                )
    return tuple(folds)


def folded_shapes(shapes: Shapes, folds: tuple[Fold, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes after folding: no norms, and a bias at each of their convolutions."""
    gone = {key for fold in folds for key in fold.keys}
    left = {key: shape for key, shape in shapes.items() if key not in gone}
    return left | {f"{fold.conv}.bias": shapes[f"{fold.norm}.bias"] for fold in folds}


def folded_arrays(
    arrays: Mapping[str, np.ndarray], folds: tuple[Fold, ...], eps: float
) -> dict[str, np.ndarray]:
    """The arrays after folding, computed in float64 and rounded once to float32."""
    left = dict(arrays)
    for fold in folds:
        scale, shift, mean, var = (np.asarray(left.pop(key), np.float64) for key in fold.keys)
        factor = scale / np.sqrt(var + eps)
        kernel = np.asarray(arrays[f"{fold.conv}.weight"], np.float64)
        own = np.asarray(arrays.get(f"{fold.conv}.bias", 0.0), np.float64)
        left[f"{fold.conv}.weight"] = (kernel * factor[:, None, None, None]).astype(np.float32)
        left[f"{fold.conv}.bias"] = ((own - mean) * factor + shift).astype(np.float32)
    return left


def folded_keys(used: Mapping[str, str], folds: tuple[Fold, ...], shapes: Shapes) -> dict[str, str]:
    """Their keys and our names, with the norms' keys in place of the biases made from them."""
    honest = {key: ours for key, ours in used.items() if key in shapes}
    for fold in folds:
        if ours := used.get(f"{fold.conv}.bias"):
            honest |= dict.fromkeys(fold.keys, ours)
    return honest
