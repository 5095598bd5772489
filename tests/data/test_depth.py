"""Sets whose 16-bit images use fewer bits: reported with their maximum; a key corrects it."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError


def deepen(folder, bits: int, kind: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        path = folder.images / name
        shape = cv2.imread(str(path)).shape[:2]
        values = np.linspace(0, (1 << bits) - 1, shape[0] * shape[1]).reshape(shape)
        path.write_bytes(cv2.imencode(kind, values.round().astype(np.uint16))[1].tobytes())


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_dark_images_are_said_and_mended(coco_folder, bits, kind):
    deepen(coco_folder, bits, kind)
    brightest = (1 << bits) - 1
    told = (
        f"2 images hold 16-bit numbers; the brightest of 2 looked at is {brightest} of 65535, "
        "read as 16 bits: a.jpg, b.jpg. They come out dark: "
        f"data.depth = {bits} makes {brightest} white"
    )
    source = open_source(coco_folder.spec)
    assert source.record(0).image.max() == brightest >> 8
    (finding,) = (each for each in find(source) if each.grave)
    assert finding.text == told
    assert told in check(coco_folder.spec).warnings
    source = open_source(coco_folder.spec, depth=bits)
    assert source.record(0).image.max() == 255
    assert not any(each.grave for each in find(source))


def plain_tiff(values: np.ndarray, *, bits: int = 16, signed: bool = False, big: bool = False):
    """A grey TIFF of one strip, also with 64-bit offsets (BigTIFF), which Pillow cannot write."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if bits == 12:  # packed
        rows = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)
        data = np.packbits(rows[..., 4:].reshape(height, -1), axis=1).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    tags |= {279: len(data), 339: 2 if signed else 1}
    entry = "<HHQQ" if big else "<HHII"
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) if big else b"II*\0" + struct.pack("<I", 8)
    head += struct.pack("<Q" if big else "<H", len(tags))
    place = len(head) + len(tags) * struct.calcsize(entry) + (8 if big else 4)
    for tag, value in tags.items():
        head += struct.pack(entry, tag, 4, 1, place if tag == 273 else value)
    return head + bytes(8 if big else 4) + data


def netpbm(kind: str, values: np.ndarray, comment: str = "") -> bytes:
    head = f"{kind}\n{comment}{values.shape[1]} {values.shape[0]}\n4095\n"
    if kind in ("P2", "P3"):
        return (head + " ".join(map(str, values.repeat(3 if kind == "P3" else 1))) + "\n").encode()
    return head.encode() + values.astype(">u2").tobytes()


OTHERS = {
    "JPEG 2000": lambda values: cv2.imencode(".jp2", values)[1].tobytes(),
    "PGM": lambda values: netpbm("P5", values),
    "PGM with a long comment": lambda values: netpbm("P5", values, f"# {'x' * 300}\n"),
    "PGM as text": lambda values: netpbm("P2", values),
    "PPM as text": lambda values: netpbm("P3", values),
    "BigTIFF": lambda values: plain_tiff(values, big=True),
    "signed TIFF": lambda values: plain_tiff(values, signed=True),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_dark_images_of_other_formats(coco_folder, kind):
    values = np.linspace(0, 4095, 60 * 80).reshape(60, 80).round().astype(np.uint16)
    (coco_folder.images / "a.jpg").write_bytes(OTHERS[kind](values))
    (finding,) = (each for each in find(open_source(coco_folder.spec)) if "16-bit" in each.text)
    assert finding.grave
    assert "is 4095 of 65535" in finding.text
    assert "data.depth = 12 makes 4095 white" in finding.text
    image = open_source(coco_folder.spec, depth=12).record(0).image
    assert (image.dtype, image.max()) == (np.uint8, 255)
    np.testing.assert_allclose(image[..., 0], values / 4095 * 255, atol=1)


def test_a_jpeg_2000_says_its_bits(coco_folder):
    """It is decoded by its own precision, so it is not dark."""
    values = np.linspace(0, 4095, 60 * 80).reshape(60, 80).round().astype(np.uint16)
    # Lossless files store distances from the middle: first of 16 bits, then of the stated 12.
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    data = bytearray(cv2.imencode(".jp2", values + (1 << 15) - (1 << 11), lossless)[1].tobytes())
    for place in (data.index(b"\xff\x4f\xff\x51") + 42, data.index(b"ihdr") + 14):
        assert data[place] == 15
        data[place] = 11
    (coco_folder.images / "a.jpg").write_bytes(bytes(data))
    source = open_source(coco_folder.spec)
    np.testing.assert_allclose(source.record(0).image[..., 0], values / 4095 * 255, atol=1)
    (finding,) = (each for each in find(source) if "16-bit" in each.text)
    assert not finding.grave
    assert "is 4095 of 65535, read as 12 bits" in finding.text
    (finding,) = (f for f in find(open_source(coco_folder.spec, depth=14)) if "16-bit" in f.text)
    assert "They come out dark: data.depth = 12" in finding.text


def test_a_packed_tiff_of_12_bits_is_read(coco_folder):
    values = np.linspace(0, 4095, 60 * 80).reshape(60, 80).round().astype(np.uint16)
    (coco_folder.images / "a.jpg").write_bytes(plain_tiff(values, bits=12))
    image = open_source(coco_folder.spec).record(0).image
    np.testing.assert_allclose(image[..., 0], values / 4095 * 255, atol=1)


def test_a_broken_exif_hides_no_depth(coco_folder):
    deepen(coco_folder, 12, ".png")
    path = coco_folder.images / "a.jpg"
    data, kind = path.read_bytes(), b"eXIfII*\0\x08\0\0\0\x05\0"  # five tags, no more
    note = (len(kind) - 4).to_bytes(4, "big") + kind + zlib.crc32(kind).to_bytes(4, "big")
    path.write_bytes(data[:33] + note + data[33:])
    source = open_source(coco_folder.spec, depth=12)
    assert source.scan.bits.tolist()[:2] == [16, 16]
    assert source.record(0).image.max() == 255


def test_negative_numbers_are_black(coco_folder):
    values = np.full((60, 80), -5, np.int16)
    (coco_folder.images / "a.jpg").write_bytes(plain_tiff(values.view(np.uint16), signed=True))
    assert open_source(coco_folder.spec, depth=12).record(0).image.max() == 0


def test_all_16_bits_are_no_cause_for_alarm(coco_folder):
    deepen(coco_folder, 16, ".png")
    (finding,) = (each for each in find(open_source(coco_folder.spec)) if "16-bit" in each.text)
    assert not finding.grave
    (finding,) = (f for f in find(open_source(coco_folder.spec, depth=12)) if "16-bit" in f.text)
    assert finding.text.endswith("What is brighter than 4095 becomes white")


@pytest.mark.parametrize("value", [{"depth": 7}, {"depth": 17}, {"depth": -1}, {"exif": "left"}])
def test_values_that_mean_nothing(value):
    with pytest.raises(UserError, match=next(iter(value))):
        PipelineConfig(batch_size=1, canvases=((64, 64),), shorter=64, longer=64, **value)
