"""The models that a file of weights can fill: built without values, for their names and shapes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drkd_jax import models
from drkd_jax.models.build import fill_settings
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.filling import from_dict
from drkd_jax.models.resnet import ResNet
from drkd_jax.models.settings import BackboneSettings, PyramidSettings

# Settings that no array's shape depends on: files that differ in them share a traced model.
_NO_SHAPE = (
    *("test", "proposals", "sampler", "extra_relu", "delta_stds"),
    *("roi_stds", "roi_aligned", "roi_sampling", "roi_max_level", "class_ids"),
)
_NO_SHAPE_OF_BACKBONE = ("eps", "style", "pool", "frozen_stages")


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
        if anchors is not None:  # only their number shows in a shape
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
    return {
        start + jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
