"""The counterpart of distill/baselines/crosskd.py, with one anchor per level."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference import detection
from crosscheck.reference.layers import Parameters, linear, pixel_mask, sub


def _aligned(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """A map with the channel statistics of another, 0 outside the images."""
    inside, like = s[mask], t[mask]
    out = torch.zeros_like(t)
    out[mask] = (inside - inside.mean(0)) / (inside.std(0) + 1e-6) * like.std(0) + like.mean(0)
    return out


def _head(c: dict[str, Tensor], branch: str, x: Tensor) -> Tensor:
    """Applies the teacher's last convolution and output layer: [B, h, w, outputs]."""
    x = x.movedim(-1, 1)
    for layer in ("last", "output"):
        kernel = c[f"{branch}.{layer}.kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x.relu(), kernel, c[f"{branch}.{layer}.bias"], padding=1)
    return x.movedim(1, -1)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes, row by row."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    common = area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    around = area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - common
    return common / union - (around - union) / around


def crosskd(
    settings: dict[str, Any], x: dict[str, Tensor], p: Parameters, c: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The loss over all levels."""
    p = sub(p, "map_terms.crosskd")
    like = x["s_classes0"]
    classes, boxes, weights = (like.new_zeros(()) for _ in range(3))
    for i, stride in enumerate(settings["strides"]):
        answers = []
        for j, branch in enumerate(("classes", "boxes")):
            s, t = x[f"s_{branch}{i}"], x[f"t_{branch}{i}"].detach()
            mask = pixel_mask(c["sizes"], c["image_valid"], stride, tuple(t.shape[1:3]))
            f = sub(p, f"adaptation.{j}")
            crossed = _aligned(linear(f, s) if f else s, t, mask)
            outputs = 5 if branch == "classes" else 4
            answers += [
                _head(c, branch, side)[mask].reshape(-1, outputs)
                for side in (crossed, t * mask[..., None])
            ]
        found, sure, deltas, towards = answers
        soft = sure.sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(found, soft, reduction="none")
        classes = classes + ((found.sigmoid() - soft).abs() * entropy).sum()
        side = 4.0 * stride
        anchors = like.new_tensor([3 - side, 5, 3 + side, 5 + side]).expand_as(deltas)
        coded = like.new_ones(4), math.log(1000 / 16), True
        a, b = (detection.decode(anchors, y, *coded) for y in (deltas, towards))
        weight = soft.max(1).values
        boxes = boxes + (weight * (1 - _giou(a, b))).sum()
        weights = weights + weight.sum()
    return {"crosskd": (classes + settings["config"]["box"] * boxes) / weights}
