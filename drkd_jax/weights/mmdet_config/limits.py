"""Reads how outputs become detections, `test_cfg`, from a config of mmdetection.

A missing key may mean something else than this program's default. Of those read below, mmdetection
needs `max_per_img` and `nms` (without them it cannot detect anything either), and 2.x the others as
well; 3.x keeps every candidate without `nms_pre`, and boxes of any size without `min_bbox_size`.
`train_cfg` changes nothing that a network computes from an image.

Source: open-mmlab/mmdetection v2.28 and v3.3.0, mmdet/models/dense_heads/{base_dense_head,
rpn_head}.py, roi_heads/bbox_heads/bbox_head.py, layers/bbox_nms.py; open-mmlab/mmcv v2.0
mmcv/ops/nms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drkd_jax.weights.mmdet_config.values import FileConfig, Section

# Far above any detector's; these values determine how many rows are allocated.
_MOST_BOXES = 1_000_000


def read_dense_limits(part: Section, said: FileConfig) -> None:
    """Reads `test_cfg` of RetinaNet; an empty one says nothing."""
    if part.values:
        said.settings["test.score"] = 0.0  # without the key 3.x keeps every score
        _candidates(part, "test.pre_nms", said)
        _sides(part, said)
    _detections(part, said.settings)
    part.close("mask_thr_binary", "keep_all_stages", "with_nms")


def read_region_limits(part: Section, said: FileConfig) -> None:
    """Reads `test_cfg.rcnn` of two-stage detectors, where only RetinaNet has other keys."""
    _detections(part, said.settings)
    part.close("mask_thr_binary", "keep_all_stages", "with_nms", "nms_pre", "min_bbox_size")


def read_proposal_limits(part: Section, said: FileConfig) -> None:
    """Reads `test_cfg.rpn`, with the key names of all releases of mmdetection."""
    settings = said.settings
    _candidates(part, "proposals.pre_nms_test", said)
    _count(part, ("max_per_img", "max_num"), "proposals.max_out_test", settings)
    if "nms_post" in part:
        most = settings.get("proposals.max_out_test", 1000)
        if part.number("nms_post", 0) < most:
            part.refuse("nms_post", part.get("nms_post"), f"{most} or more can be built here")
    _overlap(part, "proposals.nms", settings)
    part.only("nms_across_levels", False)
    _sides(part, said)
    part.close("score_thr")  # the RPN has no such limit


def _detections(part: Section, settings: dict[str, Any]) -> None:
    if "score_thr" in part:
        settings["test.score"] = float(part.number("score_thr", 0.05))
    _count(part, ("max_per_img",), "test.max_out", settings)
    _overlap(part, "test.nms", settings)


def _candidates(part: Section, ours: str, said: FileConfig) -> None:
    """Reads `nms_pre`; without it, or below 1, all candidates of a level enter its NMS there."""
    most = part.whole("nms_pre", -1, most=_MOST_BOXES)
    if most > 0:
        said.settings[ours] = most
        return
    shown = "no nms_pre" if "nms_pre" not in part else f"an nms_pre of {most}"
    said.notes.append(
        f"{part.path} has {shown}: all of a level's candidates enter its NMS there, the best "
        f"{ours} of them here (1000 unless asked otherwise)"
    )


def _sides(part: Section, said: FileConfig) -> None:
    """Reads `min_bbox_size`; without it, or below 0, boxes of any size stay there."""
    least = part.number("min_bbox_size", -1)
    if least < 0:
        said.notes.append(
            f"{part.path} keeps boxes without width or height (no min_bbox_size of 0), which are "
            "dropped here"
        )
    elif least > 0:
        part.refuse("min_bbox_size", least, "0 can be built here")


def _count(part: Section, keys: Sequence[str], ours: str, settings: dict[str, Any]) -> None:
    for key in keys:
        if key in part:
            settings[ours] = part.whole(key, 1000, least=1, most=_MOST_BOXES)
            part.ignore(*keys)
            return


def _overlap(part: Section, ours: str, settings: dict[str, Any]) -> None:
    if "nms_thr" in part:
        settings[ours] = float(part.number("nms_thr", 0.5))
    if "nms" not in part:
        part.ignore("nms")
        if "nms" in part.values and "nms_thr" not in part:
            part.refuse("nms", None, "no suppression there; nms can be built here")
        return
    nms = part.sub("nms")
    nms.kind("nms")
    for key in ("iou_threshold", "iou_thr"):
        if key in nms:
            settings[ours] = float(nms.number(key, 0.5))
    nms.only("class_agnostic", False)
    nms.only("offset", 0)
    nms.only("score_threshold", 0)
    nms.only("max_num", -1)
    nms.close("split_thr")
