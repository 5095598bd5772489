"""The numbers in which detection libraries differ, in one frozen table.

This holds only what a *library* fixes. What a user chooses (channels, thresholds of the final NMS,
numbers of proposals) is in `settings`; if a library has its own default for such a setting, it is
in `LIBRARY_SETTINGS`. docs/conventions.md says where each field is used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from drkd_jax.errors import UserError

#: The smallest normal float32: as a minimum side it drops exactly the boxes of width or height 0.
ANY_SIDE = 2.0**-126


@dataclasses.dataclass(frozen=True)
class Matching:
    """The overlaps that make an anchor or a region positive or negative.

    Attributes:
        positive: positive from this overlap on.
        negative: negative below this overlap.
        low_quality: the best anchors of a ground truth are positive too, if their overlap is at
            least this; None switches this off.
        overwrite: whether such an anchor is assigned to the ground truth whose best anchor it is
            (the last one, if several); otherwise to the one that it overlaps most.
    """

    positive: float
    negative: float
    low_quality: float | None
    overwrite: bool = True


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The input that the networks of this library were trained on.

    Attributes:
        mean: subtracted from the channels, 0..255, in the order of ``channels``.
        std: what the channels are divided by afterwards.
        channels: order in which the network reads the colours.
        resize: the rule for the size of a resized image and for the interpolation, see
            `data.transforms.RULES`.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"
    resize: Literal["mmdet", "torchvision", "stretch"] = "mmdet"


#: mmdetection's models on backbones of Caffe and Detectron (``caffe``, ``gn-all`` in their names).
CAFFE_PIXELS = Pixels(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), channels="bgr")

#: mmdetection's models on the ResNeXt-101-32x8d of Caffe2.
CAFFE2_PIXELS = Pixels(mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), channels="bgr")


@dataclasses.dataclass(frozen=True)
class Conventions:
    """One library's choices. The defaults are mmdetection 3.3.0's.

    Attributes:
        padding: images are padded to a multiple of this.
        train_padding: whether anchors whose grid cell begins past an image's own padding take
            part in training; otherwise they only give proposals.
        whole_anchor_sides: whether the side of each anchor is truncated to whole pixels before
            the ratios are applied.
        round_anchors: whether base anchors are rounded to whole pixels.
        steps_by_map: whether cells are ``canvas side // map side`` apart, separately along y and
            x; otherwise by the level's stride. The two differ if a map's side is rounded up.
        background_first: whether the background is the first logit of a region's classes (and
            then has deltas too, which are unused) or the last one (without deltas).
        max_log: limit of the decoded ``dw`` and ``dh``.
        clamp_below: whether the lower side of ``dw`` and ``dh`` is limited too.
        proposal_min_side: proposals with a shorter side are dropped before NMS; None: none are.
        dense_min_side: the same for RetinaNet's boxes.
        roi_min_side: the same for the second stage's boxes.
        rpn: matching of the RPN's anchors.
        dense: matching of RetinaNet's anchors.
        roi: matching of the regions.
        rpn_stds: standard deviations of the RPN's and RetinaNet's deltas (x, y, w, h).
        roi_stds: standard deviations of the second stage's deltas.
        rpn_beta: beta of the RPN's smooth L1 box loss, where it turns linear; 0: L1.
        dense_beta: the same for RetinaNet.
        roi_beta: the same for the second stage.
        rpn_least: the least number that an image's positives, and its negatives, count as in the
            RPN's normaliser.
        dense_mean: RetinaNet's losses are the sum over all anchors divided by all positives
            ("batch"), or that quotient for each image, averaged over images ("image"). An
            image without positives counts as having one.
        dense_candidates: what enters RetinaNet's NMS from a level: the best "pairs" of anchor and
            class, or all classes of the best "anchors", ranked by their best class.
        roi_max_level: coarsest level that the second stage's regions are cropped from.
        roi_size: bins along each side of a region.
        roi_sampling: samples per bin and axis; 0: as many as a bin has pixels (adaptive).
        roi_aligned: whether pixel centres are at half pixels in RoIAlign.
        region_level_rule: the rule by which a region finds its level, see `ops.roi_align`.
        train_norms: whether the scale and bias of a "frozen_bn" are trained; its statistics never
            are.
        focal_gamma: focusing parameter of the focal loss.
        focal_alpha: weight of the positives in the focal loss.
        class_prior: initial probability of a dense classifier.
        pixels: the input that the library's own weights expect.

    Source: open-mmlab/mmdetection v3.3.0, configs/_base_/models/faster-rcnn_r50_fpn.py and
    retinanet_r50_fpn.py; pytorch/vision v0.14.1, torchvision/models/detection.
    """

    padding: int = 32
    train_padding: bool = False
    whole_anchor_sides: bool = False
    round_anchors: bool = False
    steps_by_map: bool = False
    background_first: bool = False
    max_log: float = math.log(1000 / 16)
    clamp_below: bool = True
    proposal_min_side: float | None = ANY_SIDE
    dense_min_side: float | None = ANY_SIDE
    roi_min_side: float | None = None
    rpn: Matching = Matching(0.7, 0.3, 0.3)
    dense: Matching = Matching(0.5, 0.4, 0.0)
    roi: Matching = Matching(0.5, 0.5, None)
    rpn_stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    roi_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    rpn_beta: float = 0.0
    dense_beta: float = 0.0
    roi_beta: float = 0.0
    rpn_least: int = 1
    dense_mean: Literal["batch", "image"] = "batch"
    dense_candidates: Literal["pairs", "anchors"] = "pairs"
    roi_max_level: int = 5
    roi_size: int = 7
    roi_sampling: int = 0
    roi_aligned: bool = True
    region_level_rule: Literal["mmdet", "torchvision"] = "mmdet"
    train_norms: bool = True
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    class_prior: float = 0.01
    pixels: Pixels = Pixels()


MMDET = Conventions()

# The release that the paper's authors built on.
MMDET_2_3 = dataclasses.replace(
    MMDET, proposal_min_side=None, dense_min_side=None, dense_candidates="anchors"
)

TORCHVISION = Conventions(
    train_padding=True,
    whole_anchor_sides=True,
    round_anchors=True,
    steps_by_map=True,
    background_first=True,
    clamp_below=False,
    proposal_min_side=1e-3,
    dense_min_side=None,
    roi_min_side=1e-2,
    rpn=Matching(0.7, 0.3, 0.0, overwrite=False),
    dense=Matching(0.5, 0.4, 0.0, overwrite=False),
    rpn_beta=1 / 9,
    roi_beta=1 / 9,
    rpn_least=0,
    dense_mean="image",
    roi_sampling=2,
    roi_aligned=False,
    region_level_rule="torchvision",
    train_norms=False,
    pixels=Pixels(resize="torchvision"),
)

CONVENTIONS: Mapping[str, Conventions] = MappingProxyType(
    {"mmdet": MMDET, "mmdet-2.3": MMDET_2_3, "torchvision": TORCHVISION}
)

#: Defaults of a library that differ from those in `settings`, by convention and detector.
LIBRARY_SETTINGS: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("torchvision", "faster_rcnn"): {"proposals": {"max_out": 2000}},
        ("torchvision", "retinanet"): {
            "extra": "conv_p5",
            "extra_relu": True,
            "test": {"max_out": 300},
        },
    }
)


def conventions(name: str) -> Conventions:
    """Look a library's conventions up by name.

    Raises:
        UserError: for a name that is not in the table.
    """
    if name not in CONVENTIONS:
        raise UserError(f"convention {name!r} is not known; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def with_own(rule: Conventions, settings: Any) -> Conventions:
    """A library's conventions, overridden by a detector's own settings.

    Args:
        rule: the library's conventions.
        settings: a `settings.PyramidSettings`; unset values keep the library's.
    """
    fields = {"rpn_stds": "delta_stds", "roi_stds": "roi_stds"}
    fields |= {name: name for name in ("roi_aligned", "roi_max_level")}
    own = {field: getattr(settings, name, None) for field, name in fields.items()}
    said: dict[str, Any] = {
        field: value for field, value in own.items() if value is False or value not in (None, (), 0)
    }
    return dataclasses.replace(rule, **said)
