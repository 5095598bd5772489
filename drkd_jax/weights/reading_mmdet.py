"""The architecture behind a file of mmdetection, 2.x or 3.x.

Source: open-mmlab/mmdetection v3.3.0, configs/_base_/models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drkd_jax.data.coco_names import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE2_PIXELS, CAFFE_PIXELS, MMDET, Pixels
from drkd_jax.weights.reading import Assumed, Reading, count
from drkd_jax.weights.resnet_names import Shapes, read_backbone


def is_mmdet(shapes: Shapes) -> bool:
    """Whether keys are mmdetection's, or those of a bare backbone under its prefix."""
    return "backbone.conv1.weight" in shapes or any(
        re.match(r"(neck|rpn_head|roi_head|bbox_head)\.", key) for key in shapes
    )


def read(shapes: Shapes, meta: Mapping[str, Any], file_name: str) -> Reading:
    """The architecture behind a file's keys.

    Args:
        shapes: of the file's arrays.
        meta: what else the file holds; `CLASSES` and the text of its config are looked at.
        file_name: "caffe" in it says how the backbone strides; without a config it also says
            what the network reads.

    Raises:
        UserError: a model that is not ours, with what it is.
    """
    if "bbox_head.fc_cls.weight" in shapes or "bbox_head.0.fc_cls.weight" in shapes:
        raise UserError(
            "a two-stage detector of mmdetection 1.x, whose class order and boxes "
            "are others; convert it with mmdetection 2's tools/model_converters/"
            "upgrade_model_version.py first"
        )
    prefix = "backbone." if "backbone.conv1.weight" in shapes else ""
    backbone = read_backbone(shapes, prefix)
    shown: dict[str, Any] = {"backbone": backbone | {"norm": _norm(shapes, prefix)}}
    assumed = {
        "convention": Assumed("mmdet", "mmdetection's names; 3.3.0's numbers"),
        "backbone.eps": Assumed(1e-5, "mmdetection's own"),
    }
    if backbone["depth"] >= 50 and _is_caffe(meta, file_name):
        raise UserError(
            "a backbone in the style of Caffe, with the stride in the 1x1 "
            "convolution; only the stride in the 3x3 convolution is built here"
        )
    pixels = _pixels(meta, file_name)
    if "neck.lateral_convs.0.conv.weight" not in shapes:
        return Reading("backbone", shown, {"backbone.eps": assumed["backbone.eps"]}, pixels=pixels)
    shown |= _pyramid(shapes, assumed)
    head, num_classes = _head(shapes, assumed)
    shown |= head
    if not head:
        return Reading("pyramid", shown, assumed, pixels=pixels)
    names = _class_names(meta, num_classes)
    return Reading("detector", shown, assumed, num_classes, names, pixels)


def _norm(shapes: Shapes, prefix: str) -> str:
    return "frozen_bn" if f"{prefix}bn1.running_var" in shapes else "gn"


def _pyramid(shapes: Shapes, assumed: dict[str, Assumed]) -> dict[str, Any]:
    """The neck, as it shows in the shapes; fills `assumed` with what does not show."""
    laterals = count(shapes, "neck.lateral_convs.{}.conv.weight")
    outputs = count(shapes, "neck.fpn_convs.{}.conv.weight")
    C, top = shapes[f"neck.lateral_convs.{laterals - 1}.conv.weight"][:2]
    if not 1 <= laterals <= 4 or outputs < laterals:
        raise UserError(f"an FPN of {laterals} lateral and {outputs} output convolutions")
    shown: dict[str, Any] = {"channels": C, "min_level": 6 - laterals}
    if outputs == laterals:
        assumed["extra"] = Assumed("pool", "the neck has no convolutions above P5")
        assumed["max_level"] = Assumed(6, "mmdetection's own")
        return shown
    inputs = shapes[f"neck.fpn_convs.{laterals}.conv.weight"][1]
    extra = "conv_c5" if inputs == top else "conv_p5"
    if top == C:
        assumed["extra"] = Assumed("conv_c5", "mmdetection's own; C5 is as wide as P5 here")
    else:
        shown["extra"] = extra
    shown["max_level"] = 5 + outputs - laterals
    assumed["extra_relu"] = Assumed(False, "mmdetection's own")
    return shown


