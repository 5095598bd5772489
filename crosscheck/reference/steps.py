"""Optimiser steps of a small distillation: a student of three convolutions, and all terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference.distiller import distill
from crosscheck.reference.layers import sub


def student_maps(p: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Maps of strides 4 and 8 from images [B, H, W, 3]; kernels are height, width, in, out."""
    x = images.permute(0, 3, 1, 2)
    maps = []
    for i in range(3):
        kernel = p[f"conv{i}.kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, p[f"conv{i}.bias"], stride=2, padding=1)
        maps.append(x.permute(0, 2, 3, 1))
        x = torch.relu(x)
    return maps[1:]


def optimiser_steps(
    settings: dict[str, Any],
    x: dict[str, Tensor],
    p: dict[str, Tensor],
    c: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The total loss at each step, and all parameters after the last."""
    p = {name: value.detach().clone().requires_grad_() for name, value in p.items()}
    optimiser = torch.optim.SGD(
        list(p.values()),
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    out = {}
    for step in range(settings["steps"]):
        maps = student_maps(sub(p, "student"), c["images"][step])
        given = {f"s{i}": value for i, value in enumerate(maps)}
        given |= {f"t{i}": c[f"t{i}"][step] for i in range(2)}
        losses = distill(settings, given, sub(p, "distiller"), c)
        logits = maps[0] @ p["student.head"]
        total = ((torch.sigmoid(logits) - c["positive"].to(logits.dtype)) ** 2).mean()
        for name, weight in settings["weights"].items():
            total = total + weight * losses[name]
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        out[f"loss {step + 1}"] = total.detach()
    return out | {f"after {name}": value.detach() for name, value in p.items()}
