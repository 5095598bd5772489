"""Names of torchvision's detectors, and of its ResNets, for our arrays.

Its Faster R-CNN and RetinaNet with a ResNet and an FPN; the same table names the arrays of its
ImageNet ResNets and ResNeXts (``classifier_entries``), whose keys have no prefix.

The order of classes is no matter of names: a detector with ``convention="torchvision"`` keeps the
background first, as the file does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from drkd_jax.weights.key_report import Entry, Skip

# Ours, theirs, the layout of a kernel, and the name before torchvision 0.13 wrapped convolutions.
# A number of ours stands in theirs as {0}, {1}, ..; one more as {0+}; twice as {0*2}.
_MODULES: tuple[tuple[str, str, str, str | None], ...] = (
    (r"backbone\.stem\.conv", "backbone.body.conv1", "conv", None),
    (r"backbone\.stem\.norm", "backbone.body.bn1", "", None),
    (
        r"backbone\.stages\.(\d+)\.(\d+)\.convs\.(\d+)",
        "backbone.body.layer{0+}.{1}.conv{2+}",
        "conv",
        None,
    ),
    (
        r"backbone\.stages\.(\d+)\.(\d+)\.norms\.(\d+)",
        "backbone.body.layer{0+}.{1}.bn{2+}",
        "",
        None,
    ),
    (
        r"backbone\.stages\.(\d+)\.(\d+)\.shortcut",
        "backbone.body.layer{0+}.{1}.downsample.0",
        "conv",
        None,
    ),
    (
        r"backbone\.stages\.(\d+)\.(\d+)\.shortcut_norm",
        "backbone.body.layer{0+}.{1}.downsample.1",
        "",
        None,
    ),
    (
        r"neck\.laterals\.(\d+)",
        "backbone.fpn.inner_blocks.{0}.0",
        "conv",
        "backbone.fpn.inner_blocks.{0}",
    ),
    (
        r"neck\.outputs\.(\d+)",
        "backbone.fpn.layer_blocks.{0}.0",
        "conv",
        "backbone.fpn.layer_blocks.{0}",
    ),
    (r"neck\.extras\.0", "backbone.fpn.extra_blocks.p6", "conv", None),
    (r"neck\.extras\.1", "backbone.fpn.extra_blocks.p7", "conv", None),
    (r"rpn\.conv", "rpn.head.conv.0.0", "conv", "rpn.head.conv"),
    (r"rpn\.cls", "rpn.head.cls_logits", "conv", None),
    (r"rpn\.box", "rpn.head.bbox_pred", "conv", None),
    (r"roi\.fc1", "roi_heads.box_head.fc6", "regions", None),
    (r"roi\.fc2", "roi_heads.box_head.fc7", "linear", None),
    (r"roi\.cls", "roi_heads.box_predictor.cls_score", "linear", None),
    (r"roi\.box", "roi_heads.box_predictor.bbox_pred", "linear", None),
    (
        r"head\.cls_convs\.(\d+)",
        "head.classification_head.conv.{0}.0",
        "conv",
        "head.classification_head.conv.{0*2}",
    ),
    (
        r"head\.box_convs\.(\d+)",
        "head.regression_head.conv.{0}.0",
        "conv",
        "head.regression_head.conv.{0*2}",
    ),
    (r"head\.cls", "head.classification_head.cls_logits", "conv", None),
    (r"head\.box", "head.regression_head.bbox_reg", "conv", None),
)
_OF_KERNELS = {"kernel": "weight", "bias": "bias"}
_OF_NORMS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_NUMBER = re.compile(r"\{(\d)(\+|\*2)?\}")

SKIPS = (Skip(r".*\.num_batches_tracked$", "a counter of torch's BatchNorm"),)
CLASSIFIER_SKIPS = (
    Skip(r".*num_batches_tracked$", "a counter of torch's BatchNorm"),
    Skip(r"fc\.(\d+\.)?(weight|bias)$", "the ImageNet classifier"),
)


def entry(ours: str) -> Entry:
    """Torchvision's name and layout for one array of ours.

    Args:
        ours: parts of the path joined by dots: ``backbone.stages.0.2.convs.1.kernel``.

    Raises:
        KeyError: torchvision has no such array.
    """
    module, _, leaf = ours.rpartition(".")
    for pattern, theirs, layout, older in _MODULES:
        found = re.fullmatch(pattern, module)
        last = (_OF_KERNELS if layout else _OF_NORMS).get(leaf)
        if found and last:
            names = [_fill(name, found.groups()) for name in (theirs, older) if name]
            first, *others = (f"{name}.{last}" for name in names)
            return Entry(ours, first, layout if leaf == "kernel" else "vector", tuple(others))
    raise KeyError(ours)


def entries(names: Iterable[str]) -> tuple[Entry, ...]:
    """The table of a detector's arrays.

    Raises:
        KeyError: as `entry`.
    """
    return tuple(entry(name) for name in names)


def classifier_entries(names: Iterable[str]) -> tuple[Entry, ...]:
    """The table of the backbone's arrays in one of torchvision's ImageNet classifiers.

    Args:
        names: those of ours that begin with ``backbone``; others are left out.

    Raises:
        KeyError: as `entry`.
    """
    found = (entry(name) for name in names if name.startswith("backbone."))
    return tuple(e._replace(theirs=e.theirs.removeprefix("backbone.body.")) for e in found)


def _fill(template: str, numbers: tuple[str, ...]) -> str:
    def value(found: re.Match[str]) -> str:
        number = int(numbers[int(found[1])])
        return str({None: number, "+": number + 1, "*2": 2 * number}[found[2]])

    return _NUMBER.sub(value, template)
