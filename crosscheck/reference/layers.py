"""The counterpart of distill/layers.py: linear maps by name, and masks.

Parameters are a flat dict, "student.0.state.kernel" and so on, with kernels inputs x outputs as on
the JAX side.
"""

from __future__ import annotations

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def sub(parameters: Parameters, prefix: str) -> Parameters:
    """The parameters under a prefix, by name without it."""
    start = prefix + "."
    return {name[len(start) :]: p for name, p in parameters.items() if name.startswith(start)}


def linear(parameters: Parameters, x: Tensor) -> Tensor:
    """The map x W + b over the last axis."""
    y = x @ parameters["kernel"]
    return y + parameters["bias"] if "bias" in parameters else y


def pixel_mask(sizes: Tensor, valid: Tensor, stride: int, shape: tuple[int, int]) -> Tensor:
    """Mask [B, h, w] of the map pixels whose first canvas pixel lies in the image."""
    rows = torch.arange(shape[0])[None] * stride < sizes[:, :1]
    columns = torch.arange(shape[1])[None] * stride < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :] & valid[:, None, None]
