"""The counterpart of ops/roi_align.py, sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _sample(x: Tensor, y_at: float, x_at: float) -> Tensor:
    """One bilinear sample [C] of a map [h, w, C]; 0 more than a pixel outside."""
    height, width = x.shape[:2]
    if y_at < -1 or y_at > height or x_at < -1 or x_at > width:
        return x.new_zeros(x.shape[2])
    y_at, x_at = (min(max(at, 0), size - 1) for at, size in ((y_at, height), (x_at, width)))
    y, left = int(y_at), int(x_at)
    below, right = min(y + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y_at - y, x_at - left
    top = (1 - fx) * x[y, left] + fx * x[y, right]
    bottom = (1 - fx) * x[below, left] + fx * x[below, right]
    return (1 - fy) * top + fy * bottom


def roi_align(
    x: Tensor, boxes: Tensor, scale: float, bins: int, *, samples: int = 0, aligned: bool = False
) -> Tensor:
    """Regions [R, S, S, C] of one map [h, w, C]; samples = 0 means ceil(bin side) per axis."""
    regions = []
    for box in boxes.double():
        x0, y0, x1, y1 = (box * scale - (0.5 if aligned else 0)).tolist()
        width, height = x1 - x0, y1 - y0
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        across = samples or math.ceil(width / bins)
        down = samples or math.ceil(height / bins)
        region = []
        for i in range(bins):
            for j in range(bins):
                found = [
                    _sample(
                        x,
                        y0 + (i + (k + 0.5) / down) * height / bins,
                        x0 + (j + (m + 0.5) / across) * width / bins,
                    )
                    for k in range(down)
                    for m in range(across)
                ]
                region.append(torch.stack(found).mean(0) if found else x.new_zeros(x.shape[2]))
        regions.append(torch.stack(region).reshape(bins, bins, -1))
    return torch.stack(regions) if regions else x.new_zeros(0, bins, bins, x.shape[2])
