"""A ResNet under the names that torchvision and mmdetection share.

Letters: O outputs, I inputs of a kernel (O, I / groups, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.models.resnet import BLOCKS, EXPANSION
from drkd_jax.models.settings import BASIC_DEPTHS
from drkd_jax.weights.key_report import Entry

Shapes = Mapping[str, tuple[int, ...]]

NORM_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

_STEM = re.compile(r"backbone\.stem\.(conv|norm)\.(\w+)$")
_BLOCK = re.compile(
    r"backbone\.stages\.(\d)\.(\d+)\.(convs|norms|shortcut|shortcut_norm)(?:\.(\d))?((?:\.\w+)+)$"
)


def backbone_entries(names: Iterable[str], prefix: str) -> list[Entry]:
    """An entry for every array of a backbone.

    Args:
        names: our flat names; those outside of "backbone." are left out.
        prefix: what stands before "conv1.weight": "backbone.", "backbone.body." or nothing.
    """
    mine = [name for name in names if name.startswith("backbone.")]
    norm = "bn" if any(name.endswith(".mean") for name in mine) else "gn"
    return [_entry(name, prefix, norm) for name in mine]


def _entry(ours: str, prefix: str, norm: str) -> Entry:
    if found := _STEM.match(ours):
        part, leaf = found.groups()
        if part == "conv":
            return Entry(ours, f"{prefix}conv1.weight", "conv")
        return Entry(ours, f"{prefix}{norm}1.{NORM_LEAVES[leaf]}", "vector")
    found = _BLOCK.match(ours)
    if found is None:
        raise UserError(f"{ours}: has no name in other libraries (is its norm folded?)")
    stage, block, part, number, leaf = found.groups()
    start = f"{prefix}layer{int(stage) + 1}.{block}."
    nth = int(number or 0) + 1
    if part == "norms":
        return Entry(ours, f"{start}{norm}{nth}.{NORM_LEAVES[leaf[1:]]}", "vector")
    if part == "shortcut_norm":
        return Entry(ours, f"{start}downsample.1.{NORM_LEAVES[leaf[1:]]}", "vector")
    if part == "shortcut":
        return Entry(ours, f"{start}downsample.0.weight", "conv")
    if leaf.startswith(".offset."):
        end, layout = ("weight", "conv") if leaf.endswith("kernel") else ("bias", "vector")
        older = (f"{start}conv{nth}_offset.{end}",)  # of mmdetection 1.x, kept by its upgrade
        return Entry(ours, f"{start}conv{nth}.conv_offset.{end}", layout, older)
    return Entry(ours, f"{start}conv{nth}.weight", "conv")


def read_backbone(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Depth, width, groups and deformable convolutions, as they show in the shapes.

    Raises:
        UserError: blocks that no ResNet of ours has.
    """
    layer = re.compile(re.escape(prefix) + r"layer(\d+)\.(\d+)\.conv1\.weight$")
    counts = [0] * 4
    for key in shapes:
        if found := layer.match(key):
            stage, block = int(found[1]), int(found[2])
            if not 1 <= stage <= 4:
                raise UserError(f"{key}: a ResNet of ours has four stages")
            counts[stage - 1] = max(counts[stage - 1], block + 1)
    bottleneck = f"{prefix}layer1.0.conv3.weight" in shapes
    depths = [
        depth
        for depth, blocks in BLOCKS.items()
        if tuple(blocks) == tuple(counts) and (depth not in BASIC_DEPTHS) == bottleneck
    ]
    if not depths or f"{prefix}conv1.weight" not in shapes:
        raise UserError(
            f"stages of {', '.join(map(str, counts))} {'bottleneck' if bottleneck else 'basic'} "
            f"blocks under {prefix or 'the root'}: no ResNet or ResNeXt of "
            f"{', '.join(map(str, BLOCKS))} layers"
        )
    stem = shapes[f"{prefix}conv1.weight"][0]
    last, factor = ("conv3", EXPANSION) if bottleneck else ("conv2", 1)
    width = shapes[f"{prefix}layer1.0.{last}.weight"][0] // factor
    settings: dict[str, Any] = {"depth": depths[0], "width": width, "groups": 1, "dcn": ""}
    if stem != width:
        settings["stem"] = stem
    middle = shapes.get(f"{prefix}layer1.0.conv2.weight", ())
    if bottleneck and len(middle) == 4 and middle[1] and middle[0] % middle[1] == 0:
        groups = middle[0] // middle[1]
        if groups > 1:
            settings |= {"groups": groups, "group_width": middle[1] * 64 // max(width, 1)}
    for name in (f"{prefix}layer2.0.conv2.conv_offset", f"{prefix}layer2.0.conv2_offset"):
        if f"{name}.weight" in shapes:
            outputs = shapes[f"{name}.weight"][0]
            if outputs not in (18, 27):
                raise UserError(
                    f"{name}.weight has {outputs} outputs; 18 (version 1) and 27 (version 2), "
                    "deformable convolutions of one group, can be read"
                )
            settings["dcn"] = "v1" if outputs == 18 else "v2"
    return settings
