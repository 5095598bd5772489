"""torchvision: its names for our arrays, and the architecture behind its files.

Its Faster R-CNN and RetinaNet with a ResNet and an FPN; the same table names the arrays of its
ImageNet ResNets and ResNeXts, whose keys have no prefix.

Classes are not reordered: a detector with ``convention="torchvision"`` has the background first,
as the file does.

Source: pytorch/vision v0.14.1, torchvision/models/detection/{faster_rcnn,retinanet}.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE_PIXELS, TORCHVISION
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

# Our module, as a pattern, theirs, and its name before torchvision 0.13 wrapped convolutions.
_MODULES = (
    (r"neck\.laterals\.(\d+)", "backbone.fpn.inner_blocks.{0}.0", "backbone.fpn.inner_blocks.{0}"),
    (r"neck\.outputs\.(\d+)", "backbone.fpn.layer_blocks.{0}.0", "backbone.fpn.layer_blocks.{0}"),
    (r"neck\.extras\.0", "backbone.fpn.extra_blocks.p6"),
    (r"neck\.extras\.1", "backbone.fpn.extra_blocks.p7"),
    (r"rpn\.conv", "rpn.head.conv.0.0", "rpn.head.conv"),
    (r"rpn\.more_convs\.(\d+)", "rpn.head.conv.{2}.0"),
    (r"rpn\.cls", "rpn.head.cls_logits"),
    (r"rpn\.box", "rpn.head.bbox_pred"),
    (r"roi\.convs\.(\d+)", "roi_heads.box_head.{0}.0"),
    (r"roi\.fc1", "roi_heads.box_head.fc6"),
    (r"roi\.fc2", "roi_heads.box_head.fc7"),
    (r"roi\.cls", "roi_heads.box_predictor.cls_score"),
    (r"roi\.box", "roi_heads.box_predictor.bbox_pred"),
    (
        r"head\.cls_convs\.(\d+)",
        "head.classification_head.conv.{0}.0",
        "head.classification_head.conv.{1}",
    ),
    (
        r"head\.box_convs\.(\d+)",
        "head.regression_head.conv.{0}.0",
        "head.regression_head.conv.{1}",
    ),
    (r"head\.cls_norms\.(\d+)", "head.classification_head.conv.{0}.1"),
    (r"head\.box_norms\.(\d+)", "head.regression_head.conv.{0}.1"),
    (r"head\.cls", "head.classification_head.cls_logits"),
    (r"head\.box", "head.regression_head.bbox_reg"),
)

_SMALLEST = 32  # pixels, the side of the smallest anchors
COCO_NUMBERS = 91  # outputs of a model of COCO: its class numbers go up to 90, with gaps

_PIXELS = (TORCHVISION.pixels, "torchvision's own")
_BODY = "backbone.body."
_FPN = "backbone.fpn."
_SKIPS = (
    Skip(r".*\.num_batches_tracked$", "a counter of torch's BatchNorm"),
    Skip(r"roi_heads\.mask_", "the mask head: masks are not predicted here"),
    Skip(r"roi_heads\.keypoint_", "the keypoint head: keypoints are not predicted here"),
)
_FOREIGN = Skip(r"(?!backbone\.)", "a head that is not ours: backbone and FPN are used")
_CLASSIFIER = Skip(r"fc\.(\d+\.)?(weight|bias)$", "the ImageNet classifier")


def table(names: Iterable[str], prefixed: bool = True) -> list[Entry]:
    """An entry for every array of ours.

    Args:
        names: flat names of a detector, a feature extractor or a backbone.
        prefixed: whether a backbone's keys begin with "backbone.body."; not in ImageNet files.

    Raises:
        UserError: torchvision has no such array.
    """
    every = list(names)
    entries = backbone_entries(every, _BODY if prefixed else "", "bn")
    deformable = next((entry.ours for entry in entries if ".conv_offset." in entry.theirs), None)
    if deformable:
        raise UserError(f"{deformable}: has no name in torchvision")
    others = (name for name in every if not name.startswith("backbone."))
    modules = (*_after_convs(every), *_MODULES)
    return [*entries, *(module_entry(name, modules, "torchvision") for name in others)]


def _after_convs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The linear layers after a region's convolutions, numbered consecutively, as in "v2"."""
    convs = len({name.split(".")[2] for name in names if name.startswith("roi.convs.")})
    if not convs:
        return ()
    # After the convolutions bins are flattened; there is a ReLU between the two linear layers.
    start = "roi_heads.box_head."
    return (r"roi\.fc1", f"{start}{convs + 1}"), (r"roi\.fc2", f"{start}{convs + 3}")


