"""mmdetection, 2.x and 3.x: its names for our arrays, and the architecture behind a file of it.

Source: open-mmlab/mmdetection v3.3.0, mmdet/models/backbones/resnet.py, necks/fpn.py,
dense_heads/{rpn_head,retina_head}.py, roi_heads/bbox_heads/convfc_bbox_head.py,
roi_heads/cascade_roi_head.py; open-mmlab/mmcv mmcv/ops/deform_conv.py; configs/_base_/models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE2_PIXELS, CAFFE_PIXELS, MMDET, Pixels
from drkd_jax.weights.libraries.checkpoint_spec import (
    Assumed,
    CheckpointSpec,
    Shapes,
    as_names,
    backbone_entries,
    count,
    module_entry,
    octaves,
    read_backbone,
    style_by_name,
)
from drkd_jax.weights.libraries.key_report import Entry, Skip
from drkd_jax.weights.mmdet_config.model import class_names, find_config, other_kinds, read_model
from drkd_jax.weights.mmdet_config.pixels import image_notes, read_pixels, read_size
from drkd_jax.weights.mmdet_config.values import FileConfig

# Our module, as a pattern, and theirs.
_MODULES = (
    (r"neck\.laterals\.(\d)", "neck.lateral_convs.{0}.conv"),
    (r"neck\.outputs\.(\d)", "neck.fpn_convs.{0}.conv"),
    (r"rpn\.conv", "rpn_head.rpn_conv"),
    (r"rpn\.more_convs\.(\d+)", "rpn_head.rpn_conv.{2}.conv"),
    (r"rpn\.cls", "rpn_head.rpn_cls"),
    (r"rpn\.box", "rpn_head.rpn_reg"),
    (r"roi\.convs\.(\d+)", "roi_head.bbox_head.shared_convs.{0}.conv"),
    (r"roi\.fc1", "roi_head.bbox_head.shared_fcs.0"),
    (r"roi\.fc2", "roi_head.bbox_head.shared_fcs.1"),
    (r"roi\.cls", "roi_head.bbox_head.fc_cls"),
    (r"roi\.box", "roi_head.bbox_head.fc_reg"),
    (r"roi\.(\d)\.fc1", "roi_head.bbox_head.{0}.shared_fcs.0"),
    (r"roi\.(\d)\.fc2", "roi_head.bbox_head.{0}.shared_fcs.1"),
    (r"roi\.(\d)\.cls", "roi_head.bbox_head.{0}.fc_cls"),
    (r"roi\.(\d)\.box", "roi_head.bbox_head.{0}.fc_reg"),
    (r"head\.cls_convs\.(\d+)", "bbox_head.cls_convs.{0}.conv"),
    (r"head\.box_convs\.(\d+)", "bbox_head.reg_convs.{0}.conv"),
    (r"head\.cls_norms\.(\d+)", "bbox_head.cls_convs.{0}.gn"),
    (r"head\.box_norms\.(\d+)", "bbox_head.reg_convs.{0}.gn"),
    (r"head\.cls", "bbox_head.retina_cls"),
    (r"head\.box", "bbox_head.retina_reg"),
)

_SKIPS = (
    Skip(r".*\.num_batches_tracked$", "a counter that nothing uses"),
    Skip(r"roi_head\.mask_head\.", "the mask head: masks are not predicted here"),
    Skip(r"roi_head\.(mask_iou|point)_head\.", "the mask head: masks are not predicted here"),
    Skip(r"(bbox|rpn|roi)_head\.(\w+\.)*loss_\w+\.", "what a loss counts in training"),
    Skip(r"data_preprocessor\.", "the images' mean and std: they stand in the config"),
    Skip(r"ema_\w+$", "mmdetection's EMA hook: a second set of weights, swapped with the used one"),
)
_UNBUILT = "its own config makes it what is not built here"
_CLASSIFIER = Skip(r"(head\.)?fc\.(\d+\.)?(weight|bias)$", "the ImageNet classifier")
# Keys of self-supervised training or a classifier; keys of an unsupported pyramid are not skipped.
_AFTER = Skip(r"(?!backbone\.|neck\.(lateral|fpn)_convs\.)", "outside of the backbone")
_FOREIGN = Skip(r"(?!backbone\.|neck\.)", "a head that is not ours: backbone and FPN are used")


def table(names: Iterable[str], prefixed: bool = True) -> list[Entry]:
    """An entry for every array of ours.

    Args:
        names: flat names of a detector, a feature extractor or a backbone.
        prefixed: whether a backbone's keys begin with "backbone."; not so in ImageNet files.

    Raises:
        UserError: mmdetection has no such array.
    """
    every = list(names)
    laterals = len({name.split(".")[2] for name in every if name.startswith("neck.laterals.")})
    extras = ((rf"neck\.extras\.{n}", f"neck.fpn_convs.{laterals + n}.conv") for n in range(10))
    # The RPN's first convolution has another name if there are several.
    several = any(name.startswith("rpn.more_convs.") for name in every)
    first = ((r"rpn\.conv", "rpn_head.rpn_conv.0.conv"),) if several else ()
    modules = (*first, *_MODULES, *extras)
    others = (name for name in every if not name.startswith("backbone."))
    return [
        *backbone_entries(every, "backbone." if prefixed else ""),
        *(module_entry(name, modules, "mmdetection") for name in others),
    ]


def skips(part: str) -> tuple[Skip, ...]:
    """The additional keys that a file of this part ("detector", "pyramid", "backbone") may have."""
    extra = {"detector": (), "pyramid": (_FOREIGN,), "backbone": (_CLASSIFIER, _AFTER)}
    return (*_SKIPS, *extra[part])


def is_its(shapes: Shapes) -> bool:
    """Whether keys are mmdetection's, or those of a bare backbone under its prefix."""
    return "backbone.conv1.weight" in shapes or any(
        re.match(r"(neck|rpn_head|roi_head|bbox_head)\.", key) for key in shapes
    )


