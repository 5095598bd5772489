"""What a foreign file shows of its detector and what is assumed; the ResNet of all libraries.

Letters: O outputs, I inputs of a kernel (O, I / groups, h, w).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from drkd_jax.data.transforms import RULES
from drkd_jax.errors import UserError
from drkd_jax.models.backbone_settings import BASIC_DEPTHS
from drkd_jax.models.conventions import Pixels
from drkd_jax.models.pixels import read_pixels
from drkd_jax.models.resnet import BLOCKS, EXPANSION
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.weights.libraries.key_report import Entry

Shapes = Mapping[str, tuple[int, ...]]

NORM_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

#: The name of an output that is not a class; torchvision's own COCO lists use it, too.
UNUSED = "N/A"

_STEM = re.compile(r"backbone\.stem\.(conv|norm)\.(\w+)$")
_BLOCK = re.compile(
    r"backbone\.stages\.(\d)\.(\d+)\.(convs|norms|shortcut|shortcut_norm)(?:\.(\d))?((?:\.\w+)+)$"
)
_LONGEST = 1000  # letters of a class's name
# Settings of all pyramids that only heads use.
_HEADS = {"head_std", "head_classes", "class_ids", "delta_stds"}


class Assumed(NamedTuple):
    """A setting that no shape shows, and the origin of its assumed value."""

    value: Any
    why: str


class ImageSize(NamedTuple):
    """The size of test images in pixels: the shorter side, and a limit for the longer one.

    If every image is stretched to one shape: its height and width.
    """

    shorter: int
    longer: int
    stretch: bool = False


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """The architecture of a file.

    Attributes:
        part: "detector", "pyramid" (backbone and FPN) or "backbone".
        shown: settings that names and shapes show, nested as in a config.
        assumed: dotted key -> its default and where that comes from.
        num_classes: number of classes of the data; 0 without a head.
        class_names: names of the data's classes, if known.
        pixels: the network's input format, and where that is known from.
        unbuilt: settings of its head in the file's own config that cannot be built here.
        neck_eps: eps of the batch norms in the pyramid, which are folded.
        size: size of the test images in the file's own config; None if it does not say.
        notes: messages about how its config treats images in another way, of little effect.
        head_notes: the same about what its head does.
    """

    part: str
    shown: Mapping[str, Any]
    assumed: Mapping[str, Assumed]
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    pixels: tuple[Pixels, str] = (Pixels(), "the usual ones")
    unbuilt: tuple[str, ...] = ()
    neck_eps: float = 1e-5
    size: ImageSize | None = None
    notes: tuple[str, ...] = ()
    head_notes: tuple[str, ...] = ()

    def without_head(self) -> CheckpointSpec:
        """Backbone and pyramid alone."""
        fields = {field.name for field in dataclasses.fields(PyramidSettings)}
        shown = {key: value for key, value in self.shown.items() if key in fields}
        assumed = {
            key: item for key, item in self.assumed.items() if key.split(".")[0] in fields - _HEADS
        }
        shown = {key: value for key, value in shown.items() if key not in _HEADS}
        return dataclasses.replace(
            self, part="pyramid", shown=shown, assumed=assumed, num_classes=0, head_notes=()
        )

    def data(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """The values for `data` of a file of ours: the input format, by the keys of a config.

        Args:
            said: the user's values; any may be missing.

        Raises:
            UserError: a key does not concern the input format, or a value cannot be used.
        """
        own = dataclasses.asdict(self.pixels[0])
        for key in said:
            if key not in own:
                raise UserError(f"data.{key} is not one of {', '.join(own)}")
        # Here and not where the file is used, which may be weeks later and on another machine.
        read_pixels(own | dict(said), "float32", "data")
        if said.get("resize", RULES[0]) not in RULES:
            raise UserError(f"data.resize = {said['resize']!r}: one of {', '.join(RULES)}")
        if self.size is None:
            return own | dict(said)
        sizes: dict[str, Any] = {"shorter": self.size.shorter, "longer": self.size.longer}
        if self.size.stretch:
            own["resize"] = "stretch"
        return sizes | own | dict(said)

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The model's settings: what the file shows, then the user's config, then the defaults.

        Args:
            config: model settings of the user; any may be missing.

        Raises:
            UserError: the config contradicts the file; the message names every such key.
        """
        said, shown = _flat(config), _flat(self.shown)
        wrong = [
            f"{key} is {said[key]!r} in the config and {shown[key]!r} in the file"
            for key in said.keys() & shown.keys()
            if said[key] != shown[key] and not _same_norm(key, said[key], shown[key])
        ]
        if wrong:
            raise UserError("; ".join(sorted(wrong)))
        return _nested({key: item.value for key, item in self.assumed.items()} | shown | said)

    def lines(self, config: Mapping[str, Any]) -> list[str]:
        """Messages: the part, what the file shows, and what was assumed."""
        shown = ", ".join(f"{key} {_short(value)}" for key, value in _flat(self.shown).items())
        said = _flat(config)
        lines = [
            f"{self.part}: {shown}" + (f", {self.num_classes} classes" * bool(self.num_classes))
        ]
        for key, item in self.assumed.items():
            value, why = (said[key], "as asked for") if key in said else item
            lines.append(f"  {key} = {_short(value)}: {why}")
        for key, value in dataclasses.asdict(self.pixels[0]).items():
            if f"data.{key}" in said:
                value, why = said[f"data.{key}"], "as asked for"
            elif key == "resize" and self.size and self.size.stretch:
                value, why = "stretch", "the config in the file (Resize with keep_ratio=False)"
            else:
                why = self.pixels[1]
            lines.append(f"  data.{key} = {_short(value)}: {why}")
        if self.size:
            what = "high and wide" if self.size.stretch else "in a test"
            lines.append(
                f"  images of {self.size.shorter} x {self.size.longer} {what}: "
                "the config in the file"
            )
        return [*lines, *(f"  {note}" for note in self.notes + self.head_notes)]


