"""EXIF: all eight orientations in four formats, and which pixels the boxes refer to."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find
from drkd_jax.data.decode import decode_image, stored_size
from drkd_jax.data.header import read_head, read_header
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from tests.data.conftest import CocoFolder

HEIGHT, WIDTH = 60, 80  # of a.jpg
PIXELS = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def make_image(kind: str, orientation: int, pixels: np.ndarray = PIXELS) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(file, kind, exif=exif, **more)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_stored_and_turned(kind, orientation):
    data = make_image(kind, orientation)
    assert read_header(data).orientation == orientation
    stored = decode_image(data, "x", exif="stored")
    turned = decode_image(data, "x", exif="turned")
    assert stored_size(data, "x") == stored.shape[:2] == (HEIGHT, WIDTH)
    # Pillow's own turn of the pixels that were stored.
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    image.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))
    if kind != "JPEG":
        np.testing.assert_array_equal(stored, PIXELS)


def give(folder: CocoFolder, orientation: int, *, as_shown: bool = False) -> None:
    (folder.images / "a.jpg").write_bytes(make_image("PNG", orientation))
    if as_shown:
        folder.content["images"][0] |= {"height": WIDTH, "width": HEIGHT}
    folder.write()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_auto_takes_what_fits_stored_and_says_so(coco_folder, orientation):
    give(coco_folder, orientation)
    source = open_source(coco_folder.spec)
    np.testing.assert_array_equal(source.record(0).image, PIXELS)
    told = (
        "1 image is marked as turned or mirrored (EXIF): a.jpg. 1 taken as stored, "
        "which the stated size allows; if boxes lie beside their objects, set data.exif = turned"
    )
    assert told in check(coco_folder.spec).warnings


def test_boxes_that_fit_only_the_turned_image_are_counted(coco_folder):
    """Label Studio states the stored size, and boxes in turned pixels."""
    coco_folder.content["annotations"][0]["bbox"] = [5, 60, 20, 19]
    give(coco_folder, 6)
    (told,) = (text for text in check(coco_folder.spec).warnings if "EXIF" in text)
    assert "; 1 box fits into the turned image only; if boxes lie beside" in told


def test_auto_turns_where_only_that_has_the_stated_size(coco_folder):
    give(coco_folder, 6, as_shown=True)
    image = open_source(coco_folder.spec).record(0).image
    np.testing.assert_array_equal(image, np.rot90(PIXELS, -1))
    (told,) = (text for text in check(coco_folder.spec).warnings if "EXIF" in text)
    assert told.endswith("a.jpg. 1 turned, since only that has the stated size")


@pytest.mark.parametrize("as_shown", [False, True])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_turned_is_obeyed_whichever_size_is_stated(coco_folder, orientation, as_shown):
    as_shown = as_shown and orientation >= 5
    give(coco_folder, orientation, as_shown=as_shown)
    # In the turned image, at its lower end.
    coco_folder.content["annotations"][0]["bbox"] = [5, 70, 10, 10] if orientation > 4 else [1] * 4
    coco_folder.write()
    source = open_source(coco_folder.spec, exif="turned")
    record, meta = source.record(0), source.meta(0)
    expected = decode_image(make_image("PNG", orientation), "x", exif="turned")
    np.testing.assert_array_equal(record.image, expected)
    assert (meta.height, meta.width) == record.image.shape[:2]
    if orientation > 4:
        np.testing.assert_array_equal(record.boxes[0], [5, 70, 15, 80])
    assert source.coco_ground_truth()["images"][0]["height"] == meta.height


def test_stored_refuses_the_size_of_the_turned_image(coco_folder):
    give(coco_folder, 6, as_shown=True)
    source = open_source(coco_folder.spec, exif="stored")
    with pytest.raises(UserError, match=r"is 80x60 .*data\.exif = stored, its annotations say 60x"):
        source.record(0)


def late_png(orientation: int) -> bytes:
    """As exiftool writes it: the EXIF after more pixel data than is read for a header."""
    noise = np.random.default_rng(2).integers(0, 256, (HEIGHT * 4, WIDTH * 4, 3), np.uint8)
    early, plain = make_image("PNG", orientation, noise), make_image("PNG", 1, noise)
    at = early.index(b"eXIf") - 4
    chunk = early[at : at + 12 + int.from_bytes(early[at : at + 4], "big")]
    plain = plain.replace(plain[at : at + len(chunk)], b"") if b"eXIf" in plain else plain
    return plain[:-12] + chunk + plain[-12:]


def png_behind_a_profile(orientation: int) -> bytes:
    """A colour chunk longer than what is read for a header, then the EXIF and the pixels."""
    data = late_png(orientation)
    at = data.index(b"eXIf") - 4
    body = b"iCCPx\0\0" + np.random.default_rng(3).bytes(20_000)
    profile = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:33] + profile + data[at:-12] + data[33:at] + data[-12:]


def late_jpeg(orientation: int, marker: int, count: int) -> bytes:
    """A JPEG with colour profiles or a program's own notes before the EXIF."""
    noise = np.random.default_rng(2).integers(0, 256, (HEIGHT * 4, WIDTH * 4, 3), np.uint8)
    data = make_image("JPEG", orientation, noise)
    segment = bytes([0xFF, marker]) + (60_002).to_bytes(2, "big") + bytes(60_000)
    return data[:2] + segment * count + data[2:]


