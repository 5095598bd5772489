"""Runs the author's own modules from a checkout of the author's repository.

The relation class creates its filter on CUDA at each call; here its `resize` uses a given layer
instead. Two-stage only, as the author's one-stage path does not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscheck.reference.foreign import classes, fill
from crosscheck.reference.layers import sub
from crosscheck.reference.roi_align_adaptive import roi_align

Tensors = dict[str, Tensor]


def _graph_units(folder: Path) -> Any:
    path = folder / "mmdet/models/detectors/GloRe.py"
    return classes(path, "GCN", "GloRe_Unit", "GloRe_Unit_2D")[-1]


def _relation_class(folder: Path) -> Any:
    (own,) = classes(folder / "mmdet/models/detectors/two_stage.py", "ObjectRelation_1")

    class FixedFilter(own):  # type: ignore[misc, valid-type]
        def resize(self, x: Tensor) -> Tensor:
            n = len(x)
            logits = x @ self.filter_weight[:n].T + self.filter_bias[:n]
            return torch.softmax(logits, dim=-1)

    return FixedFilter


def components_of(folder: Path) -> dict[str, Any]:
    """The components that need the author's code.

    Args:
        folder: a checkout of nizhenliang/Dual-Relation-Knowledge-Distillation.
    """
    unit_class, relation_class = _graph_units(folder), _relation_class(folder)

    def relation(p: Tensors, c: Tensors, prefix: str, width: int) -> Any:
        module = fill(relation_class(width), sub(p, prefix))
        module.filter_weight = c[f"{prefix}.filter.weight"]
        module.filter_bias = c[f"{prefix}.filter.bias"]
        return module

    def official_unit(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
        maps = x["x"].permute(0, 3, 1, 2)
        module = fill(unit_class(maps.shape[1], settings["nodes"]), sub(p, "unit"))
        module.train(settings["train"])
        return {"phi": module(maps).permute(0, 2, 3, 1)}

    def official_relation(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
        regions = x["x"].permute(0, 3, 1, 2).contiguous()
        z, psi = relation(p, c, "relation", regions[0].numel())(regions)
        return {"z": z.permute(0, 2, 3, 1), "psi": psi}

    def official_losses(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
        """The three losses of `forward_train`, with the modules of a two-stage detector."""
        levels = len(settings["strides"])
        s, t = ([x[f"{side}{i}"].permute(0, 3, 1, 2) for i in range(levels)] for side in "st")
        t = [maps.detach() for maps in t]  # the teacher is frozen

        def convolve(name: str, value: Tensor) -> Tensor:
            return nn.functional.conv2d(value, p[f"{name}.weight"], p[f"{name}.bias"])

        pixel = s[0].new_zeros(())
        for i in range(levels):
            phi = [
                fill(
                    unit_class(maps[i].shape[1], settings["nodes"][i]),
                    sub(p, f"{side}_non_local.{i}"),
                )(maps[i])
                for side, maps in (("student", s), ("teacher", t))
            ]
            pixel = pixel + torch.dist(convolve(f"non_local_adaptation.{i}", phi[0]), phi[1], p=2)
        related = features = s[0].new_zeros(())
        for i in range(2):
            modules = [
                relation(p, c, f"{side}_relation.{i}", 9 * s[i].shape[1])
                for side in ("student", "teacher")
            ]
            scale = s[i].shape[-1] / (s[0].shape[-1] * settings["strides"][0])
            for image, boxes in enumerate(c["boxes"]):
                rows = boxes[c["valid"][image]]
                regions = [
                    roi_align(maps[i][image].permute(1, 2, 0), rows, scale, 3)
                    .permute(0, 3, 1, 2)
                    .contiguous()
                    for maps in (s, t)
                ]
                z = [module(region)[0] for module, region in zip(modules, regions, strict=True)]
                related = related + torch.dist(
                    convolve(f"relation_adaptation.{i}", z[0]), z[1], p=2
                )
                mapped = convolve(f"for_adaptation.{i}", regions[0])
                features = features + torch.dist(mapped, regions[1], p=2)
        return {
            "pixel_relation": pixel,
            "instance_relation": related,
            "instance_feature": features,
        }

    return {
        "official_unit": official_unit,
        "official_relation": official_relation,
        "official_losses": official_losses,
    }
