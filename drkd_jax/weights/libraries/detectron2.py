"""Detectron2's ResNet and FPN: its names, and the architecture behind them.

Its heads are not read, since their class order and box coding differ.

Source: facebookresearch/detectron2 detectron2/modeling/backbone/{resnet,fpn}.py,
detectron2/config/defaults.py (pixels, STRIDE_IN_1X1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE2_PIXELS, CAFFE_PIXELS, Pixels
from drkd_jax.weights.libraries.checkpoint_spec import (
    Assumed,
    CheckpointSpec,
    Shapes,
    backbone_entries,
    read_backbone,
)
from drkd_jax.weights.libraries.key_report import Entry, Skip

_BODY = "backbone.bottom_up."
_STARTS = (_BODY, "backbone.", "")  # with an FPN, a detector without one, a bare backbone
_SKIPS = (
    Skip(r".*\.num_batches_tracked$", "a counter of torch's BatchNorm"),
    Skip(r"pixel_(mean|std)$", "the images' mean and std: they are read as settings"),
)
_FOREIGN = Skip(r"(?!backbone\.)", "a head that is not ours: backbone and FPN are used")
_CLASSIFIER = Skip(r"(linear|fc\d*|stem\.fc)\.(weight|bias)$", "the ImageNet classifier")


def is_its(shapes: Shapes) -> bool:
    """Whether keys are Detectron2's, or those of its bare backbone."""
    return any(f"{start}res2.0.conv1.weight" in shapes for start in _STARTS)


def is_caffe2(keys: Iterable[str]) -> bool:
    """Whether names are the blobs of Detectron's own Caffe2 files (R-50.pkl of MSRA)."""
    return any(re.match(r"(gpu_0/)?res2_0_branch2a_(w|bn_s)$", key) for key in keys)


def skips(part: str) -> tuple[Skip, ...]:
    """The additional keys that a file of this part may have."""
    return (*_SKIPS, _CLASSIFIER if part == "backbone" else _FOREIGN)


def table(names: Iterable[str], prefixed: bool) -> list[Entry]:
    """An entry for every array of a backbone and pyramid of ours.

    Raises:
        UserError: an array of a head.
    """
    every = list(names)
    entries = [
        entry._replace(theirs=_their_name(entry.theirs, _BODY if prefixed else ""), older=())
        for entry in backbone_entries(every, "")
    ]
    laterals = len({name.split(".")[2] for name in every if name.startswith("neck.laterals.")})
    for name in every:
        if name.startswith("backbone."):
            continue
        module, leaf = name.rsplit(".", 1)
        found = re.fullmatch(r"neck\.(laterals|outputs|extras)\.(\d)", module)
        if not found:
            raise UserError(f"{name}: heads of ours have no names in Detectron2")
        number = int(found[2])
        theirs = {
            "laterals": f"backbone.fpn_lateral{6 - laterals + number}",
            "outputs": f"backbone.fpn_output{6 - laterals + number}",
            "extras": f"backbone.top_block.p{6 + number}",
        }[found[1]]
        last, layout = ("bias", "vector") if leaf == "bias" else ("weight", "conv")
        entries.append(Entry(name, f"{theirs}.{last}", layout))
    return entries


