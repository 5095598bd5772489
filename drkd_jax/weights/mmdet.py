"""mmdetection's names, 2.x and 3.x, for the detectors that are ours.

Source: open-mmlab/mmdetection v3.3.0, mmdet/models/backbones/resnet.py, necks/fpn.py,
dense_heads/{rpn_head,retina_head}.py, roi_heads/bbox_heads/convfc_bbox_head.py,
roi_heads/cascade_roi_head.py; open-mmlab/mmcv mmcv/ops/deform_conv.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from drkd_jax.errors import UserError
from drkd_jax.weights.key_report import Entry, Skip
from drkd_jax.weights.resnet_names import backbone_entries

# Our module, as a pattern, and theirs; "{0}", "{1}" are the pattern's groups.
_MODULES = (
    (r"neck\.laterals\.(\d)", "neck.lateral_convs.{0}.conv"),
    (r"neck\.outputs\.(\d)", "neck.fpn_convs.{0}.conv"),
    (r"rpn\.conv", "rpn_head.rpn_conv"),
    (r"rpn\.cls", "rpn_head.rpn_cls"),
    (r"rpn\.box", "rpn_head.rpn_reg"),
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
    (r"head\.cls", "bbox_head.retina_cls"),
    (r"head\.box", "bbox_head.retina_reg"),
)

_COUNTER = Skip(r".*\.num_batches_tracked$", "a counter that nothing uses")
_SKIPS = (
    _COUNTER,
    Skip(r"roi_head\.mask_head\.", "the mask head: masks are not predicted here"),
    Skip(r"roi_head\.mask_iou_head\.", "the mask head: masks are not predicted here"),
    Skip(r"data_preprocessor\.", "the pictures' mean and std: they stand in the config"),
    Skip(r"ema_\w+$", "mmdetection's EMA hook: a second set of weights, swapped with the used one"),
)
_CLASSIFIER = Skip(r"(head\.)?fc\.(\d+\.)?(weight|bias)$", "the ImageNet classifier")
# Of a training without labels, or of a classifier; a pyramid that is not ours keeps its keys.
_AFTER = Skip(r"(?!backbone\.|neck\.(lateral|fpn)_convs\.)", "outside of the backbone")
_FOREIGN = Skip(r"(?!backbone\.|neck\.)", "a head that is not ours: backbone and FPN are used")


def table(names: Iterable[str], prefix: str = "backbone.") -> list[Entry]:
    """An entry for every array of ours.

    Args:
        names: flat names of a detector, a feature extractor or a backbone.
        prefix: what stands before the backbone's keys; "" in ImageNet files.
    """
    every = list(names)
    laterals = len({name.split(".")[2] for name in every if name.startswith("neck.laterals.")})
    entries = backbone_entries(every, prefix)
    for name in every:
        if name.startswith("backbone."):
            continue
        module, leaf = name.rsplit(".", 1)
        if found := re.fullmatch(r"neck\.extras\.(\d)", module):
            theirs = f"neck.fpn_convs.{laterals + int(found[1])}.conv"
        else:
            theirs = _their_module(module)
        if leaf == "bias":
            entries.append(Entry(name, f"{theirs}.bias", "vector"))
        else:
            entries.append(Entry(name, f"{theirs}.weight", _layout(module)))
    return entries


def skips(part: str) -> tuple[Skip, ...]:
    """The keys that a file of this part ("detector", "pyramid", "backbone") may have besides."""
    extra = {"detector": (), "pyramid": (_FOREIGN,), "backbone": (_CLASSIFIER, _AFTER)}
    return (*_SKIPS, *extra[part])


def _their_module(module: str) -> str:
    for pattern, theirs in _MODULES:
        if found := re.fullmatch(pattern, module):
            return theirs.format(*found.groups())
    raise UserError(f"{module}: has no name in mmdetection")


def _layout(module: str) -> str:
    if not module.startswith("roi."):
        return "conv"
    return "regions" if module.endswith("fc1") else "linear"
