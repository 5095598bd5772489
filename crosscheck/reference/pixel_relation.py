"""The counterpart of distill/pixel_relation.py."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crosscheck.reference.graph_unit import graph_unit
from crosscheck.reference.layers import Parameters, linear, sub


def standardized(x: Tensor, mask: Tensor) -> Tensor:
    """[B, P, C]: per image and channel, minus the mean, over the root of variance + 1e-4."""
    out = torch.zeros_like(x)
    for i, inside in enumerate(mask):
        if inside.any():
            pixels = x[i, inside]
            off = pixels - pixels.mean(0)
            out[i, inside] = off / ((off**2).mean(0) + 1e-4).sqrt()
    return out


def pixel_relation(
    parameters: Parameters,
    student: list[Tensor],
    teacher: list[Tensor],
    masks: list[Tensor],
    *,
    form: str,
    compare: str,
    normalize: bool,
    groups: int = 1,
) -> Tensor:
    """L_PR of maps [B, h, w, C], with batch statistics; the teacher has its own unit."""
    total = torch.zeros((), dtype=student[0].dtype)
    for level, (s, t, mask) in enumerate(zip(student, teacher, masks, strict=True)):
        inside = mask.flatten(1)
        unit = partial(graph_unit, normalize=normalize, train=True, groups=groups)
        phi_s, _ = unit(sub(parameters, f"student.{level}"), s.flatten(1, 2), inside)
        phi_t, _ = unit(sub(parameters, f"teacher.{level}"), t.flatten(1, 2), inside)
        phi_s = linear(sub(parameters, f"adaptation.{level}"), phi_s)
        if compare == "correlation":
            phi_s, phi_t = (standardized(x, inside) for x in (phi_s, phi_t))
        difference = phi_t - phi_s
        if form == "paper":
            total = total + (difference[inside] ** 2).mean() / len(student)
        else:
            each = len(s) // groups
            for first in range(0, len(s), each):
                part = slice(first, first + each)
                total = total + torch.linalg.norm(difference[part][inside[part]]) / groups
    return total
