"""What the first bytes of a picture file say: its kind, how it is to be turned, bits a sample.

Source: ITU T.81 annex B (JPEG segments), EXIF 2.32 section 4.6 (the orientation tag), TIFF 6.0,
the PNG and WebP container specifications.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_HEAD = 1 << 14  # bytes; a JPEG's EXIF comes in its first segments
_ORIENTATION, _BITS = 0x0112, 0x0102  # TIFF tags
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
            return Header(_orientation(_jpeg_exif(data)))
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Header(_orientation(_png_exif(data)), 16 if data[24] == 16 else 8)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Header(_orientation(_webp_exif(data)))
        if data[:4] in (b"II*\0", b"MM\0*"):
            tags = _tags(data)
            order = "little" if data[:2] == b"II" else "big"
            orientation, at = tags.get(_ORIENTATION, (1, 0))
            bits = 16 if tags.get(_BITS, (8, 0))[0] == 16 else 8
            upright = orientation if 1 <= orientation <= 8 else 1
            return Header(upright, bits, (at, order) if at else None)
        if data[:2] in (b"P5", b"P6"):
            return Header(bits=16 if _pnm_largest(data) > 255 else 8)
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
        if webp or head[:4] in (b"II*\0", b"MM\0*"):
            head += file.read()
    return head


def _orientation(exif: bytes) -> int:
    value = _tags(exif).get(_ORIENTATION, (1, 0))[0] if exif else 1
    return value if 1 <= value <= 8 else 1


def _tags(data: bytes) -> dict[int, tuple[int, int]]:
    """Short numbers of the first directory of a TIFF: tag to (first value, its position)."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    little = data[:2] == b"II"

    def number(at: int, length: int) -> int:
        if at + length > len(data):
            raise ValueError("ends early")
        return int.from_bytes(data[at : at + length], "little" if little else "big")

    start = number(4, 4)
    found = {}
    for entry in range(number(start, 2)):
        at = start + 2 + 12 * entry
        if number(at + 2, 2) == 3:  # SHORT: two fit into the entry, more lie elsewhere
            value_at = at + 8 if number(at + 4, 4) <= 2 else number(at + 8, 4)
            found[number(at, 2)] = number(value_at, 2), value_at
    return found


def _jpeg_exif(data: bytes) -> bytes:
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
            return data[at + 10 : at + 2 + length]
        at += 2 + length
    return b""


def _png_exif(data: bytes) -> bytes:
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
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
    lines = [line.partition(b"#")[0] for line in data[2:200].split(b"\n")]
    return int(b" ".join(lines).split()[2])
