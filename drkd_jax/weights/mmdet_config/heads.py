"""Reads the heads from a config of mmdetection.

Source: open-mmlab/mmdetection v2.28 and v3.3.0, mmdet/models/dense_heads/{rpn_head,anchor_head,
retina_head}.py, roi_heads/, task_modules/{prior_generators,coders}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from drkd_jax.models.cascade_rcnn import STAGE_STDS
from drkd_jax.models.norm import EPSILON
from drkd_jax.weights.mmdet_config.limits import (
    read_dense_limits,
    read_proposal_limits,
    read_region_limits,
)
from drkd_jax.weights.mmdet_config.values import FileConfig, Section

BATCH_NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN", "NaiveSyncBatchNorm")
ONES = (1.0, 1.0, 1.0, 1.0)
ROI_STDS = (0.1, 0.1, 0.2, 0.2)
# Heads with the network and box coding of the first; they differ only in training.
_RETINA = ("RetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead")
_ROI = (
    *("StandardRoIHead", "MaskScoringRoIHead", "DynamicRoIHead", "PISARoIHead"),
    "PointRendRoIHead",
)
_DENSE_LOSSES = ("FocalLoss", "CrossEntropyLoss", "GHMC", "VarifocalLoss")
_CASCADE = ("CascadeRoIHead", "HybridTaskCascadeRoIHead")
# Default numbers of convolutions and fully connected layers of a region.
_BOX_LAYERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1), "ConvFCBBoxHead": (0, 0)}
)
# Far above any detector's; it determines how many points of a region are computed.
_MOST_STEPS = 100


def read_heads(
    model: Section, test: Section, said: FileConfig, detector: str, strides: Sequence[int]
) -> None:
    """Adds the settings of the heads from a config.

    Args:
        model: the config's section of the model; receives complaints.
        test: its `test_cfg`.
        said: receives settings and claims.
        detector: "retinanet", "faster_rcnn" or "cascade_rcnn", as the arrays show.
        strides: strides of the pyramid's levels.
    """
    if detector == "retinanet":
        if "bbox_head" in model:
            _retina(model.sub("bbox_head"), said, strides)
        read_dense_limits(test, said)
    else:
        if "rpn_head" in model:
            _rpn(model.sub("rpn_head"), said, strides)
        if "roi_head" in model:
            _roi(model.sub("roi_head"), said, detector, strides)
        if "rpn" in test:
            read_proposal_limits(test.sub("rpn"), said)
        if "rcnn" in test:
            boxes = test.sub("rcnn")
            boxes.ignore("scale_factor", "subdivision_num_points", "subdivision_steps")  # of masks
            read_region_limits(boxes, said)
        test.close("rpn", "rcnn", "mask_thr_binary", "keep_all_stages")


def _retina(head: Section, said: FileConfig, strides: Sequence[int]) -> None:
    head.kind(*_RETINA)
    said.claim("num_classes", head, "num_classes")
    said.claim("head_convs", head, "stacked_convs")
    _anchors(head, said.settings, strides)
    said.settings["delta_stds"] = _coder(head, ONES)
    _sigmoid(head, True)
    head.only("conv_cfg", None)
    if head.values.get("norm_cfg"):
        norm = head.sub("norm_cfg")
        if norm.kind(*BATCH_NORMS, "GN") == "GN":
            norm.only("num_groups", 32)
            norm.only("eps", EPSILON)
        else:
            _folded_eps(norm, said)
    head.ignore("in_channels", "feat_channels", "loss_bbox", "init_cfg", "train_cfg", "test_cfg")
    head.close("norm_cfg", "pre_anchor_topk", "bbox_thr", "gamma", "alpha", "reg_decoded_bbox")


def _rpn(head: Section, said: FileConfig, strides: Sequence[int]) -> None:
    settings = said.settings
    head.kind("RPNHead")
    _anchors(head, settings, strides)
    settings["delta_stds"] = _coder(head, ONES)
    _sigmoid(head, True)
    said.claim("rpn_convs", head, "num_convs")
    head.only("num_classes", 1)
    for layer in ("conv_cfg", "norm_cfg"):
        head.only(layer, None)
    head.ignore("in_channels", "feat_channels", "loss_bbox", "init_cfg", "train_cfg", "test_cfg")
    head.close("reg_decoded_bbox")


def _anchors(head: Section, settings: dict[str, Any], strides: Sequence[int]) -> None:
    if "anchor_generator" not in head:
        head.ignore("anchor_generator")
        return
    part = head.sub("anchor_generator")
    part.kind("AnchorGenerator")
    scales = part.numbers("scales")
    octaves = part.whole("scales_per_octave", least=1, most=_MOST_STEPS)
    base = part.number("octave_base_scale")
    ratios = part.numbers("ratios")
    if not ratios or min(ratios) <= 0:
        part.refuse("ratios", ratios, "numbers above 0 can be built here")
        ratios = (0.5, 1.0, 2.0)
    factor = _base_size(part, strides)
    own: dict[str, Any] = {"ratios": tuple(float(ratio) for ratio in ratios)}
    if scales and base is None and octaves is None and min(scales) > 0:
        own |= {"scale": float(scales[0] * factor), "octaves": 1, "sides": ()}
        if len(scales) > 1:
            own["sides"] = tuple(float(scale * factor) for scale in scales)
    elif not scales and base and octaves and base > 0:
        own |= {"scale": float(base * factor), "octaves": int(octaves), "sides": ()}
    else:
        part.refuse("scales", scales, "either these, or octave_base_scale and scales_per_octave")
    if len(ratios) > 1 and max(len(scales), octaves or 1) > 1:
        part.only("scale_major", True)
    part.only("center_offset", 0.0)
    part.only("centers", None)
    part.close("scale_major", "use_box_type")
    settings |= {f"anchors.{key}": value for key, value in own.items()}


def _base_size(part: Section, strides: Sequence[int]) -> float:
    """The base sizes of all levels in strides; 1 if they are not given."""
    theirs = part.get("strides", tuple(strides))
    steps = theirs if isinstance(theirs, tuple) else (theirs,)
    if len(steps) != len(strides) or any(
        step not in (stride, (stride,), (stride, stride))
        for step, stride in zip(steps, strides, strict=True)
    ):
        part.refuse("strides", theirs, f"the pyramid's are {', '.join(map(str, strides))}")
    sizes = part.numbers("base_sizes")
    if not sizes:
        return 1.0
    factors = {size / stride for size, stride in zip(sizes, strides, strict=False)}
    if len(sizes) != len(strides) or len(factors) != 1 or min(factors) <= 0:
        part.refuse("base_sizes", sizes, "the same number of strides on every level, here")
        return 1.0
    return factors.pop()


def _coder(head: Section, default: tuple[float, ...]) -> tuple[float, ...]:
    """The standard deviations of a head's deltas."""
    if "bbox_coder" not in head:
        head.ignore("bbox_coder")
        return default
    part = head.sub("bbox_coder")
    part.kind("DeltaXYWHBBoxCoder")
    part.only("target_means", (0.0, 0.0, 0.0, 0.0))
    stds = part.numbers("target_stds", ONES)
    if len(stds) != 4 or min(stds) <= 0:
        part.refuse("target_stds", stds, "four numbers above 0 can be built here")
        stds = ONES
    part.only("clip_border", True)
    part.only("add_ctr_clamp", False)
    part.close("ctr_clamp", "use_box_type", "encode_size")
    return tuple(map(float, stds))


