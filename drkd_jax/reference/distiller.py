"""The counterpart of distill/distiller.py: all terms over two pyramids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drkd_jax.reference.instance_feature import instance_feature
from drkd_jax.reference.instance_relation import instance_relation
from drkd_jax.reference.layers import pixel_mask, sub
from drkd_jax.reference.pixel_relation import pixel_relation
from drkd_jax.reference.roi_align_adaptive import roi_align


def _regions(x: Tensor, boxes: Tensor, valid: Tensor, stride: int) -> Tensor:
    """[B, G, 3, 3, C]; zeros for boxes that are not there."""
    out = x.new_zeros(*boxes.shape[:2], 3, 3, x.shape[-1])
    for i, (picture, rows, there) in enumerate(zip(x, boxes, valid, strict=True)):
        out[i, there] = roi_align(picture, rows[there], 1 / stride, 3)
    return out


def distill(
    settings: dict[str, Any],
    x: dict[str, Tensor],
    p: dict[str, Tensor],
    c: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The losses before their weights.

    Args:
        settings: "form", "terms" (names), "filter", "normalize", "groups" and the common
            "strides"; levels are in order and paired already.
        x: maps "s0", "s1".. of the student and "t0", "t1".. of the teacher.
        p: parameters by their flat names.
        c: "sizes", "boxes", "valid", "picture_valid".
    """
    strides, form, groups = settings["strides"], settings["form"], settings["groups"]
    maps = [[x[f"{side}{i}"] for i in range(len(strides))] for side in "st"]
    losses = {}
    if "pixel_relation" in settings["terms"]:
        masks = []
        for stride, s in zip(strides, maps[0], strict=True):
            sizes = c["sizes"] if form == "paper" else torch.full_like(c["sizes"], 10**6)
            masks.append(pixel_mask(sizes, c["picture_valid"], stride, tuple(s.shape[1:3])))
        losses["pixel_relation"] = pixel_relation(
            sub(p, "pixel_relation"),
            *maps,
            masks,
            form=form,
            normalize=settings["normalize"],
            groups=groups,
        )
    if not {"instance_relation", "instance_feature"} & set(settings["terms"]):
        return losses
    valid = c["valid"] & c["picture_valid"][:, None]
    regions = [
        [
            _regions(level, c["boxes"], valid, stride)
            for level, stride in zip(side[:2], strides[:2], strict=True)
        ]
        for side in maps
    ]
    if "instance_relation" in settings["terms"]:
        losses["instance_relation"] = instance_relation(
            sub(p, "instance_relation"),
            *regions,
            valid,
            form=form,
            filter_kind=settings["filter"],
            groups=groups,
        )
    if "instance_feature" in settings["terms"]:
        losses["instance_feature"] = instance_feature(
            sub(p, "instance_feature"), *regions, valid, form=form, groups=groups
        )
    return losses
