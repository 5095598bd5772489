"""Reads from a file's first bytes its type, and an image's orientation and bits per sample.

Source: ITU T.81 annex B (JPEG segments), EXIF 2.32 section 4.6 (the orientation tag), TIFF 6.0,
the PNG and WebP container specifications, ITU T.800 annex A (JPEG 2000's SIZ).
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

_HEAD = 1 << 14  # bytes; a JPEG's EXIF comes in its first segments
_MOST = 1 << 22  # bytes of a JPEG's colour profiles and metadata before its EXIF
_ENOUGH = 1 << 11  # bytes of an EXIF: the orientation is in its first directory
_ORIENTATION, _BITS, _ALPHA = 0x0112, 0x0102, 0x0152  # TIFF tags
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two with 64-bit offsets
_JP2, _J2K = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_PNG_START = 33  # bytes up to the end of a PNG's first chunk


class Header(NamedTuple):
    """The header data of one image file.

    Attributes:
        orientation: EXIF's 1 to 8; 1 is upright, and the default if the file has none.
        bits: bits per sample: 8, or 16 if the file has 16-bit numbers. A JPEG 2000 states how many
            of them it uses, 9 to 16, and is decoded accordingly.
        plain: (position, two bytes): with these, a TIFF is decoded as it is stored.
    """

    orientation: int = 1
    bits: int = 8
    plain: tuple[tuple[int, bytes], ...] = ()


def read_header(data: bytes) -> Header:
    """Reads a header; anything unknown counts as upright with 8 bits."""
    try:
        if data.startswith(b"\xff\xd8"):
            return Header(_orientation(_jpeg_exif(data) or b""))
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Header(_orientation(_png_exif(data)), 16 if data[24] == 16 else 8)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Header(_orientation(_webp_exif(data)))
        if data[:4] in _TIFF:
            tags = _tags(data)
            order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
            orientation = tags.get(_ORIENTATION, (1, 0))[0]
            bits = 16 if 8 < tags.get(_BITS, (8, 0))[0] <= 16 else 8
            upright = orientation if 1 <= orientation <= 8 else 1
            # OpenCV rotates a TIFF, and darkens it by an alpha of kind 2, but not of kind 1.
            said = [tags[tag][1] for tag in (_ORIENTATION, _ALPHA) if tags.get(tag, (1, 0))[0] != 1]
            return Header(upright, bits, tuple((at, (1).to_bytes(2, order)) for at in said))
        if data[:2] in (b"P2", b"P3", b"P5", b"P6"):
            return Header(bits=16 if _pnm_largest(data) > 255 else 8)
        if data[:12] == _JP2 or data[:4] == _J2K:
            return Header(bits=min(max(_jpeg2000_bits(data), 8), 16))
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
        # A TIFF's tags may be at its end, like a WebP's EXIF (bit 3 says that it has one).
        webp = head[:4] == b"RIFF" and head[12:16] == b"VP8X" and any(b & 8 for b in head[20:21])
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
    try:
        value = _tags(exif).get(_ORIENTATION, (1, 0))[0]
    except ValueError:  # broken metadata must not hide the rest of the header
        return 1
    return value if 1 <= value <= 8 else 1


def _tags(data: bytes) -> dict[int, tuple[int, int]]:
    """The short integers in the first directory of a TIFF: tag to (first value, its position)."""
    if data[:4] not in _TIFF:
        return {}
    little, big = data[:2] == b"II", b"+" in data[:4]
    place = 8 if big else 4  # bytes of an offset or a count

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
        if kind in (3, 4):  # SHORT or LONG: few fit into the entry, more are stored elsewhere
            size = 2 if kind == 3 else 4
            value_at = at + 4 + place
            if number(at + 4, place) * size > place:
                value_at = number(value_at, place)
            if kind == 4 and not little:
                value_at += 2  # a small number is in the lower half
            if value_at + 2 <= len(data):  # else it is after the part that was read
                found[number(at, 2)] = number(value_at, 2), value_at
    return found


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment of a JPEG, and the position after it.

    The last one is -1, with the position where the data end or no segment follows.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] != 0xFF:  # otherwise it is a fill byte before the marker
            yield data[at + 1], at + 2
            at += 1 + int.from_bytes(data[at + 2 : at + 4], "big")
        at += 1
    yield -1, at


def _jpeg_exif(data: bytes) -> bytes | None:
    """The EXIF, or its first bytes; empty if there is none, None if the data end before it."""
    for marker, at in jpeg_segments(data):
        if marker < 0 and at + 4 > len(data):
            return None
        if 0xD0 <= marker <= 0xDA:  # the pixels, or a marker without a length
            break
        length = int.from_bytes(data[at : at + 2], "big")
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            exif = data[at + 8 : at + length]
            return exif if len(exif) >= min(length - 8, _ENOUGH) else None
    return b""


def _png_exif(data: bytes) -> bytes:
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _png_late_exif(file: BinaryIO) -> bytes:
    """The chunk with the EXIF after a long profile or the pixels; empty if there is none."""
    at, kind = 8, b""
    while kind != b"IDAT":
        file.seek(at)
        begin = file.read(8)
        length, kind = int.from_bytes(begin[:4], "big"), begin[4:]
        if kind == b"eXIf":
            return begin + file.read(length + 4)
        if len(begin) < 8:
            break
        at += 12 + length
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
    """The largest possible value of a PGM or PPM, its third number."""
    lines = [line.partition(b"#")[0] for line in data[2:_HEAD].split(b"\n")]
    return int(b" ".join(lines).split(maxsplit=3)[2])


def _jpeg2000_bits(data: bytes) -> int:
    """Bits of the first component, from the codestream's SIZ segment, which comes early."""
    at = data.index(_J2K)
    return (data[at + 42] & 0x7F) + 1