def _sigmoid(head: Section, wanted: bool) -> None:
    """Checks whether scores are computed by a sigmoid each, or by a joint softmax."""
    if "loss_cls" in head:
        loss = head.sub("loss_cls")
        if bool(loss.get("use_sigmoid", False)) != wanted:
            loss.refuse("use_sigmoid", not wanted, f"{wanted} can be built here")
        # Another kind of loss may compute scores in its own way.
        loss.kind(*(_DENSE_LOSSES if wanted else ("CrossEntropyLoss", "GHMC", "LabelSmoothLoss")))
    head.ignore("loss_cls")


def _roi(head: Section, said: FileConfig, detector: str, strides: Sequence[int]) -> None:
    cascade = detector == "cascade_rcnn"
    kind = head.kind(*(_CASCADE if cascade else _ROI))
    head.only("shared_head", None)
    if kind in _CASCADE:
        head.only("semantic_head", None)
        head.only("num_stages", 3)
    if "bbox_roi_extractor" in head:
        _extractor(_first(head, "bbox_roi_extractor"), said.settings, strides)
    parts = head.values.get("bbox_head")
    if isinstance(parts, (list, tuple)):
        boxes = [
            Section(part, f"{head.name('bbox_head')}.{i}", head.complaints)
            for i, part in enumerate(parts)
        ]
    else:
        boxes = [head.sub("bbox_head")] * (3 if cascade else 1)
    if len(boxes) != (3 if cascade else 1):
        head.refuse("bbox_head", len(boxes), "another number of stages than its arrays have")
    if parts is not None:
        for number, part in enumerate(boxes):
            stds = _box_head(part, said, cascade)
            if not cascade:
                said.settings["roi_stds"] = stds
            elif number < 3 and stds != STAGE_STDS[number]:
                part.refuse("bbox_coder.target_stds", stds, f"{STAGE_STDS[number]} is built here")
    head.ignore("bbox_head", "bbox_roi_extractor", "mask_roi_extractor", "mask_head", "init_cfg")
    head.ignore("mask_iou_head", "point_head", "train_cfg", "test_cfg", "stage_loss_weights")
    head.close("interleaved", "mask_info_flow", "semantic_roi_extractor", "semantic_fusion")