def backbone_entries(names: Iterable[str], prefix: str, norm: str = "") -> list[Entry]:
    """An entry for every array of a backbone.

    Args:
        names: our flat names; those outside "backbone." are left out.
        prefix: what precedes "conv1.weight": "backbone.", "backbone.body." or nothing.
        norm: "bn", "gn", or "" to detect it by running statistics among the names.
    """
    mine = [name for name in names if name.startswith("backbone.")]
    norm = norm or ("bn" if any(name.endswith(".mean") for name in mine) else "gn")
    return [_entry(name, prefix, norm) for name in mine]


def module_entry(name: str, modules: Iterable[tuple[str, ...]], library: str) -> Entry:
    """The entry of an array of a pyramid or head.

    Args:
        name: our name.
        modules: our module as a pattern, its name there, and its name in older files if that
            differs. In names {0} stands for the pattern's number, {1} for twice that, and {2} for
            that plus one.
        library: the library's name in messages.

    Raises:
        UserError: the library has no such module.
    """
    module, leaf = name.rsplit(".", 1)
    last = "bias" if leaf == "bias" else "weight"
    layout = "vector" if leaf in ("bias", "scale") else "conv"
    if layout == "conv" and re.match(r"roi\.(\d+\.)?(fc|cls|box)", module):
        layout = "regions" if module.endswith("fc1") else "linear"
    for pattern, *templates in modules:
        if found := re.fullmatch(pattern, module):
            number = int(found[1]) if found.lastindex else 0
            numbers = number, 2 * number, number + 1
            theirs, *older = (f"{each.format(*numbers)}.{last}" for each in templates)
            return Entry(name, theirs, layout, tuple(older))
    raise UserError(f"{name}: has no name in {library}")


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
        older = (f"{start}conv{nth}_offset.{end}",)  # of mmdetection 1.x, kept by its upgrade tool
        return Entry(ours, f"{start}conv{nth}.conv_offset.{end}", layout, older)
    return Entry(ours, f"{start}conv{nth}.weight", "conv")


def read_backbone(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Depth, width, groups and deformable convolutions, as the shapes show them.

    Raises:
        UserError: the blocks are not those of a supported ResNet.
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
    known = [depth for depth, blocks in BLOCKS.items() if blocks == tuple(counts)]
    depths = [depth for depth in known if (depth not in BASIC_DEPTHS) == bottleneck]
    stages = ", ".join(map(str, counts))
    if not counts[3] and any(blocks[:3] == tuple(counts[:3]) for blocks in BLOCKS.values()):
        words = "take a detector with an FPN, or an ImageNet file of that backbone"
        raise UserError(f"its backbone ends at C4 (stages of {stages} blocks); {words}")
    if not depths or f"{prefix}conv1.weight" not in shapes:
        raise UserError(
            f"stages of {stages} {'bottleneck' if bottleneck else 'basic'} blocks under "
            f"{prefix or 'the root'}: no ResNet or ResNeXt of {', '.join(map(str, BLOCKS))} layers"
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


def count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many consecutive keys there are of `pattern` with 0, 1, ... filled in."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def octaves(per_cell: int) -> Assumed:
    """Assumed sizes of anchors: arrays only show how many anchors a cell has, of all ratios."""
    return Assumed(max(per_cell // 3, 1), f"{per_cell} anchors per cell, of three ratios as usual")


def style_by_name(file_name: str, depth: int, otherwise: str) -> Assumed:
    """The position of the stride in a bottleneck block, if only a file's name tells it."""
    if depth >= 50 and re.search(r"caffe|msra", file_name):
        return Assumed("caffe", "the stride in the 1x1 convolution, by the file's name")
    return Assumed("pytorch", otherwise)


def as_names(value: Any) -> tuple[str, ...]:
    """A tuple of class names from a file's value; () if it is anything else."""
    if isinstance(value, str) and value[:1] in ("[", "("):  # the text fields of safetensors
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    if isinstance(value, str):  # ("nut") for ("nut",), or the path of a list
        return (value,) if value and not value.endswith(".txt") else ()
    if not isinstance(value, (list, tuple)):
        return ()
    if not all(isinstance(name, str) and len(name) <= _LONGEST for name in value):
        return ()
    return tuple(value)


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(str, value[:3]))}, ..., {value[-1]})"
    return "none" if value == "" else str(value)


def _same_norm(key: str, said: Any, shown: Any) -> bool:
    """Whether norms agree: batch norm arrays fit both "bn" and "frozen_bn"."""
    return key == "backbone.norm" and {said, shown} <= {"bn", "frozen_bn"}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