def is_its(shapes: Shapes) -> bool:
    """Whether a detector's keys are torchvision's."""
    return any(key.startswith(_BODY) for key in shapes)


def skips(part: str) -> tuple[Skip, ...]:
    """The additional keys that a file of this part ("detector", "pyramid", "backbone") may have."""
    extra = {"detector": (), "pyramid": (_FOREIGN,), "backbone": (_CLASSIFIER,)}
    return (*_SKIPS, *extra[part])


def read(shapes: Shapes, meta: Mapping[str, Any], file_name: str) -> CheckpointSpec:
    """The architecture behind a file's keys.

    Args:
        shapes: shapes of the file's arrays, without norms in the pyramid.
        meta: the file's other content; "style" and its classes are read.
        file_name: the name of a COCO_V1 file implies that its norms need an eps of 0; "caffe" in
            that of a bare backbone, that it is one of Caffe's.

    Raises:
        UserError: the model is not supported; the message says what it is.
    """
    prefix = _BODY if f"{_BODY}conv1.weight" in shapes else ""
    backbone = read_backbone(shapes, prefix) | {"norm": "frozen_bn"}
    shown: dict[str, Any] = {"backbone": backbone}
    eps = Assumed(1e-5, "torchvision's own; 0 in its COCO_V1 files and what began from one")
    # FCOS of COCO_V1 and the "v2" models were trained with torch's default eps.
    if re.search(r"(rcnn|retinanet)_.*_coco-[0-9a-f]{8}", file_name) and "_v2_" not in file_name:
        eps = Assumed(0.0, "the file's name is that of a COCO_V1 model")
    if not prefix:
        style = style_by_name(file_name, backbone["depth"], "torchvision's own")
        said = meta.get("style")
        if isinstance(said, str) and re.match(r"caffe|pytorch", said) and backbone["depth"] >= 50:
            style = Assumed("caffe" if said[:5] == "caffe" else "pytorch", "the file's metadata")
        pixels = _PIXELS
        if style.value == "caffe":
            pixels = (CAFFE_PIXELS, "those of Caffe's backbones, as its style is")
        assumed = {"backbone.eps": eps, "backbone.style": style}
        return CheckpointSpec("backbone", shown, assumed, pixels=pixels)
    assumed = {
        "convention": Assumed("torchvision", "torchvision's names"),
        "backbone.eps": eps,
    }
    shown |= _pyramid(shapes, assumed)
    head, num_classes, names = _head(shapes, assumed)
    shown |= head
    if head.get("head_norm"):
        assumed["box_loss"] = Assumed("giou", 'torchvision\'s "v2" is trained by it')
    if not head:
        return CheckpointSpec("pyramid", shown, assumed, pixels=_PIXELS)
    # Anchor sides are pixels by level index: with one finer level, half as many strides.
    assumed["anchors.scale"] = Assumed(
        _SMALLEST / 2 ** shown["min_level"],
        f"torchvision's own, {_SMALLEST} pixels on the finest level",
    )
    if "class_ids" in head:
        del shown["class_ids"]
        assumed["class_ids"] = Assumed(
            head["class_ids"], f"{COCO_NUMBERS} outputs are COCO's numbers, 80 of them classes"
        )
    names = names or _named(meta, num_classes)
    if head["detector"] == "retinanet" and not names and num_classes > 1:
        last = num_classes - 1
        why = f"every output is a class; set 1 to {last} where its training counted the background"
        names = _named(meta, last)
        ids: tuple[int, ...] = ()
        if names:
            shown["head_classes"], num_classes, ids = num_classes, last, tuple(range(1, last + 1))
            why = "one name less than outputs: its training counted the background, the first"
        assumed["class_ids"] = Assumed(ids, why)
    return CheckpointSpec("detector", shown, assumed, num_classes, names, _PIXELS)