_VIDEO = "a video ({}): take its frames out first, ffmpeg -i VIDEO frame_%06d.png"
_LFS = "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"
# The beginnings of unsupported files: what they are, and what to do about it.
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file: unpack it first (gunzip)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"BZh": "a bzip2 file: unpack it first (bunzip2)",
    b"\xfd7zXZ": "an xz file: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it first (unzstd)",
    b"%PDF": "a PDF document: export its pages as images",
    b"\x93NUMPY": "a NumPy array: save it as a PNG",
    b"\x89HDF": "an HDF5 file: export its images one by one",
    b"SQLite format 3": "an SQLite database",
    b"8BPS": "a Photoshop document: export it as a PNG",
    b"version https://git-lfs": _LFS,
    b"version https://hawser": _LFS,
    b"\x1a\x45\xdf\xa3": _VIDEO.format("WebM or Matroska"),
    b"FLV\x01": _VIDEO.format("FLV"),
    b"\x00\x00\x01\xba": _VIDEO.format("MPEG"),
    b"\x00\x00\x01\xb3": _VIDEO.format("MPEG"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": _VIDEO.format("WMV"),
    b"OggS": _VIDEO.format("Ogg"),
}
_PHOTO = "a {} photograph: convert it to a JPEG or PNG first"
_HTML = "an HTML page, not the file: a download that failed or needs a login"

_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"avif": "AVIF",
    b"avis": "AVIF",
}


def what_is(data: bytes) -> str | None:
    """Names the type of a file that is neither an image nor JSON nor weights.

    Args:
        data: at least the first kilobyte, or the whole file.

    Returns:
        Text to follow "it is", with what to do about it; None if the type is unknown.
    """
    known = (kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning))
    return _video(data) or next(known, None) or _text(data)


def _video(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return _PHOTO.format(_BRANDS[brand]) if brand in _BRANDS else _VIDEO.format("MP4 or MOV")
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free") and not data.startswith(b"<"):
        return _VIDEO.format("MOV")

    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return _VIDEO.format("AVI")
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return "a sound (WAV)"

    marks = data[:1] + data[188:189] + data[376:377]  # of packets; by chance also in a GIF
    if marks == b"GGG" and not data.startswith(b"GIF8"):
        return _VIDEO.format("MPEG transport stream")
    return None


def _text(data: bytes) -> str | None:
    start = data[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"{", b"[")):  # JSON may contain any words
        return None
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (
        start.startswith(b"<") and b"<html" in start
    ):
        return _HTML
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG drawing: export it as a PNG"
    if b"<annotations" in start and start.startswith(b"<"):
        return "a file of CVAT (XML): export the set in COCO's form there"
    if b"<annotation" in start and start.startswith(b"<"):
        return "a Pascal VOC file (XML, one per image): convert the set to COCO's JSON first"
    if start.startswith((b"<?xml", b"<error", b"<message")):
        return "an XML document" + (" about an error" if b"<error" in start else "")
    first = start.partition(b"\n")[0]
    if first.count(b",") >= 4 and (b"xmin" in first or b"x1" in first or b"bbox" in first):
        return "a table of boxes (CSV): convert it to COCO's JSON first"
    if start.startswith((b"train:", b"path:", b"names:", b"nc:")):
        return "a YAML file, as YOLO's data.yaml: convert the set to COCO's JSON first"
    if _is_yolo(data):
        return (
            "a YOLO label file (class and normalised box per line, one file per image): convert "
            "the set to COCO's JSON first"
        )
    return None


def _is_yolo(data: bytes) -> bool:
    """Whether the lines have an integer followed by at least four numbers."""
    lines = [line for line in data[:2048].splitlines() if line.strip()]
    if len(data) > 2048:
        lines = lines[:-1]  # it may be truncated
    number = rb"-?[0-9.]+(?:[eE][-+]?[0-9]+)?"
    return bool(lines) and all(
        re.fullmatch(rb"\s*\d+(?:\s+" + number + rb"){4,}\s*", line) for line in lines
    )
