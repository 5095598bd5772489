"""CrossKD, computed by its authors' own detector class from a checkout, head by head."""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crosscheck.reference.foreign import classes

Tensors = dict[str, Tensor]
BRANCHES = ("classes", "boxes")
CLASSES = 5


def weighting(losses: Path) -> dict[str, Any]:
    """The helper functions of mmdetection's losses, by name."""
    names = ("reduce_loss", "weight_reduce_loss", "weighted_loss")
    return dict(zip(names, classes(losses / "utils.py", *names), strict=True))


class _Given:
    """Replaces the first layers of a head: returns the given map for any input."""

    activate = staticmethod(torch.relu)

    def __init__(self, found: Tensor):
        self.found = found

    def __call__(self, x: Any, activate: bool = True) -> Tensor:
        return torch.relu(self.found) if activate else self.found


class _Layer:
    """A 3x3 convolution, called like mmcv's ConvModule, with an optional ReLU."""

    activate = staticmethod(torch.relu)

    def __init__(self, c: Tensors, name: str):
        self.kernel, self.bias = c[f"{name}.kernel"].permute(3, 2, 0, 1), c[f"{name}.bias"]

    def __call__(self, x: Tensor, activate: bool = True) -> Tensor:
        y = functional.conv2d(x, self.kernel, self.bias, padding=1)
        return torch.relu(y) if activate else y


def _box_losses(folder: Path, helpers: dict[str, Any]) -> tuple[Any, Any]:
    """The class of the GIoU loss, and the box coder."""
    path = folder / "mmdet/structures/bbox/bbox_overlaps.py"
    *_, overlaps = classes(path, "fp16_clamp", "bbox_overlaps")
    path = folder / "mmdet/models/losses/iou_loss.py"
    *_, loss = classes(path, "giou_loss", "GIoULoss", bbox_overlaps=overlaps, **helpers)
    coders = folder / "mmdet/models/task_modules/coders"
    abstract = {"ABCMeta": abc.ABCMeta, "abstractmethod": abc.abstractmethod}
    (base,) = classes(coders / "base_bbox_coder.py", "BaseBBoxCoder", **abstract)
    given = {"BaseBBoxCoder": base, "get_box_tensor": lambda boxes: boxes, "np": np}
    path = coders / "delta_xywh_bbox_coder.py"
    return loss, classes(path, "delta2bbox", "DeltaXYWHBBoxCoder", **given)[-1]()


def _anchors(count: int, stride: int, like: Tensor) -> Tensor:
    """Anchors [count, 4] of various shapes and places; GIoU should not depend on them."""
    number = torch.arange(count)
    low = torch.stack([number * 7 % 64, number * 5 % 96], 1).to(like.dtype)
    sides = torch.stack([2 + number % 5, 1 + number % 7], 1).to(like.dtype) * stride
    return torch.cat([low, low + sides], 1)


def crosskd_of(folder: Path) -> Callable[..., Tensors]:
    """The component: the loss on maps inside both heads, which have equal widths.

    Args:
        folder: a checkout of jbwang1997/CrossKD.
    """
    path, losses = folder / "mmdet/models/detectors/crosskd_retinanet.py", "mmdet/models/losses"
    # Its base class builds whole detectors; the called methods need none.
    (detector,) = classes(path, "CrossKDRetinaNet", CrossKDSingleStageDetector=object)
    helpers = weighting(folder / losses)
    names = ("kd_quality_focal_loss", "KDQualityFocalLoss")
    *_, class_loss = classes(folder / losses / "kd_loss.py", *names, **helpers)
    box_loss, coder = _box_losses(folder, helpers)

    def head(c: Tensors, maps: list[Tensor]) -> SimpleNamespace:
        towers = [
            [_Given(x), _Layer(c, f"{branch}.last")]
            for branch, x in zip(BRANCHES, maps, strict=True)
        ]
        out = [partial(_Layer(c, f"{branch}.output"), activate=False) for branch in BRANCHES]
        return SimpleNamespace(
            cls_convs=towers[0],
            reg_convs=towers[1],
            retina_cls=out[0],
            retina_reg=out[1],
            stacked_convs=2,
            cls_out_channels=CLASSES,
            bbox_coder=coder,
        )

    def crosskd(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
        model = detector()
        model.reused_teacher_head_idx = 1
        model.loss_cls_kd = class_loss(reduction="sum")
        model.loss_reg_kd = box_loss(reduction="sum", loss_weight=settings["config"]["box"])
        total = weights = x["s_classes0"].new_zeros(())
        for i, stride in enumerate(settings["strides"]):
            s, t = ([x[f"{k}_{b}{i}"].permute(0, 3, 1, 2) for b in BRANCHES] for k in "st")
            model.bbox_head = head(c, [y.detach() for y in t])
            model.teacher = SimpleNamespace(bbox_head=model.bbox_head)
            sure, towards, *held = model.forward_crosskd_single(None, module=model.teacher)
            found = model.reuse_teacher_head(*held, *s)
            teacher = sure.movedim(1, -1).reshape(-1, CLASSES)
            anchors = _anchors(len(teacher), stride, teacher)
            ones = teacher.new_ones(len(teacher))  # weights of the anchors: none is left out
            # Theirs divides both losses by the number of positive anchors, ours by W.
            given = (sure, towards, *found, anchors, ones)
            total = total + sum(model.pred_mimicking_loss_single(*given, avg_factor=None))
            weights = weights + teacher.sigmoid().amax(1).sum()
        return {"crosskd": total / weights}

    return crosskd
