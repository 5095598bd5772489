"""The counterpart of distill/instance_relation.py, image by image without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosscheck.reference.layers import Parameters, linear, sub
from crosscheck.reference.relation_filter import relation_filter

COSINE_EPS = 1e-6


def similarity(parameters: Parameters, x: Tensor, settings: dict[str, Any]) -> Tensor:
    """Similarities [n, n] of boxes x [n, D], before filter and softmax."""
    kind = settings["similarity"]
    if kind == "bilinear":
        return linear(sub(parameters, "first"), x) @ linear(sub(parameters, "second"), x).T
    if kind == "embedded":
        g = linear(sub(parameters, "first"), x)
        return g @ g.T / g.shape[1] ** 0.5 / settings["temperature"]
    off = x - x.mean(0)
    unit = off / torch.sqrt((off * off).sum(1, keepdim=True) + COSINE_EPS * x.shape[1])
    return unit @ unit.T / settings["temperature"]


def relation(parameters: Parameters, x: Tensor, settings: dict[str, Any]) -> Tensor:
    """Relation matrix psi [n, n] of boxes x [n, D]; zeros where a box has no other to attend to."""
    logits = similarity(parameters, x, settings)
    if settings["filter"] != "none":
        w = relation_filter(sub(parameters, "filter"), x, settings["filter"])
        logits = logits * (w if settings["similarity"] == "bilinear" else w * len(x))
    if _has_diagonal(settings):
        return torch.softmax(logits, dim=-1)
    if len(x) == 1:
        return torch.zeros_like(logits)
    itself = torch.eye(len(x), dtype=torch.bool)
    return torch.softmax(logits.masked_fill(itself, float("-inf")), dim=-1)


def _has_diagonal(settings: dict[str, Any]) -> bool:
    return settings["similarity"] == "bilinear" or bool(settings["diagonal"])


def enhance(parameters: Parameters, x: Tensor, psi: Tensor) -> Tensor:
    """Enhanced instances z = x + W(psi g(x))."""
    return x + linear(sub(parameters, "back"), psi @ linear(sub(parameters, "value"), x))


def instance_relation(
    parameters: Parameters,
    student: list[Tensor],
    teacher: list[Tensor],
    valid: Tensor,
    *,
    settings: dict[str, Any],
) -> Tensor:
    """L_IR of regions [B, n, S, S, C] per level."""
    form, groups = settings["form"], settings["groups"]
    choice = 2 if _has_diagonal(settings) else 3
    total = torch.zeros((), dtype=student[0].dtype)
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        images = []
        for x_s, x_t, there in zip(s, t, valid, strict=True):
            x_s, x_t = x_s[there], x_t[there]
            if not len(x_s):
                continue
            of_s, of_t = (sub(parameters, f"{side}.{level}") for side in ("student", "teacher"))
            psi_s = relation(of_s, x_s.flatten(1), settings)
            psi_t = relation(of_t, x_t.flatten(1), settings)
            if form == "paper":
                if len(x_s) >= choice:
                    images.append(((psi_t - psi_s) ** 2).sum(1).mean())
            else:
                z_s = enhance(of_s, x_s.flatten(1), psi_s).reshape(x_s.shape)
                z_t = enhance(of_t, x_t.flatten(1), psi_t).reshape(x_t.shape)
                mapped = linear(sub(parameters, f"adaptation.{level}"), z_s)
                images.append(torch.linalg.norm(z_t - mapped))
        if images:
            summed = torch.stack(images).sum()
            divisor = groups if form == "official" else len(images) * len(student)
            total = total + summed / divisor
    return total