LATE = {
    "PNG": late_png,
    "PNG behind a profile": png_behind_a_profile,
    "JPEG behind a profile": lambda o: late_jpeg(o, 0xE2, 3),
    "JPEG behind notes": lambda o: late_jpeg(o, 0xED, 1),
}


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_far_from_the_beginning_counts(coco_folder, kind, orientation):
    (coco_folder.images / "a.jpg").write_bytes(LATE[kind](orientation))
    coco_folder.content["images"][0] |= {"height": HEIGHT * 4, "width": WIDTH * 4}
    coco_folder.write()
    (told,) = (f.text for f in find(open_source(coco_folder.spec)) if "EXIF" in f.text)
    assert "1 taken as stored" in told
    source = open_source(coco_folder.spec, exif="turned")
    shape = (WIDTH * 4, HEIGHT * 4) if orientation == 6 else (HEIGHT * 4, WIDTH * 4)
    assert source.record(0).image.shape[:2] == shape == tuple(source.meta(0)[1:3])


@pytest.mark.parametrize("order", ["II", "MM"])
def test_an_orientation_may_be_a_long_number(order):
    little = order == "II"
    pack = "<" if little else ">"
    exif = order.encode() + struct.pack(f"{pack}HIHHHIII", 42, 8, 1, 0x0112, 4, 1, 6, 0)
    body = b"Exif\0\0" + exif
    data = make_image("JPEG", 1)
    data = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    assert read_header(data).orientation == 6


def test_an_orientation_beside_a_tag_that_leads_out_of_what_was_read():
    tags = struct.pack("<HHII", 0x0102, 3, 3, 60_000) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    body = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    data = make_image("JPEG", 1)
    data = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    assert read_header(data).orientation == 6


def test_joined_sets_say_how_theirs_are_taken(coco_folder):
    """In either order; drawn images are not files, and are never turned."""
    give(coco_folder, 6)
    for spec in (f"{coco_folder.spec} + shapes:1", f"shapes:1 + {coco_folder.spec}"):
        source = open_source(spec, exif="turned", depth=12)
        (told,) = (f.text for f in find(source) if "EXIF" in f.text)
        assert told.endswith("Turned, as data.exif = turned says")
        assert source.depth == 12


def test_an_orientation_that_is_none_is_upright():
    assert read_header(make_image("JPEG", 9)).orientation == 1
    assert read_header(b"\xff\xd8\xff\xe1\xff\xff").orientation == 1
    assert read_header(make_image("TIFF", 6)[:60]).orientation == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_a_file_cut_anywhere_in_its_header_is_upright_or_turned(kind, tmp_path):
    data = make_image(kind, 6)
    for length in range(1, 60):
        (tmp_path / "x").write_bytes(data[:length])
        assert read_header(read_head(tmp_path / "x")).orientation in (1, 6)
