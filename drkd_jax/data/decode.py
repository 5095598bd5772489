"""Bytes to pixels, and the size of a JPEG without its pixels. H W are the picture's pixels."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from drkd_jax.errors import UserError

# Pictures are read by the loader's own threads; OpenCV's would only fight with them.
cv2.setNumThreads(1)

_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

# How the files begin that can be decoded, to tell a damaged picture from what is none.
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


def decode_picture(
    data: bytes, name: str, height: int | None = None, width: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a picture to RGB.

    The pixels are taken as stored, since boxes of COCO's files refer to those. Where the
    annotations state the size of the turned picture, the EXIF orientation is obeyed instead.
    Grey, palette, 16-bit, CMYK and RGBA pictures become 8-bit RGB; the alpha channel is dropped.
    Of an animated picture the first frame is taken.

    Args:
        data: the file's bytes.
        name: what messages call the picture.
        height: stated height in pixels; unchecked where None.
        width: stated width in pixels.

    Raises:
        UserError: there are no bytes, they are no picture, the picture is truncated or damaged,
            or it is of another size than stated.
    """
    image = _decode(data, _STORED)
    if image is None:
        raise UserError(f"{name}: {_what_is_wrong(data)}; replace the file or leave it out")
    if height is not None and width is not None and image.shape[:2] != (height, width):
        turned = _decode(data, cv2.IMREAD_COLOR)
        if turned is None or turned.shape[:2] != (height, width):
            raise UserError(
                f"{name}: the file is {image.shape[1]}x{image.shape[0]} pixels (width x height), "
                f"its annotations say {width}x{height}; mend the one that is wrong"
            )
        image = turned
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _what_is_wrong(data: bytes) -> str:
    if not data:
        return "is empty (0 bytes)"
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return f"cannot be decoded: it begins as a {kind}, but is truncated or damaged"
    return "cannot be decoded: it is no picture of a known kind"


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of an encoded picture, from its header where it is a JPEG.

    Raises:
        UserError: the bytes are no picture.
    """
    size = _jpeg_size(data)
    return decode_picture(data, name).shape[:2] if size is None else size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walks the marker segments of a JPEG up to its frame header (ITU T.81, annex B)."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            return (height, int.from_bytes(data[at + 7 : at + 9], "big")) if height else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
