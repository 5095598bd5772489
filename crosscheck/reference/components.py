"""The components of the reference that `crosscheck` runs, one function each.

Each takes plain settings and tensors (differentiable inputs `x`, parameters `p`, constants `c`)
and returns named outputs. The JAX side has functions of the same names (crosscheck/ours.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference import detection
from crosscheck.reference.crosskd import crosskd
from crosscheck.reference.distiller import distill
from crosscheck.reference.graph_unit import graph_unit
from crosscheck.reference.instance_relation import relation
from crosscheck.reference.map_terms import map_term
from crosscheck.reference.relation_filter import relation_filter
from crosscheck.reference.roi_align_adaptive import roi_align
from crosscheck.reference.steps import optimiser_steps

Tensors = dict[str, Tensor]
Component = Callable[[dict[str, Any], Tensors, Tensors, Tensors], Tensors]


def unit(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """The graph unit with batch or running statistics."""
    running = c["running_mean"], c["running_variance"]
    phi, moved = graph_unit(
        p,
        x["x"].flatten(1, 2),
        c["mask"].flatten(1),
        normalize=settings["normalize"],
        train=settings["train"],
        groups=settings["groups"],
        running=running,
    )
    assert moved is not None
    phi = torch.where(c["mask"].flatten(1)[..., None], phi, 0)
    return {"phi": phi, "running_mean": moved[0], "running_variance": moved[1]}


def filter_(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """The relation filter of one image's boxes."""
    return {"w": relation_filter(p, x["x"], settings["filter"])}


def matrix(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """The relation matrix of one image's boxes."""
    return {"psi": relation(p, x["x"], settings)}


def regions(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """The regions of boxes, cut out of a map."""
    cut = [
        roi_align(
            image,
            boxes,
            1 / settings["stride"],
            settings["bins"],
            samples=settings["samples"],
            aligned=settings["aligned"],
        )
        for image, boxes in zip(x["x"], c["boxes"], strict=True)
    ]
    return {"regions": torch.stack(cut)}


def terms(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """The losses of a distiller that the settings select."""
    return distill(settings, x, p, c)


def detection_losses(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """Focal loss, cross-entropies, L1 and smooth L1."""
    hot = functional.one_hot(c["labels"], x["logits"].shape[1]).bool()
    return {
        "focal": detection.focal(x["logits"], hot),
        "binary_cross_entropy": functional.binary_cross_entropy_with_logits(
            x["logits"], hot.to(x["logits"].dtype), reduction="none"
        ),
        "cross_entropy": functional.cross_entropy(x["logits"], c["labels"], reduction="none"),
        "l1": functional.l1_loss(x["boxes"], c["boxes"], reduction="none").sum(1),
        **{
            f"smooth_l1_{i}": functional.smooth_l1_loss(
                x["boxes"], c["boxes"], reduction="none", beta=beta
            ).sum(1)
            for i, beta in enumerate(settings["betas"])
        },
    }


def box_coding(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """Boxes encoded as deltas, and deltas decoded to boxes."""
    stds = x["boxes"].new_tensor(settings["stds"])
    limits = settings["max_log"], settings["clamp_below"]
    return {
        "encode": detection.encode(c["anchors"], x["boxes"], stds),
        "decode": detection.decode(c["anchors"], x["deltas"], stds, *limits),
    }


def anchors(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
    """All anchors of a map."""
    return {"anchors": detection.anchors(**settings)}


COMPONENTS: dict[str, Component] = {
    "unit": unit,
    "filter": filter_,
    "matrix": matrix,
    "regions": regions,
    "terms": terms,
    "map_term": map_term,
    "crosskd": crosskd,
    "detection_losses": detection_losses,
    "box_coding": box_coding,
    "anchors": anchors,
    "optimiser_steps": optimiser_steps,
}