def _named(meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The classes that a training stored beside its weights, without the background."""
    for key in ("classes", "CLASSES", "class_names", "categories"):
        names = as_names(meta.get(key))
        if names and names[0].strip("_").lower() in ("background", "bg"):
            names = names[1:]
        if names and len(names) == num_classes:
            return names
    return ()


def _pyramid(shapes: Shapes, assumed: dict[str, Assumed]) -> dict[str, Any]:
    """The neck, as the shapes show it; fills `assumed` with what they do not show."""
    kind = ".0" if f"{_FPN}inner_blocks.0.0.weight" in shapes else ""
    laterals = count(shapes, f"{_FPN}inner_blocks.{{}}{kind}.weight")
    if not 1 <= laterals <= 4:
        raise UserError(f"an FPN of {laterals} lateral convolutions under {_FPN}")
    C = shapes[f"{_FPN}inner_blocks.0{kind}.weight"][0]
    shown: dict[str, Any] = {"channels": C, "min_level": 6 - laterals}
    extra = shapes.get(f"{_FPN}extra_blocks.p6.weight")
    if extra is None:
        assumed["extra"] = Assumed("pool", "the neck has no convolutions above P5")
        assumed["max_level"] = Assumed(6, "torchvision's own")
        return shown
    assumed["extra_relu"] = Assumed(True, "torchvision's own")
    return shown | {"extra": "conv_p5" if extra[1] == C else "conv_c5", "max_level": 7}


def _head(
    shapes: Shapes, assumed: dict[str, Assumed]
) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """(settings of the head, classes of the data, their names); ({}, 0, ()) if unsupported.

    Fills `assumed` with what the shapes do not show.
    """
    logits = shapes.get("head.classification_head.cls_logits.weight")
    boxes = shapes.get("head.regression_head.bbox_reg.weight")
    others = (  # a box's centre: FCOS; batch norms in the towers
        "head.classification_head.conv.1.weight",
        "head.regression_head.bbox_ctrness.weight",
        "head.classification_head.conv.0.1.running_mean",
    )
    if logits and boxes and not any(key in shapes for key in others):
        per_cell = max(boxes[0] // 4, 1)
        kind = "0.weight" if "head.classification_head.conv.0.0.weight" in shapes else "weight"
        step = 1 if kind == "0.weight" else 2  # before 0.13: convolution, ReLU, convolution, ...
        convs = sum(f"head.classification_head.conv.{i * step}.{kind}" in shapes for i in range(64))
        shown: dict[str, Any] = {"detector": "retinanet", "head_convs": convs}
        group_norms = "head.classification_head.conv.0.1.weight" in shapes  # RetinaNet "v2"
        shown["head_norm"] = "gn" if group_norms else ""
        assumed["anchors.octaves"] = octaves(per_cell)
        return _with_classes(shown, logits[0] // per_cell, first=0)
    scores = shapes.get("roi_heads.box_predictor.cls_score.weight")
    convs = count(shapes, "roi_heads.box_head.{}.0.weight")  # of the "v2" model
    linear = "fc6", "fc7"
    if convs:
        linear = str(convs + 1), str(convs + 3)
    if scores and f"roi_heads.box_head.{linear[0]}.weight" in shapes:
        shown = {"detector": "faster_rcnn", "fc": scores[1], "roi_convs": convs}
        shown["roi_fcs"] = 1 + (f"roi_heads.box_head.{linear[1]}.weight" in shapes)
        shown["rpn_convs"] = max(count(shapes, "rpn.head.conv.{}.0.weight"), 1)
        deltas = shapes.get("roi_heads.box_predictor.bbox_pred.weight", (0,))
        shown["class_agnostic"] = deltas[0] == 4 and scores[0] > 1
        return _with_classes(shown, scores[0] - 1, first=1)
    return {}, 0, ()


def _with_classes(
    shown: dict[str, Any], outputs: int, first: int
) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Adds the class of each output; `first` is the class number of the first output."""
    if outputs + first != COCO_NUMBERS:
        return shown, outputs, ()
    shown["head_classes"] = outputs
    shown["class_ids"] = tuple(int(category.id) - first for category in COCO_CATEGORIES)
    return shown, len(COCO_CATEGORIES), tuple(category.name for category in COCO_CATEGORIES)