def _head(shapes: Shapes, assumed: dict[str, Assumed]) -> tuple[dict[str, Any], int]:
    """(settings of the head, classes); ({}, 0) for a head that is not ours."""
    if "bbox_head.retina_cls.weight" in shapes and "bbox_head.retina_reg.weight" in shapes:
        per_cell = shapes["bbox_head.retina_reg.weight"][0] // 4
        octaves = max(per_cell // 3, 1)
        num_classes = shapes["bbox_head.retina_cls.weight"][0] // max(per_cell, 1)
        assumed["anchors.scale"] = Assumed(4.0, "mmdetection's own")
        convs = count(shapes, "bbox_head.cls_convs.{}.conv.weight")
        return {
            "detector": "retinanet",
            "head_convs": convs,
            "anchors": {"octaves": octaves},
        }, num_classes
    for detector, middle in (("faster_rcnn", ""), ("cascade_rcnn", "0.")):
        start = f"roi_head.bbox_head.{middle}"
        if f"{start}fc_cls.weight" in shapes and "rpn_head.rpn_cls.weight" in shapes:
            outputs = shapes[f"{start}fc_cls.weight"][0]
            boxes = shapes.get(f"{start}fc_reg.weight", (0,))[0]
            shown: dict[str, Any] = {"detector": detector}
            shown["fc"] = shapes[f"{start}fc_cls.weight"][1]
            shown["class_agnostic"] = boxes == 4 and (outputs > 2 or bool(middle))
            assumed["anchors.scale"] = Assumed(8.0, "mmdetection's own")
            return shown, outputs - 1
    return {}, 0


def _config(meta: Mapping[str, Any]) -> str:
    """The text of the library's config, where the file carries it."""
    config = meta.get("config") or meta.get("cfg")
    return config if isinstance(config, str) else ""


def _pixels(meta: Mapping[str, Any], file_name: str) -> tuple[Pixels, str]:
    """What the network reads, and where that is known from.

    Source: open-mmlab/mmdetection, ``img_norm_cfg`` of 2.x, ``data_preprocessor`` of 3.x.
    """
    text, number = _config(meta), r"\s*([0-9.]+)\s*"
    triples = [
        re.search(rf"\b{key}\s*=\s*[\[(]{number},{number},{number},?\s*[\])]", text)
        for key in ("mean", "std")
    ]
    to_rgb = re.search(r"\b(?:bgr_)?to_rgb\s*=\s*(True|False)", text)
    if all(triples) and to_rgb:
        mean, std = (tuple(map(float, found.groups())) for found in triples if found)
        channels = "rgb" if to_rgb[1] == "True" else "bgr"
        return Pixels(mean, std, channels), "the config in the file"  # type: ignore[arg-type]
    name = Path(file_name).name
    if re.search(r"caffe|msra|gn-all", name):
        return CAFFE_PIXELS, "mmdetection's on Caffe's backbones, by the file's name"
    if re.search(r"x101[_-]32x8d", name):
        return CAFFE2_PIXELS, "mmdetection's on Caffe2's ResNeXt, by the file's name"
    return MMDET.pixels, "mmdetection's own"


def _is_caffe(meta: Mapping[str, Any], file_name: str) -> bool:
    text = _config(meta)
    marked = re.search(r"caffe|msra", Path(file_name).name)
    return bool(marked or re.search(r"style\s*=\s*.caffe", text))


def _class_names(meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """From the file, or COCO's where the number is."""
    dataset = meta.get("dataset_meta")
    places = [meta, dataset] if isinstance(dataset, Mapping) else [meta]
    for place in places:
        names = place.get("CLASSES", place.get("classes"))
        listed = tuple(names) if isinstance(names, (list, tuple)) else ()
        if len(listed) == num_classes and all(isinstance(name, str) for name in listed):
            return listed
    if num_classes == len(COCO_CATEGORIES):
        return tuple(category.name for category in COCO_CATEGORIES)
    return ()
