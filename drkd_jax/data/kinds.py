"""What a file is that somebody took for a picture, an annotation file or weights."""

from __future__ import annotations

import re

# How files begin that are none of ours: what they are, and what to do about it.
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file: unpack it first (gunzip)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"BZh": "a bzip2 file: unpack it first (bunzip2)",
    b"\xfd7zXZ": "an xz file: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it first (unzstd)",
    b"%PDF": "a PDF document: export its pages as pictures",
    b"\x93NUMPY": "a NumPy array: save it as a PNG",
    b"\x89HDF": "an HDF5 file: export its pictures one by one",
    b"SQLite format 3": "an SQLite database",
    b"8BPS": "a Photoshop document: export it as a PNG",
}
_VIDEO = "a video ({}): take its frames out first, ffmpeg -i VIDEO frame_%06d.png"
_PHOTO = "a {} photograph: convert it to a JPEG or PNG first"
_HTML = "an HTML page, not the file: a download that failed or wants a login"
_LFS = "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"
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
    """Names a file that is no picture, no JSON and no weights, from its first bytes.

    Args:
        data: at least the first kilobyte, or all of it.

    Returns:
        Words to follow "it is", with what to do about it; None where the bytes do not say.
    """
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return kind
    if data.startswith((b"version https://git-lfs", b"version https://hawser")):
        return _LFS
    return _video(data) or _text(data)


def _video(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return _PHOTO.format(_BRANDS[brand]) if brand in _BRANDS else _VIDEO.format("MP4 or MOV")
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free") and not data.startswith(b"<"):
        return _VIDEO.format("MOV")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return _VIDEO.format("WebM or Matroska")
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return _VIDEO.format("AVI")
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return "a sound (WAV)"
    for beginning, kind in {
        b"FLV\x01": "FLV",
        b"\x00\x00\x01\xba": "MPEG",
        b"\x00\x00\x01\xb3": "MPEG",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMV",
        b"OggS": "Ogg",
    }.items():
        if data.startswith(beginning):
            return _VIDEO.format(kind)
    if data.startswith(b"G") and data[188:189] == b"G" and data[376:377] == b"G":
        return _VIDEO.format("MPEG transport stream")
    return None


def _text(data: bytes) -> str | None:
    start = data[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"{", b"[")):  # JSON may hold any words
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
        return "a Pascal VOC file (XML, one a picture): convert the set to COCO's JSON first"
    if start.startswith((b"<?xml", b"<error", b"<message")):
        return "an XML document" + (" about an error" if b"<error" in start else "")
    first = start.partition(b"\n")[0]
    if first.count(b",") >= 4 and (b"xmin" in first or b"x1" in first or b"bbox" in first):
        return "a table of boxes (CSV): convert it to COCO's JSON first"
    if start.startswith((b"train:", b"path:", b"names:", b"nc:")):
        return "a YAML file, as YOLO's data.yaml: convert the set to COCO's JSON first"
    if _is_yolo(data):
        return (
            "a YOLO label file (class and normalised box a line, one file a picture): convert the "
            "set to COCO's JSON first"
        )
    return None


def _is_yolo(data: bytes) -> bool:
    """Lines of a whole number and at least four values, each between 0 and 1."""
    lines = [line for line in data[:2048].splitlines() if line.strip()]
    if len(data) > 2048:
        lines = lines[:-1]  # it may be cut short
    number = rb"-?[0-9.]+(?:[eE][-+]?[0-9]+)?"
    return bool(lines) and all(
        re.fullmatch(rb"\s*\d+(?:\s+" + number + rb"){4,}\s*", line) for line in lines
    )
