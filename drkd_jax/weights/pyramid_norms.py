"""Batch norms behind the convolutions of a pyramid, folded into them while a file is read.

The pyramids built here have no norms. A batch norm with its running statistics is one factor and
one shift a channel, so the convolution before it takes it over exactly; a group norm depends on
the picture and cannot be folded.

Letters: O outputs of a convolution, as torch lays it out (O, I, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.weights.resnet_names import Shapes

_LEAVES = ("weight", "bias", "running_mean", "running_var")
# The module of a norm, and that of the convolution before it.
_PAIRS = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.1", "{0}.0"),  # torchvision's "v2"
    (r"((?:neck|bbox_head|rpn_head)\..+)\.(?:bn|gn)", "{0}.conv"),  # mmdetection
    (r"(backbone\.fpn_(?:lateral|output)\d)\.norm", "{0}"),  # Detectron2
)


class Fold(NamedTuple):
    """Modules of a batch norm and of the convolution that takes it over."""

    norm: str
    conv: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of the norm."""
        return tuple(f"{self.norm}.{leaf}" for leaf in _LEAVES)


def find_folds(shapes: Shapes) -> tuple[Fold, ...]:
    """The batch norms of a file's pyramid and dense head.

    Raises:
        UserError: a norm without running statistics behind a convolution of the pyramid.
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
                folds.append(fold)
            elif not key.startswith("bbox_head."):
                raise UserError(
                    f"{key}: a norm in the pyramid without running statistics (a group norm?), "
                    "which depends on the picture; only batch norms can be folded"
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
    """The arrays after folding, in float64 until one rounding to float32."""
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
    """Their keys and our names, with the norms' keys in the place of the biases made of them."""
    honest = {key: ours for key, ours in used.items() if key in shapes}
    for fold in folds:
        if ours := used.get(f"{fold.conv}.bias"):
            honest |= dict.fromkeys(fold.keys, ours)
    return honest
