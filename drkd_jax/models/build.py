"""Builds a detector from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx

from drkd_jax.errors import UserError
from drkd_jax.models.cascade_rcnn import CascadeRCNN
from drkd_jax.models.conventions import LIBRARY_SETTINGS
from drkd_jax.models.detector import Detector
from drkd_jax.models.faster_rcnn import FasterRCNN
from drkd_jax.models.filling import from_dict
from drkd_jax.models.retinanet import RetinaNet
from drkd_jax.models.settings import (
    CascadeRCNNSettings,
    FasterRCNNSettings,
    PyramidSettings,
    RetinaNetSettings,
)
from drkd_jax.values import typed

DETECTORS: Mapping[str, tuple[type[Detector], PyramidSettings]] = MappingProxyType(
    {
        "retinanet": (RetinaNet, RetinaNetSettings()),
        "faster_rcnn": (FasterRCNN, FasterRCNNSettings()),
        "cascade_rcnn": (CascadeRCNN, CascadeRCNNSettings()),
    }
)


def build_detector(
    settings: Mapping[str, Any], num_classes: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
) -> Detector:
    """Build a detector.

    Call it outside `jax.jit`: initial values are drawn on the host (`models.initializers`).

    Args:
        settings: plain nested values; ``detector`` names the class, every other key belongs to its
            settings dataclass (`drkd_jax.models.settings`), which holds the defaults. Some defaults
            depend on the library's ``convention`` (`conventions.LIBRARY_SETTINGS`).
        num_classes: classes without the background.
        rngs: random numbers for the initial values.
        dtype: of the computation; parameters are float32.

    Raises:
        UserError: a detector or key is unknown, or a value out of range; the message names it.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a detector needs at least one class")
    make, filled = fill_settings(settings)
    return make(filled, num_classes, rngs=rngs, dtype=jnp.dtype(dtype))


def fill_settings(settings: Mapping[str, Any]) -> tuple[type[Detector], PyramidSettings]:
    """The class of a detector and its settings with every default filled in; builds nothing.

    Args:
        settings: see `build_detector`.

    Raises:
        UserError: a detector or key is unknown, or a value out of range; the message names it.
    """
    values = dict(settings)
    name = typed("detector", values.pop("detector", None), str | None)
    if name not in DETECTORS:
        raise UserError(f"detector is {name!r}; known: {', '.join(DETECTORS)}")
    make, default = DETECTORS[name]
    own = LIBRARY_SETTINGS.get((str(values.get("convention")), name), {})
    return make, from_dict(from_dict(default, own), values)


def abstract_detector(
    settings: Mapping[str, Any], num_classes: int, *, dtype: Any = jnp.float32
) -> Detector:
    """Build a detector whose variables have shapes and dtypes but no values; computes nothing.

    Raises:
        UserError: as `build_detector`.
    """
    return nnx.eval_shape(
        lambda: build_detector(settings, num_classes, rngs=nnx.Rngs(0), dtype=dtype)
    )


def init_detector(
    settings: Mapping[str, Any], num_classes: int, seed: int, dtype: Any = jnp.float32
) -> Detector:
    """Build a detector from a seed alone.

    Args:
        settings: see `build_detector`.
        num_classes: classes without the background.
        seed: determines every initial value, equally on every backend.
        dtype: of the computation; parameters are float32.

    Raises:
        UserError: as `build_detector`.
    """
    return build_detector(settings, num_classes, rngs=nnx.Rngs(seed), dtype=dtype)
