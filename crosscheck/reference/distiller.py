"""The counterpart of distill/distiller.py: all terms over two pyramids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosscheck.reference.instance_feature import instance_feature
from crosscheck.reference.instance_relation import instance_relation
from crosscheck.reference.layers import pixel_mask, sub
from crosscheck.reference.pixel_relation import pixel_relation
from crosscheck.reference.roi_align_adaptive import roi_align


def _regions(x: Tensor, boxes: Tensor, valid: Tensor, stride: int, sizes: Tensor | None) -> Tensor:
    """Regions [B, G, 3, 3, C]; 0 for invalid boxes. With sizes, padding is cut off first."""
    out = x.new_zeros(*boxes.shape[:2], 3, 3, x.shape[-1])
    for i, (image, rows, there) in enumerate(zip(x, boxes, valid, strict=True)):
        if sizes is not None:
            height, width = (-(-int(side) // stride) for side in sizes[i])
            image = image[:height, :width]
        out[i, there] = roi_align(image, rows[there], 1 / stride, 3)
    return out


def standardized(x: Tensor, mask: Tensor) -> Tensor:
    """A map divided by the deviation of its valid pixels from the channel means."""
    inside = x[mask].detach()
    return x / ((inside - inside.mean(0)) ** 2).mean().sqrt()


def distill(
    settings: dict[str, Any],
    x: dict[str, Tensor],
    p: dict[str, Tensor],
    c: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The unweighted losses.

    Args:
        settings: "form", "terms" (names), "compare", "filter", "normalize", "groups",
            "standardize", "similarity" with its parameters, and the common "strides"; levels are
            already paired and in order.
        x: maps "s0", "s1" and so on of the student, "t0", "t1" and so on of the teacher.
        p: parameters by flat name.
        c: "sizes", "boxes", "valid", "image_valid".
    """
    strides, form, groups = settings["strides"], settings["form"], settings["groups"]
    levels = range(len(strides))
    students = [x[f"s{i}"] for i in levels]
    teachers = [x[f"t{i}"].detach() for i in levels]  # no gradient passes to its maps
    if settings["standardize"]:
        teachers = [
            standardized(t, pixel_mask(c["sizes"], c["image_valid"], stride, tuple(t.shape[1:3])))
            for stride, t in zip(strides, teachers, strict=True)
        ]
    losses = {}
    if "pixel_relation" in settings["terms"]:
        masks = []
        for stride, s in zip(strides, students, strict=True):
            sizes = c["sizes"] if form == "paper" else torch.full_like(c["sizes"], 10**6)
            masks.append(pixel_mask(sizes, c["image_valid"], stride, tuple(s.shape[1:3])))
        losses["pixel_relation"] = pixel_relation(
            sub(p, "pixel_relation"),
            students,
            teachers,
            masks,
            form=form,
            compare=settings["compare"],
            normalize=settings["normalize"],
            groups=groups,
        )
    if not {"instance_relation", "instance_feature"} & set(settings["terms"]):
        return losses
    valid = c["valid"] & c["image_valid"][:, None]
    sizes = c["sizes"] if form == "paper" else None
    cut_s, cut_t = (
        [
            _regions(level, c["boxes"], valid, stride, sizes)
            for level, stride in zip(side[:2], strides[:2], strict=True)
        ]
        for side in (students, teachers)
    )
    if "instance_relation" in settings["terms"]:
        losses["instance_relation"] = instance_relation(
            sub(p, "instance_relation"),
            cut_s,
            cut_t,
            valid,
            settings=settings,
        )
    if "instance_feature" in settings["terms"]:
        losses["instance_feature"] = instance_feature(
            sub(p, "instance_feature"), cut_s, cut_t, valid, form=form, groups=groups
        )
    return losses
