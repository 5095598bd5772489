"""The numbers by which two detection libraries differ, in one frozen table.

Only what a *library* fixes is here. What a user sizes (channels, thresholds of the final NMS,
numbers of proposals) is in `settings`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from drkd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Matching:
    """Overlaps that make an anchor or a region positive or negative.

    Attributes:
        positive: positive from this overlap on.
        negative: negative below this overlap.
        low_quality: the best anchors of a ground truth are positive too, if their overlap is at
            least this; None switches it off.
    """

    positive: float
    negative: float
    low_quality: float | None


@dataclasses.dataclass(frozen=True)
class Conventions:
    """One library's choices. The defaults are mmdetection 3.3.0's.

    Attributes:
        padding: pictures are padded to a multiple of this; anchors whose grid cell begins past a
            picture's own padding take no part in training (they still give proposals).
        round_anchors: whether base anchors are rounded to whole pixels.
        max_log: limit of the decoded ``dw`` and ``dh``.
        clamp_below: whether the lower side of ``dw`` and ``dh`` is limited too.
        drop_empty: whether boxes without width or height are dropped before NMS.
        rpn: matching of the RPN's anchors.
        dense: matching of RetinaNet's anchors.
        roi: matching of the regions.
        rpn_stds: standard deviations of the RPN's and RetinaNet's deltas (x, y, w, h).
        roi_stds: standard deviations of the second stage's deltas.
        roi_max_level: coarsest level that the second stage's regions are cut from.
        roi_size: bins a side of a region.
        roi_sampling: samples a bin and axis.
        roi_aligned: whether pixel centres are at half pixels in RoIAlign.
        region_level_rule: the rule by which a region finds its level, see `ops.roi_align`.
        focal_gamma: focusing parameter of the focal loss.
        focal_alpha: weight of the positives in the focal loss.
        class_prior: probability that a dense classifier starts with.

    Source: open-mmlab/mmdetection v3.3.0, configs/_base_/models/faster-rcnn_r50_fpn.py and
    retinanet_r50_fpn.py.
    """

    padding: int = 32
    round_anchors: bool = False
    max_log: float = math.log(1000 / 16)
    clamp_below: bool = True
    drop_empty: bool = True
    rpn: Matching = Matching(0.7, 0.3, 0.3)
    dense: Matching = Matching(0.5, 0.4, 0.0)
    roi: Matching = Matching(0.5, 0.5, None)
    rpn_stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    roi_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    roi_max_level: int = 5
    roi_size: int = 7
    roi_sampling: int = 2
    roi_aligned: bool = True
    region_level_rule: Literal["mmdet", "torchvision"] = "mmdet"
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    class_prior: float = 0.01


CONVENTIONS: Mapping[str, Conventions] = MappingProxyType({"mmdet": Conventions()})


def conventions(name: str) -> Conventions:
    """Look a library's conventions up by name.

    Raises:
        UserError: for a name that is not in the table.
    """
    if name not in CONVENTIONS:
        raise UserError(f"convention {name!r} is not known; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
