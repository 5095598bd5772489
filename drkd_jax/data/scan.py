"""The headers of all pictures of a source: how they are turned, how deep they are, what they are.

Letters: P pictures.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from drkd_jax.data.decode import deep_pixels, stored_size
from drkd_jax.data.header import read_head, read_header
from drkd_jax.data.kinds import what_is
from drkd_jax.errors import UserError

_THREADS = 16  # a question over a network takes a millisecond, and most of it is waiting
_FRAME = 1 << 18  # bytes; a JPEG's size comes after its EXIF and other notes
_LOOKED_AT = 16  # deep pictures whose brightest value is looked for


@dataclasses.dataclass(frozen=True)
class Scan:
    """What P picture files say of themselves; a file that cannot be read says nothing.

    Attributes:
        orientation: EXIF's, 1 where there is none.
        bits: of a sample, 8 or 16.
        content: of the length and the first bytes; -1 for a file that cannot be read.
        sizes: height and width as stored, in pixels, of pictures that lie on their side; 0
            elsewhere.
        broken: whether a file cannot be read, is empty, or begins as something that is no picture.
    """

    orientation: Int64[np.ndarray, "P"]
    bits: Int64[np.ndarray, "P"]
    content: Int64[np.ndarray, "P"]
    sizes: Int64[np.ndarray, "P 2"]
    broken: Bool[np.ndarray, "P"]


def scan(paths: Sequence[Path]) -> Scan:
    """Reads the header of every file."""
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = list(pool.map(_look, paths, chunksize=64))
    table = np.array(rows, np.int64).reshape(-1, 6)
    return Scan(table[:, 0], table[:, 1], table[:, 2], table[:, 3:5], table[:, 5] > 0)


def _look(path: Path) -> tuple[int, int, int, int, int, int]:
    try:
        head = read_head(path)
        length = os.stat(path).st_size
        header = read_header(head)
        size = _size(path) if header.orientation >= 5 else (0, 0)
    except OSError:
        return 1, 8, -1, 0, 0, 1
    content = zlib.crc32(head) << 31 ^ length & 0x7FFFFFFF
    kind = what_is(head) or ""
    broken = not head or (kind and "photograph" not in kind)  # the decoder knows some, as AVIF
    return header.orientation, header.bits, content, *size, int(bool(broken))


def _size(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            return stored_size(file.read(_FRAME), str(path))
    except UserError:
        pass
    try:
        return stored_size(path.read_bytes(), str(path))
    except UserError:  # it is named when it is its turn
        return 0, 0


def brightest(paths: Sequence[Path]) -> tuple[int, int]:
    """The brightest value of some 16-bit pictures, spread evenly over all of them.

    Returns:
        (the value, how many pictures were looked at); 0 and 0 where none could be read.
    """
    value = looked = 0
    for index in sorted({round(at) for at in np.linspace(0, len(paths) - 1, _LOOKED_AT)}):
        try:
            image = deep_pixels(paths[index].read_bytes())
        except OSError:
            continue
        if image is not None:
            value, looked = max(value, int(image.max())), looked + 1
    return value, looked
