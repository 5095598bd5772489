"""The counterpart of losses.py, boxes.py and anchors.py: the detectors' own formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def focal(logits: Tensor, positive: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sigmoid focal loss of each logit, as it is defined."""
    toward = torch.where(positive, logits, -logits)  # p_t is its sigmoid
    alpha_t = torch.where(positive, alpha, 1 - alpha)
    return -alpha_t * torch.sigmoid(-toward) ** gamma * logsigmoid(toward)


def encode(anchors: Tensor, boxes: Tensor, stds: Tensor) -> Tensor:
    """R-CNN's box deltas."""
    wa, ha = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    wb, hb = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    dx = ((boxes[:, 0] + boxes[:, 2]) - (anchors[:, 0] + anchors[:, 2])) / 2 / wa
    dy = ((boxes[:, 1] + boxes[:, 3]) - (anchors[:, 1] + anchors[:, 3])) / 2 / ha
    return torch.stack([dx, dy, torch.log(wb / wa), torch.log(hb / ha)], 1) / stds


def decode(
    anchors: Tensor, deltas: Tensor, stds: Tensor, max_log: float, clamp_below: bool
) -> Tensor:
    """Boxes from anchors and deltas."""
    dx, dy, dw, dh = (deltas * stds).unbind(1)
    low = -max_log if clamp_below else None
    wa, ha = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    cx = (anchors[:, 0] + anchors[:, 2]) / 2 + dx * wa
    cy = (anchors[:, 1] + anchors[:, 3]) / 2 + dy * ha
    w, h = (torch.exp(d.clamp(low, max_log)) * side for d, side in ((dw, wa), (dh, ha)))
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)


def anchors(
    size: float, ratios: list[float], scales: list[float], shape: tuple[int, int], stride: int
) -> Tensor:
    """All anchors of a map, centred at multiples of the stride; order: y, x, ratio, scale."""
    rows = []
    for y in range(shape[0]):
        for x in range(shape[1]):
            for ratio in ratios:
                for scale in scales:
                    w, h = size * scale / ratio**0.5, size * scale * ratio**0.5
                    cx, cy = x * stride, y * stride
                    rows.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(rows, dtype=torch.float64)
