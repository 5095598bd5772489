"""The counterpart of distill/instance_relation.py, picture by picture without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from drkd_jax.reference.layers import Parameters, linear, sub
from drkd_jax.reference.relation_filter import relation_filter


def relation(parameters: Parameters, x: Tensor, filter_kind: str) -> Tensor:
    """Relation matrix psi [n, n] of boxes x [n, D]."""
    logits = linear(sub(parameters, "first"), x) @ linear(sub(parameters, "second"), x).T
    if filter_kind != "none":
        logits = logits * relation_filter(sub(parameters, "filter"), x, filter_kind)
    return torch.softmax(logits, dim=-1)


def enhance(parameters: Parameters, x: Tensor, psi: Tensor) -> Tensor:
    """Enhanced instances z = x + W(psi g(x))."""
    return x + linear(sub(parameters, "back"), psi @ linear(sub(parameters, "value"), x))


def instance_relation(
    parameters: Parameters,
    student: list[Tensor],
    teacher: list[Tensor],
    valid: Tensor,
    *,
    form: str,
    filter_kind: str,
    groups: int = 1,
) -> Tensor:
    """L_IR of regions [B, n, S, S, C] a level."""
    total = torch.zeros((), dtype=student[0].dtype)
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        pictures = []
        for x_s, x_t, there in zip(s, t, valid, strict=True):
            x_s, x_t = x_s[there], x_t[there]
            if not len(x_s):
                continue
            of_s, of_t = (sub(parameters, f"{side}.{level}") for side in ("student", "teacher"))
            psi_s = relation(of_s, x_s.flatten(1), filter_kind)
            psi_t = relation(of_t, x_t.flatten(1), filter_kind)
            if form == "paper":
                if len(x_s) >= 2:
                    pictures.append(((psi_t - psi_s) ** 2).sum(1).mean())
            else:
                z_s = enhance(of_s, x_s.flatten(1), psi_s).reshape(x_s.shape)
                z_t = enhance(of_t, x_t.flatten(1), psi_t).reshape(x_t.shape)
                mapped = linear(sub(parameters, f"adaptation.{level}"), z_s)
                pictures.append(torch.linalg.norm(z_t - mapped))
        if pictures:
            summed = torch.stack(pictures).sum()
            divisor = groups if form == "official" else len(pictures) * len(student)
            total = total + summed / divisor
    return total
