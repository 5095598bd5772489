"""Dual relation knowledge distillation (DRKD) for object detectors in JAX and Flax.

What a training loop of your own needs is here; docs/your-own-loop.md has it in ten lines:

    distiller = drkd_jax.Distiller(drkd_jax.DistillConfig(), student=spec, teacher=spec, rngs=rngs)
    out = distiller(student_maps, teacher_maps, boxes, valid, sizes)
    loss = detection_loss + out.total
"""

from drkd_jax.distill.config import (
    DistillConfig,
    InstanceFeatureConfig,
    InstanceRelationConfig,
    PixelRelationConfig,
)
from drkd_jax.distill.distiller import Distiller, DistillOutput
from drkd_jax.types import FeatureSpec

__version__ = "0.1.0"

__all__ = [
    "DistillConfig",
    "DistillOutput",
    "Distiller",
    "FeatureSpec",
    "InstanceFeatureConfig",
    "InstanceRelationConfig",
    "PixelRelationConfig",
    "__version__",
]
