"""Dual relation knowledge distillation (DRKD) for object detectors in JAX and Flax.

This module exports what your own training loop needs; docs/your-own-loop.md shows it in ten lines:

    distiller = drkd_jax.Distiller(drkd_jax.DistillConfig(), student=spec, teacher=spec, rngs=rngs)
    out = distiller(student_maps, teacher_maps, boxes, valid, sizes)
    loss = detection_loss + out.total
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drkd_jax.distill.config import (
        DistillConfig,
        InstanceFeatureConfig,
        InstanceRelationConfig,
        PixelRelationConfig,
    )
    from drkd_jax.distill.distiller import Distiller, DistillOutput
    from drkd_jax.types import FeatureSpec, Responses

__version__ = "0.1.0"

__all__ = [
    "DistillConfig",
    "DistillOutput",
    "Distiller",
    "FeatureSpec",
    "InstanceFeatureConfig",
    "InstanceRelationConfig",
    "PixelRelationConfig",
    "Responses",
    "__version__",
]

_OF_CONFIG = ("DistillConfig", "InstanceFeatureConfig", "InstanceRelationConfig")
_PLACES = {
    **dict.fromkeys((*_OF_CONFIG, "PixelRelationConfig"), "drkd_jax.distill.config"),
    **dict.fromkeys(("Distiller", "DistillOutput"), "drkd_jax.distill.distiller"),
    **dict.fromkeys(("FeatureSpec", "Responses"), "drkd_jax.types"),
}


def __getattr__(name: str) -> Any:
    """Imports names on demand, so that programs can handle Ctrl-C before JAX's slow import."""
    if name not in _PLACES:
        raise AttributeError(f"module 'drkd_jax' has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found
