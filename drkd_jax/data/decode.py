"""Decodes images, and scans the headers of image files.

Letters: H W pixels of an image, P images.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt16

from drkd_jax.data.header import Header, jpeg_segments, read_head, read_header, what_is
from drkd_jax.errors import UserError

# The loader has its own threads, with which OpenCV's would only compete.
cv2.setNumThreads(1)

EXIF = ("auto", "stored", "turned")  # the pixels of a rotated photo that boxes refer to
_THREADS = 16  # a request over a network takes a millisecond, mostly of waiting
_FRAME = 1 << 18  # bytes; a JPEG's size comes after its EXIF and other metadata
_LOOKED_AT = 16  # 16-bit images that are searched for their brightest value
_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

# How decodable files begin, to tell a damaged image from other files.
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    **dict.fromkeys((b"P2\n", b"P3\n", b"P5\n", b"P6\n"), "PGM or PPM"),
}


def decode_image(
    data: bytes,
    name: str,
    height: int | None = None,
    width: int | None = None,
    *,
    exif: str = "auto",
    depth: int = 0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image to RGB.

    Grey, palette, 16-bit, CMYK and RGBA images become 8-bit RGB; the alpha channel is dropped.
    For an animation the first frame is used.

    Args:
        data: the file's bytes.
        name: the image's name in messages.
        height: stated height in pixels; unchecked if None.
        width: stated width in pixels.
        exif: "stored" uses the pixels as they are in the file, "turned" rotates them as the EXIF
            orientation says. "auto" uses the stored pixels, to which the boxes of COCO's files
            refer, unless only the rotated image has the stated size.
        depth: bits that the numbers of a 16-bit image use, 8 to 16; 0 stands for 16, or for the
            number that a JPEG 2000 states. Brighter values become white.

    Raises:
        UserError: there are no bytes, they are not an image, the image is truncated or damaged,
            or its size differs from the stated one.
    """
    image = _decode(data, depth)
    if image is None:
        raise UserError(f"{name}: {_what_is_wrong(data)}; replace the file or leave it out")
    if exif == "turned":
        image = turn(image, read_header(data).orientation)
    if height is not None and width is not None and image.shape[:2] != (height, width):
        turned = turn(image, read_header(data).orientation) if exif == "auto" else image
        if turned.shape[:2] != (height, width):
            raise UserError(
                f"{name}: the file is {image.shape[1]}x{image.shape[0]} pixels (width x height)"
                + (f" with data.exif = {exif}" if exif != "auto" else "")
                + f", its annotations say {width}x{height}; correct the one that is wrong"
            )
        image = turned
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def turn(image: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Rotates and mirrors stored pixels as an EXIF orientation says.

    Source: EXIF 2.32, section 4.6.5 (where row 0 and column 0 of the stored pixels belong).
    """
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of an encoded image; for a JPEG from its header alone.

    Args:
        data: the file's bytes.
        name: the image's name in messages.

    Raises:
        UserError: the bytes are not an image.
    """
    if (size := _jpeg_size(data)) is not None:
        return size
    height, width = decode_image(data, name, exif="stored").shape[:2]
    return height, width


def _what_is_wrong(data: bytes) -> str:
    if not data:
        return "is empty (0 bytes)"
    kind = what_is(data)
    if kind is not None:
        return f"cannot be decoded: it is not an image but {kind}"
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    for beginning, kind in {**_BEGINNINGS, **({b"RIFF": "WebP"} if riff else {})}.items():
        if data.startswith(beginning):
            return f"cannot be decoded: it begins as a {kind}, but is truncated or damaged"
    return "cannot be decoded: it is not an image of a known kind"


def _decode(data: bytes, depth: int) -> np.ndarray | None:
    """BGR as stored, 8 bits."""
    if not data:
        return None
    header = read_header(data) if depth or data[:2] in (b"II", b"MM") else Header()
    if not depth or header.bits == 8:
        image = _decoded(data, header, _STORED)
        if image is not None or header.bits == 8:
            return image
        depth = 16  # a TIFF of 12 bits can only be read as 16 bits
    image = _deep(data, header)
    if image is None:
        return _decoded(data, header, _STORED)
    brightest = (1 << depth) - 1
    return cv2.convertScaleAbs(np.minimum(image, brightest), alpha=255 / brightest)


def _deep(data: bytes, header: Header) -> UInt16[np.ndarray, "H W 3"] | None:
    """BGR as stored, 16 bits; None if the image has fewer. Signed numbers are clipped at 0."""
    image = _decoded(data, header, _STORED | cv2.IMREAD_ANYDEPTH)
    if image is not None and image.dtype == np.int16:
        image = np.maximum(image, 0).astype(np.uint16)
    return image if image is not None and image.dtype == np.uint16 else None


def _decoded(data: bytes, header: Header, flags: int) -> np.ndarray | None:
    array = np.frombuffer(data, np.uint8)
    if header.plain:
        array = array.copy()
    for at, value in header.plain:
        array[at : at + 2] = np.frombuffer(value, np.uint8)
    try:
        return cv2.imdecode(array, flags)
    except cv2.error:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header of a JPEG (ITU T.81, annex B)."""
    for marker, at in jpeg_segments(data) if data[:2] == b"\xff\xd8" else ():
        frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if frame and at + 7 <= len(data):
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (3, 5))
            return (height, width) if height else None
    return None


@dataclasses.dataclass(frozen=True)
class Scan:
    """The header data of P image files; defaults for files that cannot be read.

    Attributes:
        orientation: EXIF orientation, 1 if there is none.
        bits: bits per sample, 8 to 16, see `Header`.
        content: hash of the length and the first bytes; -1 for a file that cannot be read.
        sizes: stored height and width, in pixels, of images rotated by 90 degrees; 0 for others.
        broken: whether a file cannot be read, is empty, or begins like something other than an
            image.
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
    broken = not head or (kind and "photograph" not in kind)  # AVIF can be decoded
    return header.orientation, header.bits, content, *size, int(bool(broken))


def _size(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            return stored_size(file.read(_FRAME), str(path))
    except UserError:
        pass
    try:
        return stored_size(path.read_bytes(), str(path))
    except UserError:  # it is reported when the image is read
        return 0, 0


def brightest(paths: Sequence[Path]) -> tuple[int, int]:
    """The brightest value of a sample of 16-bit images, spread evenly over all of them.

    Returns:
        (the value, the number of images in the sample); 0 and 0 if none could be read.
    """
    value = looked = 0
    for index in sorted({round(at) for at in np.linspace(0, len(paths) - 1, _LOOKED_AT)}):
        try:
            data = paths[index].read_bytes()
        except OSError:
            continue
        image = _deep(data, read_header(data))
        if image is not None:
            value, looked = max(value, int(image.max())), looked + 1
    return value, looked
