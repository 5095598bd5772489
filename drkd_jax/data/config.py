"""The settings of the input path."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from operator import index
from typing import Any

from drkd_jax.data.decode import EXIF
from drkd_jax.data.transforms import RULES
from drkd_jax.errors import UserError, faults_of
from drkd_jax.values import typed

#: The keys of `config.data` that belong to a network, not to the loader.
PIXEL_KEYS = ("mean", "std", "channels")
_NOT_PIPELINE = ("train", "val", *PIXEL_KEYS)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def reading_threads() -> int:
    """One thread per core, from 4 to 16.

    Each holds a batch in memory, so large machines do not get one for every core. The best number
    on such machines was not measured.
    """
    return min(max(cores(), 4), 16)


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How images become batches.

    Attributes:
        batch_size: images per batch over all hosts.
        canvases: (height, width) in pixels; each batch has one of them.
        shorter: pixels of the shorter side after resizing...
        longer: ...unless the longer side would exceed this. With ``resize = "stretch"`` these are
            the height and the width.
        max_boxes: rows G for ground truth; further boxes are left out, counted, and reported.
        flip: probability that a training image is mirrored.
        scale_jitter: least and largest factor of a training image's sides after resizing; what
            exceeds its canvas is cropped at random, see ``transforms.window``.
        colour_jitter: strength of random brightness, contrast and saturation, 0 to 1.
        seed: seed of everything random.
        num_threads: reading threads of each process, by default ``reading_threads``; 0 reads in
            the caller's thread.
        num_workers: reading processes; 0 reads in this one.
        prefetch: batches read ahead; more threads than this would be idle. By default
            ``reading_threads``; `read_pipeline` uses ``num_threads`` if a config sets more.
        drop_empty: leave out training images without a box, or with a side under 32 pixels.
        resize: the library whose rule is used for resizing, or "stretch", see
            ``transforms.RULES``. With "torchvision" batches are floats, four times the bytes.
        on_error: "stop" at an image that cannot be read, or "skip" it; see ``skipped.py``.
        exif: "auto", "stored" or "turned": the pixels that the boxes of a rotated photo refer to;
            see ``decode_image``.
        depth: bits that the numbers of 16-bit images use, 8 to 16; 0: all 16.
    """

    batch_size: int
    canvases: tuple[tuple[int, int], ...]
    shorter: int
    longer: int
    max_boxes: int = 100
    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    colour_jitter: float = 0.0
    seed: int = 0
    num_threads: int = dataclasses.field(default_factory=reading_threads)
    num_workers: int = 0
    prefetch: int = dataclasses.field(default_factory=reading_threads)
    drop_empty: bool = True
    resize: str = "mmdet"
    on_error: str = "stop"
    exif: str = "auto"
    depth: int = 0

    def __post_init__(self):
        for field in ("batch_size", "shorter", "longer", "max_boxes", "prefetch"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} = {getattr(self, field)}: must be at least 1")
        for field in ("num_threads", "num_workers", "seed"):
            if getattr(self, field) < 0:
                raise UserError(f"{field} = {getattr(self, field)}: must not be negative")
        choices = {"on_error": ("stop", "skip"), "exif": EXIF, "resize": RULES}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise UserError(f'{field} = "{getattr(self, field)}": one of {", ".join(known)}')
        if self.depth and not 8 <= self.depth <= 16:
            raise UserError(
                f"depth = {self.depth}: bits that 16-bit images use, 8 to 16, or 0 for all 16"
            )

        if not 0 <= self.flip <= 1:
            raise UserError(f"flip = {self.flip}: a probability lies between 0 and 1")
        try:
            low, high = self.scale_jitter
            sound = 0 < low <= high
        except (TypeError, ValueError):  # one number, three, texts
            sound = False
        if not sound:
            raise UserError(
                f"scale_jitter = {self.scale_jitter}: two factors above 0, the smaller one first"
            )
        if not 0 <= self.colour_jitter <= 1:
            raise UserError(f"colour_jitter = {self.colour_jitter}: a strength from 0 to 1")
        object.__setattr__(self, "scale_jitter", (low, high))
        if self.longer < self.shorter and self.resize != "stretch":
            raise UserError(f"longer = {self.longer} is less than shorter = {self.shorter}")
        try:
            pairs = tuple((index(height), index(width)) for height, width in self.canvases)
        except (TypeError, ValueError):
            pairs = ()
        if not pairs or min(map(min, pairs)) < 1:
            raise UserError(
                f"canvases = {self.canvases}: expected (height, width) pairs in pixels, as "
                "((800, 1344), (1344, 800))"
            )
        # Always tuples of tuples, since the config is hashed and pickled.
        object.__setattr__(self, "canvases", pairs)

    @property
    def jitters(self) -> bool:
        """Whether training images get a random scale or random colours."""
        return self.scale_jitter != (1.0, 1.0) or self.colour_jitter > 0


def read_pipeline(config: Mapping[str, Any], batch_size: int) -> PipelineConfig:
    """The loader's settings, from `config.data` and `config.seed`.

    Raises:
        UserError: a key that is unknown or missing, or a value that cannot be used.
    """
    data = {
        key: value
        for key, value in config["data"].items()
        if key not in _NOT_PIPELINE and value is not None  # None: the default
    }
    hints = typing.get_type_hints(PipelineConfig)
    known = hints.keys() - {"batch_size", "seed"}
    for key, value in data.items():
        if key not in known:
            raise UserError(
                f"config.data.{key}: no such key; there are "
                f"{', '.join(sorted(known | set(_NOT_PIPELINE)))}"
            )
        if typing.get_origin(hints[key]) is not tuple:  # these are checked with a form to follow
            data[key] = typed(f"config.data.{key}", value, hints[key])
    for key in ("canvases", "shorter", "longer"):
        if key not in data:
            raise UserError(f"config.data.{key} is missing")
    if "prefetch" not in data and "num_threads" in data:  # further threads would be idle
        data["prefetch"] = max(data["num_threads"], reading_threads())
    if typed("config.seed", config["seed"], int) < 0:
        raise UserError(f"config.seed = {config['seed']}: must not be negative")
    with faults_of("config.data"):
        return PipelineConfig(batch_size=batch_size, seed=config["seed"], **data)