def read(shapes: Shapes, arrays: Mapping[str, np.ndarray]) -> CheckpointSpec:
    """The architecture behind a file's keys.

    Args:
        shapes: shapes of the file's arrays.
        arrays: its arrays, of which `pixel_mean` and `pixel_std` are read.

    Raises:
        UserError: the model is not supported.
    """
    prefix = next((start for start in _STARTS if f"{start}stem.conv1.weight" in shapes), "")
    renamed = {name: shape for key, shape in shapes.items() if (name := _torch_name(key, prefix))}
    backbone = read_backbone(renamed, "")
    if prefix == _STARTS[1]:
        raise UserError(
            "a detector of Detectron2 without FPN, whose last stage may be dilated (DC5), which "
            "its arrays do not show; take one with an FPN, or an ImageNet file of that backbone"
        )
    norm = "frozen_bn" if "bn1.running_var" in renamed else "gn"
    shown: dict[str, Any] = {"backbone": backbone | {"norm": norm}}
    pixels, why = _pixels(arrays, backbone["groups"])
    style = "pytorch" if pixels.channels == "rgb" or backbone["groups"] > 1 else "caffe"
    assumed = {
        "backbone.eps": Assumed(1e-5, "Detectron2's own"),
        "backbone.style": Assumed(
            style,
            "Detectron2's own, the stride in the 1x1 convolution"
            if style == "caffe"
            else "as its networks on RGB images and its ResNeXts are",
        ),
    }
    laterals = [n for n in range(2, 6) if f"backbone.fpn_lateral{n}.weight" in shapes]
    if not laterals:
        return CheckpointSpec("backbone", shown, assumed, pixels=(pixels, why))
    if laterals != list(range(laterals[0], 6)):
        raise UserError(f"an FPN on the levels {', '.join(map(str, laterals))}")
    channels = shapes["backbone.fpn_lateral5.weight"][0]
    shown |= {"channels": channels, "min_level": laterals[0]}
    extra = shapes.get("backbone.top_block.p6.weight")
    if extra is None:
        assumed["extra"] = Assumed("pool", "the pyramid has no convolutions above P5")
        assumed["max_level"] = Assumed(6, "Detectron2's own")
    else:
        from_c5 = extra[1] == shapes["backbone.fpn_lateral5.weight"][1]
        shown |= {"extra": "conv_c5" if from_c5 else "conv_p5", "max_level": 7}
        assumed["extra_relu"] = Assumed(True, "Detectron2's own")
    return CheckpointSpec("pyramid", shown, assumed, pixels=(pixels, why))


def _pixels(arrays: Mapping[str, np.ndarray], groups: int) -> tuple[Pixels, str]:
    """The network's input format; the mean of red is the largest of the three."""
    usual = CAFFE2_PIXELS if groups > 1 else CAFFE_PIXELS
    mean, std = (
        tuple(round(float(x), 4) for x in np.ravel(arrays[key])) if key in arrays else ()
        for key in ("pixel_mean", "pixel_std")
    )
    if len(mean) != 3 or len(std) != 3:
        return usual, "Detectron2's own"
    channels = "rgb" if mean[0] > mean[2] else "bgr"
    return Pixels(mean, std, channels), "the file's pixel_mean and pixel_std"  # type: ignore[arg-type]


def _torch_name(key: str, prefix: str) -> str:
    """The name in torchvision of a key of a backbone; "" for another key."""
    if not key.startswith(prefix):
        return ""
    key = key.removeprefix(prefix)
    if found := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", key):
        return f"bn1.{found[2]}" if found[1] else f"conv1.{found[2]}"
    found = re.fullmatch(r"res(\d+)\.(\d+)\.(conv(\d)|shortcut|conv2_offset)\.(norm\.)?(\w+)", key)
    if not found:
        return ""
    stage, block, part, number, norm, leaf = found.groups()
    start = f"layer{int(stage) - 1}.{block}"
    if part == "shortcut":
        return f"{start}.downsample.{1 if norm else 0}.{leaf}"
    return f"{start}.bn{number}.{leaf}" if norm else f"{start}.{part}.{leaf}"


def _their_name(key: str, prefix: str) -> str:
    """The inverse of `_torch_name`."""
    parts = key.split(".")
    if parts[0] in ("conv1", "bn1", "gn1"):
        norm = "" if parts[0] == "conv1" else "norm."
        return f"{prefix}stem.conv1.{norm}{parts[1]}"
    start = f"{prefix}res{int(parts[0].removeprefix('layer')) + 1}.{parts[1]}"
    module, rest = parts[2], parts[3:]
    if module == "downsample":
        return f"{start}.shortcut.{'norm.' if rest[0] == '1' else ''}{rest[1]}"
    if rest[0] == "conv_offset":
        return f"{start}.{module}_offset.{rest[1]}"
    if found := re.fullmatch(r"[bg]n(\d)", module):
        return f"{start}.conv{found[1]}.norm.{rest[0]}"
    return f"{start}.{module}.{rest[0]}"
