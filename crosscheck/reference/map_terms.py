"""The counterpart of distill/baselines/map_term.py, with the padding cut off each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crosscheck.reference.cwd import cwd
from crosscheck.reference.distiller import standardized
from crosscheck.reference.feature_imitation import feature_imitation
from crosscheck.reference.fgd import fgd
from crosscheck.reference.layers import Parameters, linear, pixel_mask, sub
from crosscheck.reference.mgd import mgd
from crosscheck.reference.pkd import pkd

Level = Callable[..., Tensor]

TERMS: dict[str, Level] = {
    "feature_imitation": feature_imitation,
    "pkd": pkd,
    "cwd": cwd,
    "mgd": mgd,
    "fgd": fgd,
}


class ImageMaps(NamedTuple):
    """One image's part of a level: maps [h, w, C] without padding."""

    s: Tensor
    t: Tensor
    boxes: Tensor
    kept: Tensor | None


def map_term(
    settings: dict[str, Any],
    x: dict[str, Tensor],
    p: Parameters,
    c: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The loss of the distiller that the settings name, summed over levels."""
    term = settings["term"]
    p = sub(p, f"map_terms.{term}")
    total = torch.zeros((), dtype=x["s0"].dtype)
    for i, stride in enumerate(settings["strides"]):
        s, t = x[f"s{i}"], x[f"t{i}"].detach()
        if settings["standardize"]:
            mask = pixel_mask(c["sizes"], c["image_valid"], stride, tuple(t.shape[1:3]))
            t = standardized(t, mask)
        adaptation = sub(p, f"adaptation.{i}")
        s = linear(adaptation, s) if adaptation else s
        images = []
        for j in torch.nonzero(c["image_valid"]).flatten().tolist():
            high, wide = (-(-int(side) // stride) for side in c["sizes"][j])
            kept = c[f"kept{i}"][j, :high, :wide] if f"kept{i}" in c else None
            boxes = c["boxes"][j][c["valid"][j]].to(s.dtype) / stride
            images.append(ImageMaps(s[j, :high, :wide], t[j, :high, :wide], boxes, kept))
        total = total + TERMS[term](images, settings["config"], p, i)
    return {term: total}
