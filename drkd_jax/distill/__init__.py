"""Dual relation knowledge distillation: each term of the loss has its own file."""

from drkd_jax.distill.config import (
    DistillConfig,
    InstanceFeatureConfig,
    InstanceRelationConfig,
    PixelRelationConfig,
    distill_config,
)
from drkd_jax.distill.distiller import (
    Distiller,
    DistillOutput,
    relation_features,
    relation_matrix,
)
from drkd_jax.distill.pairing import LevelPair, pair_levels

__all__ = [
    "DistillConfig",
    "DistillOutput",
    "Distiller",
    "InstanceFeatureConfig",
    "InstanceRelationConfig",
    "LevelPair",
    "PixelRelationConfig",
    "distill_config",
    "pair_levels",
    "relation_features",
    "relation_matrix",
]
