"""The counterpart of distill/instance_feature.py."""

from __future__ import annotations

import torch
from torch import Tensor

from crosscheck.reference.layers import Parameters, linear, sub


def instance_feature(
    parameters: Parameters,
    student: list[Tensor],
    teacher: list[Tensor],
    valid: Tensor,
    *,
    form: str,
    groups: int = 1,
) -> Tensor:
    """L_INS of regions [B, n, S, S, C] per level."""
    total = torch.zeros((), dtype=student[0].dtype)
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        difference = t - linear(sub(parameters, f"adaptation.{level}"), s)
        if form == "paper":
            if valid.any():
                total = total + (difference[valid] ** 2).mean() / len(student)
        else:
            for off, there in zip(difference, valid, strict=True):
                if there.any():
                    total = total + torch.linalg.norm(off[there]) / groups
    return total
