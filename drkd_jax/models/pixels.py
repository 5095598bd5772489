"""Turns the loader's images into a network's input; each network has its own format.

Letters: B images, H W pixels of the canvas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8

from drkd_jax.data.config import PIXEL_KEYS
from drkd_jax.errors import UserError
from drkd_jax.ops.images import normalise, prepare
from drkd_jax.types import Array, Batch, Targets

_CHANNELS = ("rgb", "bgr")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The input format of a network.

    Attributes:
        mean: subtracted from the colours, 0..255, in the order of ``channels``.
        std: what the colours are divided by afterwards.
        dtype: of the input.
        channels: "rgb" or "bgr", the order in which the network reads the colours.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: Any = jnp.float32
    channels: str = "rgb"

    def __str__(self) -> str:
        return f"{self.channels} - {self.mean} over {self.std}"

    def prepare(self, batch: Batch) -> tuple[Float[Array, "B H W 3"], Targets]:
        """The network's input and the targets, see `ops.images.prepare`."""
        return prepare(batch, self.mean, self.std, self.dtype, self.channels)

    def normalise(
        self,
        images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
        sizes: Int[Array, "B 2"],
    ) -> Float[Array, "B H W 3"]:
        """The network's input alone, for images that must not be mirrored."""
        return normalise(images, sizes, self.mean, self.std, self.dtype, self.channels)


def read_pixels(data: Mapping[str, Any], dtype: Any, where: str = "config.data") -> Pixels:
    """A network's input format from `mean`, `std` and `channels` (default "rgb").

    Args:
        data: a section of a config; other keys are ignored.
        dtype: of the input.
        where: the section's name in messages.

    Raises:
        UserError: a value that cannot normalise an image.
    """
    mean, std = (_three(data.get(key), f"{where}.{key}") for key in ("mean", "std"))
    if min(std) <= 0:
        raise UserError(f"{where}.std = {std}: every number must be above 0")
    channels = data.get("channels", "rgb")
    if channels not in _CHANNELS:
        raise UserError(f"{where}.channels = {channels!r}: one of {', '.join(_CHANNELS)}")
    return Pixels(mean, std, jnp.dtype(dtype), channels)


def _three(value: Any, where: str) -> tuple[float, float, float]:
    error = UserError(f"{where} = {value!r}: three numbers, one per colour")
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise error
    try:
        first, second, third = map(float, value)
    except (TypeError, ValueError, OverflowError):
        raise error from None
    if not all(map(math.isfinite, (first, second, third))):
        raise error
    return first, second, third


def only_pixels(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a section that may describe nothing but a network's input format.

    Raises:
        UserError: there is another key.
    """
    for key in data:
        if key not in PIXEL_KEYS:
            raise UserError(f"{where}.{key}: no such key; there are {', '.join(PIXEL_KEYS)}")
    return dict(data)