def read(shapes: Shapes, meta: Mapping[str, Any], file_name: str) -> CheckpointSpec:
    """The architecture behind a file's keys.

    Args:
        shapes: shapes of the file's arrays, without norms in the pyramid.
        meta: the file's other content; its classes and its config are read.
        file_name: if there is no config, "caffe" in the name decides the backbone's style and,
            with other words, the input format.

    Raises:
        UserError: the model is not supported (the message says what it is); or the arrays
            contradict its config, or its backbone or pyramid cannot be built here.
    """
    # A DETR's head has an `fc_cls` as well, but no proposals.
    if any(re.match(r"bbox_head\.(0\.)?fc_cls\.weight$", key) for key in shapes) and any(
        key.startswith("rpn_head.") for key in shapes
    ):
        raise UserError(
            "a two-stage detector of mmdetection 1.x, whose class order and boxes "
            "are others; convert it with mmdetection 2's tools/model_converters/"
            "upgrade_model_version.py first"
        )
    config = find_config(meta)
    prefix = "backbone." if "backbone.conv1.weight" in shapes else ""
    neck = "neck.lateral_convs.0.conv.weight" in shapes
    of_neck: dict[str, Assumed] = {}
    others = other_kinds(config)
    try:
        backbone = read_backbone(shapes, prefix)
        pyramid = _pyramid(shapes, of_neck) if neck else {}
        if not neck and others and any(key.startswith("neck.lateral_convs.") for key in shapes):
            raise UserError("laterals without a convolution of their own")
    except UserError as error:
        raise UserError(f"{_UNBUILT}: {'; '.join(others)}" if others else str(error)) from error
    norm = "frozen_bn" if f"{prefix}bn1.running_var" in shapes else "gn"
    shown: dict[str, Any] = {"backbone": backbone | {"norm": norm}}
    assumed = {
        "convention": Assumed("mmdet", "mmdetection's names; 3.3.0's numbers"),
        "backbone.eps": Assumed(1e-5, "mmdetection's own"),
        "backbone.style": style_by_name(file_name, backbone["depth"], "mmdetection's own"),
    }
    head: dict[str, Any] = {}
    num_classes = 0
    if neck:
        shown |= pyramid
        assumed |= of_neck
        head, num_classes = _head(shapes, assumed)
        shown |= head
    said = read_model(config, shown)
    _agree(said, shown, num_classes, assumed)
    pixels = _pixels(config, file_name, said.settings.get("backbone.style", ""))
    if not neck:
        of_backbone = {key: item for key, item in assumed.items() if key.startswith("backbone.")}
        return CheckpointSpec("backbone", shown, of_backbone, pixels=pixels)
    names, size = _class_names(meta, config, num_classes), read_size(config)
    part = "detector" if head else "pyramid"
    unbuilt = tuple(said.heads)
    if any(key.startswith("roi_head.semantic_head.") for key in shapes):
        unbuilt += ("roi_head.semantic_head (its features are added to those of the regions)",)
    return CheckpointSpec(
        *(part, shown, assumed, num_classes, names, pixels, unbuilt, said.neck_eps, size),
        notes=image_notes(config),
        head_notes=tuple(said.notes),
    )


