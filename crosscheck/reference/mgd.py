"""The counterpart of distill/baselines/mgd.py, with given masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference.layers import Parameters, sub


def _generated(x: Tensor, p: Parameters) -> Tensor:
    """Two 3x3 convolutions of a map [h, w, C], zero-padded, with a ReLU between."""
    y = x.permute(2, 0, 1)[None]
    kernels = (p[name].permute(3, 2, 0, 1) for name in ("first", "second"))
    y = functional.conv2d(y, next(kernels), p["first_bias"], padding=1)
    y = functional.conv2d(torch.relu(y), next(kernels), p["second_bias"], padding=1)
    return y[0].permute(1, 2, 0)


def mgd(images: list[Any], config: dict[str, Any], p: Parameters, level: int) -> Tensor:
    """Squared distance of the map generated from the masked one to the teacher's, per image."""
    p = sub(p, f"generation.{level}")
    made = [_generated(one.s * one.kept[..., None], p) for one in images]
    sums = [((y - one.t) ** 2).sum() for y, one in zip(made, images, strict=True)]
    return torch.stack(sums).mean()
