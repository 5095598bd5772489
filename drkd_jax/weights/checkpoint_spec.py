"""What a foreign file says about its detector, and what it does not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import Pixels
from drkd_jax.models.settings import PyramidSettings

# Settings of every pyramid that only a head reads.
_HEADS = {"head_std", "head_classes", "class_ids", "delta_stds"}


class Assumed(NamedTuple):
    """A setting that no shape shows."""

    value: Any
    why: str


class PictureSize(NamedTuple):
    """Pictures of a test, in pixels: their shorter side, and the longer one at most.

    Where every picture is stretched to one shape: its height and width.
    """

    shorter: int
    longer: int
    stretch: bool = False


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """The architecture of a file.

    Attributes:
        part: "detector", "pyramid" (backbone and FPN) or "backbone".
        shown: settings that show in names and shapes, nested as in a config.
        assumed: dotted key -> its default and where that comes from.
        num_classes: of the data; 0 without a head.
        class_names: of the data, where known.
        pixels: what the network reads, and where that is known from.
        unbuilt: what the file's own config says of its head that cannot be built here.
        neck_eps: of the batch norms in the pyramid, which are folded.
        size: of the pictures that the file's own config tests on; None where it does not say.
    """

    part: str
    shown: Mapping[str, Any]
    assumed: Mapping[str, Assumed]
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    pixels: tuple[Pixels, str] = (Pixels(), "the usual ones")
    unbuilt: tuple[str, ...] = ()
    neck_eps: float = 1e-5
    size: PictureSize | None = None

    def without_head(self) -> CheckpointSpec:
        """Backbone and pyramid alone."""
        fields = {field.name for field in dataclasses.fields(PyramidSettings)}
        shown = {key: value for key, value in self.shown.items() if key in fields}
        assumed = {
            key: item for key, item in self.assumed.items() if key.split(".")[0] in fields - _HEADS
        }
        shown = {key: value for key, value in shown.items() if key not in _HEADS}
        return dataclasses.replace(
            self, part="pyramid", shown=shown, assumed=assumed, num_classes=0
        )

    def data(self, said: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What goes under `data` of a file of ours: the pixels, by the keys of a config.

        Args:
            said: of the user, which may leave anything out.
            where: what a message calls the file.

        Raises:
            UserError: a key that says nothing about pixels.
        """
        own = dataclasses.asdict(self.pixels[0])
        for key in said:
            if key not in own:
                raise UserError(f"{where}: data.{key} is not one of {', '.join(own)}")
        if self.size is None:
            return own | dict(said)
        sizes: dict[str, Any] = {"shorter": self.size.shorter, "longer": self.size.longer}
        if self.size.stretch:
            own["resize"] = "stretch"
        return sizes | own | dict(said)

    def settings(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The model's settings: what shows, then what a config says, then the defaults.

        Args:
            config: model settings of the user, which may leave anything out.
            where: what a message calls the file.

        Raises:
            UserError: the config says other than the file shows, with every such key.
        """
        said, shown = _flat(config), _flat(self.shown)
        wrong = [
            f"{key} is {said[key]!r} in the config and {shown[key]!r} in the file"
            for key in said.keys() & shown.keys()
            if said[key] != shown[key] and not _same_norm(key, said[key], shown[key])
        ]
        if wrong:
            raise UserError(f"{where}: {'; '.join(sorted(wrong))}")
        return _nested({key: item.value for key, item in self.assumed.items()} | shown | said)

    def lines(self, config: Mapping[str, Any]) -> list[str]:
        """What is printed: the part, what shows, and what was taken on trust."""
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
                f"  pictures of {self.size.shorter} x {self.size.longer} {what}: "
                "the config in the file"
            )
        return lines


def count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many of the keys `pattern` with 0, 1, ... in its place there are."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(str, value[:3]))}, ..., {value[-1]})"
    return "none" if value == "" else str(value)


def _same_norm(key: str, said: Any, shown: Any) -> bool:
    """Batch norm's arrays serve with constant statistics and without."""
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