def _agree(
    said: FileConfig, shown: dict[str, Any], num_classes: int, assumed: dict[str, Assumed]
) -> None:
    """Overrides the defaults by the config, unless the arrays contradict it."""
    if said.body:
        raise UserError(f"{_UNBUILT}: {'; '.join(said.body)}")
    backbone = shown["backbone"]
    flat = {f"backbone.{key}": value for key, value in backbone.items()} | shown
    flat["num_classes"] = num_classes
    flat.setdefault("backbone.stem", backbone["width"])
    wrong = {
        key: f"{key} {value!r} (its arrays: {flat[key]!r})"
        for key, value in said.claims.items()
        if value is not None and key in flat and flat[key] != value
    }
    if said.heads:  # a head of another kind may have other arrays under the same names
        wrong = {key: words for key, words in wrong.items() if _of_body(key)}
    if wrong:
        words = ", ".join(wrong.values())
        raise UserError(f"its config and its arrays are of two models: {words}")
    why = "the config in the file"
    for key, value in said.settings.items():
        if key not in flat:
            assumed[key] = Assumed(value, why)


def _of_body(key: str) -> bool:
    """Whether a setting is the backbone's or the pyramid's."""
    return key.startswith("backbone.") or key in ("channels", "extra", "max_level")


def _pyramid(shapes: Shapes, assumed: dict[str, Assumed]) -> dict[str, Any]:
    """The neck, as the shapes show it; fills `assumed` with what they do not show."""
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
    """(settings of the head, classes); ({}, 0) for an unsupported head."""
    if "bbox_head.retina_cls.weight" in shapes and "bbox_head.retina_reg.weight" in shapes:
        per_cell = shapes["bbox_head.retina_reg.weight"][0] // 4
        num_classes = shapes["bbox_head.retina_cls.weight"][0] // max(per_cell, 1)
        assumed["anchors.scale"] = Assumed(4.0, "mmdetection's own")
        assumed["anchors.octaves"] = octaves(per_cell)
        convs = count(shapes, "bbox_head.cls_convs.{}.conv.weight")
        return {
            "detector": "retinanet",
            "head_convs": convs,
            "head_norm": "gn" if "bbox_head.cls_convs.0.gn.weight" in shapes else "",
        }, num_classes
    for detector, middle in (("faster_rcnn", ""), ("cascade_rcnn", "0.")):
        start = f"roi_head.bbox_head.{middle}"
        convs = count(shapes, f"{start}shared_convs.{{}}.conv.weight")
        if f"{start}shared_convs.0.gn.weight" in shapes or (convs and middle):
            continue  # group norms in the layers of a region, or three such heads: not built
        if middle and shapes.get(f"{start}fc_reg.weight", (4,))[0] != 4:
            continue  # a box for every class
        if f"{start}fc_cls.weight" in shapes and "rpn_head.rpn_cls.weight" in shapes:
            outputs = shapes[f"{start}fc_cls.weight"][0]
            boxes = shapes.get(f"{start}fc_reg.weight", (0,))[0]
            shown: dict[str, Any] = {"detector": detector}
            shown["fc"] = shapes[f"{start}fc_cls.weight"][1]
            shown["roi_fcs"] = min(max(count(shapes, f"{start}shared_fcs.{{}}.weight"), 1), 2)
            shown["roi_convs"] = convs
            shown["rpn_convs"] = max(count(shapes, "rpn_head.rpn_conv.{}.conv.weight"), 1)
            shown["class_agnostic"] = boxes == 4 and (outputs > 2 or bool(middle))
            assumed["anchors.scale"] = Assumed(8.0, "mmdetection's own")
            return shown, outputs - 1
    return {}, 0


def _pixels(config: Mapping[str, Any], file_name: str, style: str) -> tuple[Pixels, str]:
    """The network's input format, and where that is known from."""
    own = read_pixels(config)
    if own is not None:
        return own, "the config in the file"
    if re.search(r"caffe|msra|gn-all", file_name):
        return CAFFE_PIXELS, "mmdetection's on Caffe's backbones, by the file's name"
    if re.search(r"x101[_-]32x8d", file_name):
        return CAFFE2_PIXELS, "mmdetection's on Caffe2's ResNeXt, by the file's name"
    if style == "caffe":
        return CAFFE_PIXELS, "mmdetection's on Caffe's backbones, as its config says it is"
    return MMDET.pixels, "mmdetection's own"


def _class_names(
    meta: Mapping[str, Any], config: Mapping[str, Any], num_classes: int
) -> tuple[str, ...]:
    """The file's class names, or COCO's if the number agrees; () if there is no head."""
    dataset = meta.get("dataset_meta")
    places = [meta, dataset] if isinstance(dataset, Mapping) else [meta]
    listed = [as_names(place.get(key)) for place in places for key in ("CLASSES", "classes")]
    listed.append(class_names(config))
    for names in listed:
        if names and len(names) == num_classes:
            return names
    if num_classes == len(COCO_CATEGORIES) and not any(listed):
        return tuple(category.name for category in COCO_CATEGORIES)
    return ()
