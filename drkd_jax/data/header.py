"""What the first bytes of a picture file say: its kind, how it is to be turned, bits a sample.

Source: ITU T.81 annex B (JPEG segments), EXIF 2.32 section 4.6 (the orientation tag), TIFF 6.0,
the PNG and WebP container specifications, ITU T.800 annex A (JPEG 2000's SIZ).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

_HEAD = 1 << 14  # bytes; a JPEG's EXIF comes in its first segments
_MOST = 1 << 22  # bytes of a JPEG's colour profiles and notes before its EXIF
_ENOUGH = 1 << 11  # bytes of an EXIF: the orientation is in its first directory
_ORIENTATION, _BITS = 0x0112, 0x0102  # TIFF tags
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two with 64-bit places
_JP2, _J2K = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_PNG_START = 33  # bytes up to the end of a PNG's first chunk
_ONLY_SIZES = range(0xD0, 0xDA)  # JPEG markers without a length


class Header(NamedTuple):
    """Of one picture file.

    Attributes:
        orientation: EXIF's 1 to 8; 1 is upright, also where the file says nothing.
        bits: of one sample: 8, or 16 where the file holds 16-bit numbers.
        at: where a TIFF keeps its orientation, (position, byte order); None elsewhere.
    """

    orientation: int = 1
    bits: int = 8
    at: tuple[int, str] | None = None


def read_header(data: bytes) -> Header:
    """Reads a header; whatever cannot be understood counts as upright with 8 bits."""
    try:
        if data.startswith(b"\xff\xd8"):
            return Header(_orientation(_jpeg_exif(data) or b""))
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Header(_orientation(_png_exif(data)), 16 if data[24] == 16 else 8)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Header(_orientation(_webp_exif(data)))
        if data[:4] in _TIFF:
            tags = _tags(data)
            order = "little" if data[:2] == b"II" else "big"
            orientation, at = tags.get(_ORIENTATION, (1, 0))
            bits = 16 if 8 < tags.get(_BITS, (8, 0))[0] <= 16 else 8
            upright = orientation if 1 <= orientation <= 8 else 1
            return Header(upright, bits, (at, order) if at else None)
        if data[:2] in (b"P2", b"P3", b"P5", b"P6"):
            return Header(bits=16 if _pnm_largest(data) > 255 else 8)
        if data[:12] == _JP2 or data[:4] == _J2K:
            return Header(bits=16 if _jpeg2000_bits(data) > 8 else 8)
    except (IndexError, ValueError):
        pass
    return Header()


def read_head(path: Path) -> bytes:
    """As much of a file as ``read_header`` needs.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        # A TIFF's tags may lie at its end, and so does a WebP's EXIF (bit 3 says it has one).
        webp = head[:4] == b"RIFF" and head[12:16] == b"VP8X" and head[20] & 8
        if webp or head[:4] in _TIFF:
            head += file.read()
        elif head.startswith(b"\xff\xd8"):
            while len(head) < _MOST and _jpeg_exif(head) is None:
                more = file.read(len(head))
                if not more:
                    break
                head += more
        elif head.startswith(b"\x89PNG") and len(head) == _HEAD and not _png_exif(head):
            head = head[:_PNG_START] + _png_late_exif(file) + head[_PNG_START:]
    return head


def _orientation(exif: bytes) -> int:
    value = _tags(exif).get(_ORIENTATION, (1, 0))[0] if exif else 1
    return value if 1 <= value <= 8 else 1


def _tags(data: bytes) -> dict[int, tuple[int, int]]:
    """Short numbers of the first directory of a TIFF: tag to (first value, its position)."""
    if data[:4] not in _TIFF:
        return {}
    little, big = data[:2] == b"II", b"+" in data[:4]
    place = 8 if big else 4  # bytes of a place or a count

    def number(at: int, length: int) -> int:
        if at + length > len(data):
            raise ValueError("ends early")
        return int.from_bytes(data[at : at + length], "little" if little else "big")

    start = number(place, place)
    found = {}
    first = start + (8 if big else 2)
    for entry in range(number(start, first - start)):
        at = first + (4 + 2 * place) * entry
        kind = number(at + 2, 2)
        if kind in (3, 4):  # SHORT or LONG: a few fit into the entry, more lie elsewhere
            size = 2 if kind == 3 else 4
            value_at = at + 4 + place
            if number(at + 4, place) * size > place:
                value_at = number(value_at, place)
            if kind == 4 and not little:
                value_at += 2  # a small number is in the lower half
            found[number(at, 2)] = number(value_at, 2), value_at
    return found


def _jpeg_exif(data: bytes) -> bytes | None:
    """The EXIF, or its first bytes; empty where there is none, None where the data end before."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        if marker in (0xDA, 0xD9) or marker in _ONLY_SIZES:
            return b""
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 10 : at + 2 + length]
            return exif if len(exif) >= min(length - 8, _ENOUGH) else None
        at += 2 + length
    return None if at + 4 > len(data) else b""


def _png_exif(data: bytes) -> bytes:
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _png_late_exif(file: BinaryIO) -> bytes:
    """The chunk with the EXIF where it stands behind the pixels; empty where there is none."""
    file.seek(0, os.SEEK_END)
    file.seek(max(_HEAD, file.tell() - _HEAD))
    tail = file.read()
    at = tail.rfind(b"eXIf")
    while at >= 4:
        length = int.from_bytes(tail[at - 4 : at], "big")
        chunk = tail[at - 4 : at + 8 + length]
        if len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:]):
            return chunk
        at = tail.rfind(b"eXIf", 0, at)
    return b""


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
            return exif.removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return b""


def _pnm_largest(data: bytes) -> int:
    """The brightest value that a PGM or PPM may hold, its third number."""
    lines = [line.partition(b"#")[0] for line in data[2:_HEAD].split(b"\n")]
    return int(b" ".join(lines).split(maxsplit=3)[2])


def _jpeg2000_bits(data: bytes) -> int:
    """Bits of the first component: of the codestream's SIZ segment, which comes early."""
    at = data.index(_J2K)
    return (data[at + 42] & 0x7F) + 1
