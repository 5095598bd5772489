"""16-bit images whose numbers use fewer bits: ``--depth``, and a hint at the first dark one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from drkd_jax.cli.arguments import depth
from drkd_jax.cli.detector import Trained
from drkd_jax.data.decode import brightest
from drkd_jax.data.header import read_head, read_header

_DARK = 64  # of 255: at least two bits are not used
_LOOKED_AT = 15  # other images to check, since a single one may simply be dark


def add_depth(parser: argparse.ArgumentParser) -> None:
    """The argument that `with_depth` reads."""
    parser.add_argument(
        "--depth",
        type=depth,
        help="bits that the numbers of 16-bit images use, 8 to 16, or 0 for all; the run's "
        "data.depth by default, and 0 of a file of weights",
    )


def with_depth(trained: Trained, arguments: argparse.Namespace) -> Trained:
    """The detector, set to read images with the requested depth."""
    if arguments.depth is None:
        return trained
    pipeline = dataclasses.replace(trained.pipeline, depth=arguments.depth)
    return dataclasses.replace(trained, pipeline=pipeline)


class DeepWatch:
    """Checks images as they are read, until one is found that the depth does not fit.

    Args:
        paths: paths of all images.
        depth: the depth that they are read with, see `decode_image`.
    """

    def __init__(self, paths: Sequence[Path], depth: int):
        self._paths, self._taken = paths, depth or 16
        self._done = False
        self._others: list[int] | None = None  # checked once: a whole set may be black

    def look(self, position: int, image: UInt8[np.ndarray, "H W 3"]) -> str:
        """A hint about this image; "" for nearly all.

        Args:
            position: index of its path.
            image: as decoded; H, W: its pixels.
        """
        if self._done or int(image.max(initial=0)) >= _DARK or not _is_deep(self._paths[position]):
            return ""
        path = self._paths[position]
        if self._others is None:
            some = np.linspace(0, len(self._paths) - 1, _LOOKED_AT).round().astype(int).tolist()
            others = {self._paths[i] for i in some} - {path}
            self._others = [brightest([each])[0] for each in others if _is_deep(each)]
        values = [brightest([path])[0], *self._others]
        used = max(8, max(values).bit_length())
        self._done = max(values) > 0
        if not self._done or used >= self._taken:
            return ""
        return (
            f"{path} holds 16-bit numbers, and the brightest of {len(values)} such images looked "
            f"at is {max(values)} of {(1 << 16) - 1}: read as {self._taken} bits it comes out "
            f"nearly black. --depth={used} makes {(1 << used) - 1} white, which is right unless "
            "the detector was trained on images as dark (data.depth)"
        )


def _is_deep(path: Path) -> bool:
    """Whether a file has 16-bit numbers; False for what cannot be read twice, such as a pipe."""
    try:
        return path.is_file() and read_header(read_head(path)).bits > 8
    except OSError:  # it is reported when the image is read
        return False