def _first(head: Section, key: str) -> Section:
    """One dict, or the first of several that must be equal."""
    value = head.values.get(key)
    if isinstance(value, (list, tuple)) and value:
        if any(item != value[0] for item in value):
            head.refuse(key, value, "the same one for every stage can be built here")
        return Section(value[0], f"{head.name(key)}.0", head.complaints)
    return head.sub(key)


def _extractor(part: Section, settings: dict[str, Any], strides: Sequence[int]) -> None:
    part.kind("SingleRoIExtractor")
    layer = part.sub("roi_layer")
    layer.kind("RoIAlign")
    layer.only("output_size", 7, (7, 7))
    layer.only("out_size", 7)
    layer.only("pool_mode", "avg")
    key = "sample_num" if "sample_num" in layer else "sampling_ratio"
    settings["roi_sampling"] = layer.whole(key, 0, least=0, most=_MOST_STEPS)
    settings["roi_aligned"] = bool(layer.get("aligned", True))
    layer.close("use_torchvision")
    used = part.numbers("featmap_strides", (4, 8, 16, 32))
    if not used or list(used) != list(strides[: len(used)]):
        listed = ", ".join(map(str, strides))
        part.refuse("featmap_strides", used, f"the pyramid's are {listed}, from the first on")
    else:
        settings["roi_max_level"] = int(used[-1]).bit_length() - 1
    part.only("finest_scale", 14 * strides[0])
    if strides[0] != 4 and "finest_scale" not in part:
        part.refuse("finest_scale", 56, f"{14 * strides[0]} is built here")
    part.close("out_channels", "init_cfg")


def _box_head(part: Section, said: FileConfig, cascade: bool) -> tuple[float, ...]:
    kind = part.kind(*_BOX_LAYERS)
    own_convs, own_fcs = _BOX_LAYERS.get(kind, (0, 2))
    convs = part.whole("num_shared_convs", own_convs)
    fcs = part.whole("num_shared_fcs", own_fcs)
    if fcs not in (1, 2):
        part.refuse("num_shared_fcs", fcs, "1 or 2 can be built here")
    elif cascade and convs:
        part.refuse("num_shared_convs", convs, "0 can be built here")
    elif kind in _BOX_LAYERS:
        said.claims |= {"roi_convs": convs, "roi_fcs": fcs}
    for layers in ("num_cls_convs", "num_cls_fcs", "num_reg_convs"):
        part.only(layers, 0)
    part.only("num_reg_fcs", 0)
    said.claim("num_classes", part, "num_classes")
    said.claim("fc", part, "fc_out_channels")
    if "reg_class_agnostic" in part and part.get("num_classes", 2) != 1:
        said.claims["class_agnostic"] = bool(part.get("reg_class_agnostic"))
    part.only("roi_feat_size", 7, (7, 7))
    part.only("with_avg_pool", False)
    for switch in ("with_cls", "with_reg"):
        part.only(switch, True)
    part.only("conv_cfg", None)
    if part.values.get("norm_cfg"):
        norm = part.sub("norm_cfg")
        norm.kind(*BATCH_NORMS)
        if convs:  # linear layers have none
            _folded_eps(norm, said)
        norm.close("requires_grad", "momentum", "eps")
    part.ignore("norm_cfg")
    for layer in ("cls_predictor_cfg", "reg_predictor_cfg"):
        if part.values.get(layer):
            predictor = part.sub(layer)
            predictor.kind("Linear")
            predictor.close()
    _sigmoid(part, False)
    stds = _coder(part, ROI_STDS)
    part.ignore("in_channels", "conv_out_channels", "loss_bbox", "init_cfg", "reg_decoded_bbox")
    part.close("reg_class_agnostic", "num_shared_fcs", "cls_predictor_cfg", "reg_predictor_cfg")
    return stds


def _folded_eps(norm: Section, said: FileConfig) -> None:
    """Refuses a batch norm of a head whose eps differs from the pyramid's, used for folding."""
    eps = norm.number("eps", EPSILON)
    if eps != said.neck_eps:
        norm.refuse("eps", eps, f"{said.neck_eps:g}, that of the pyramid, can be built here")
