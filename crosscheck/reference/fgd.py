"""The counterpart of distill/baselines/fgd.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference.layers import Parameters, linear, sub


def _attention(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention over pixels [h, w] and over channels [C], each with mean 1."""
    over_channels, over_pixels = x.abs().mean(2), x.abs().mean((0, 1))
    pixels = torch.softmax(over_channels.flatten() / temperature, 0) * over_channels.numel()
    channels = torch.softmax(over_pixels / temperature, 0) * len(over_pixels)
    return pixels.view_as(over_channels), channels


def _focal_masks(boxes: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of objects and background, drawn box by box."""
    objects = torch.zeros_like(like)
    for x1, y1, x2, y2 in boxes.tolist():
        left, top, right, bottom = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
        area = (right + 1 - left) * (bottom + 1 - top)
        part = objects[top : bottom + 1, left : right + 1]
        part.copy_(part.clamp(min=1 / area))
    background = (objects == 0).to(like.dtype)
    return objects, background / max(float(background.sum()), 1.0)


def _with_context(x: Tensor, p: Parameters) -> Tensor:
    """Adds the output of the global context block."""
    flat = x.flatten(0, 1)
    context = torch.softmax(flat @ p["pool"], 0) @ flat
    hidden = linear(sub(p, "first"), context)
    hidden = functional.layer_norm(hidden, hidden.shape, p["scale"], p["offset"], 1e-5)
    return x + torch.relu(hidden) @ p["last"] + p["bias"]


def fgd(images: list[Any], config: dict[str, Any], p: Parameters, level: int) -> Tensor:
    """Sum of the object, background, attention and relation losses; mean over images."""
    parts = []
    for one in images:
        pixels_s, channels_s = _attention(one.s, config["temperature"])
        pixels_t, channels_t = _attention(one.t, config["temperature"])
        objects, background = _focal_masks(one.boxes, pixels_t)
        focal = (((one.t - one.s) ** 2) * channels_t).sum(2) * pixels_t
        apart = (pixels_t - pixels_s).abs().sum() + (channels_t - channels_s).abs().sum()
        student = _with_context(one.s, sub(p, f"student.{level}"))
        teacher = _with_context(one.t, sub(p, f"teacher.{level}"))
        parts.append(
            (focal * objects).sum()
            + config["background"] * (focal * background).sum()
            + config["attention"] * apart
            + config["relation"] * ((teacher - student) ** 2).sum()
        )
    return torch.stack(parts).mean()
