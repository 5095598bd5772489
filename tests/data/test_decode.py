from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from drkd_jax.data.decode import decode_image, stored_size
from drkd_jax.data.header import jpeg_segments, what_is
from drkd_jax.data.sources.coco import load_json
from drkd_jax.errors import UserError


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


def _turned(data: bytes, orientation: int) -> bytes:
    """Puts an EXIF segment with an orientation after the start of a JPEG."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0"
    tiff += orientation.to_bytes(2, "little") + b"\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    image = np.zeros((24, 40, 3), np.uint8)
    image[:12, :20] = (255, 0, 0)  # blue, as OpenCV counts
    return image


def test_rgb(scene):
    data = cv2.imencode(".png", scene)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, "x", 24, 40), scene[:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_and_deep_become_rgb(dtype, channels):
    image = np.full((5, 7, channels), np.iinfo(dtype).max, dtype)
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, "x"), np.full((5, 7, 3), 255, np.uint8))


def test_orientation_is_obeyed_only_where_the_stated_size_wants_it(scene):
    data = _turned(_jpeg(scene), 6)  # to be shown turned clockwise
    assert decode_image(data, "x").shape == (24, 40, 3)
    as_stored = decode_image(data, "x", 24, 40)
    turned = decode_image(data, "x", 40, 24)
    np.testing.assert_array_equal(turned, np.rot90(as_stored, -1))


def test_size_from_the_header(scene):
    data = _jpeg(scene)
    assert stored_size(data, "x") == (24, 40)
    assert stored_size(_turned(data, 6), "x") == (24, 40)
    tables = [at for marker, at in jpeg_segments(data) if marker == 0xC4]  # no frame of an image
    first = b"".join(data[at - 2 : at + int.from_bytes(data[at : at + 2], "big")] for at in tables)
    assert stored_size(data[:2] + first + data[2:], "x") == (24, 40)
    assert stored_size(cv2.imencode(".png", scene)[1].tobytes(), "x") == (24, 40)
    with pytest.raises(UserError, match="broken"):
        stored_size(data[:10], "broken")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", [".png", ".tiff", ".pgm"])
def test_depth_makes_the_brightest_value_white(bits, kind):
    brightest = (1 << bits) - 1
    deep = np.linspace(0, brightest, 35).reshape(5, 7).round().astype(np.uint16)
    data = cv2.imencode(kind, deep)[1].tobytes()
    image = decode_image(data, "x", depth=bits)
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 255)
    np.testing.assert_allclose(image[..., 0], deep * (255 / brightest), atol=0.5)


def test_depth_leaves_8_bits_alone_and_cuts_what_is_brighter():
    plain = np.arange(35, dtype=np.uint8).reshape(5, 7)
    data = cv2.imencode(".png", plain)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, "x", depth=12)[..., 0], plain)
    data = cv2.imencode(".png", np.full((5, 7), 60000, np.uint16))[1].tobytes()
    assert (decode_image(data, "x", depth=12) == 255).all()
    colours = np.array([[[4095, 0, 2048]]], np.uint16)  # BGR
    data = cv2.imencode(".png", colours)[1].tobytes()
    assert decode_image(data, "x", depth=12).tolist() == [[[128, 0, 255]]]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
KINDS = {
    "lfs": (LFS, "a Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
    "html with a mark": (b"\xef\xbb\xbf<HTML>", "an HTML page"),
    "mp4": (b"\0\0\0\x18ftypmp42" + bytes(50), "a video (MP4 or MOV)"),
    "mov": (b"\0\0\0\x14ftypqt  " + bytes(50), "a video (MP4 or MOV)"),
    "old mov": (b"\0\0\0\x08wide\0\0\1\0mdat", "a video (MOV)"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST" + bytes(50), "a video (AVI)"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(50), "a video (WebM or Matroska)"),
    "mpeg": (b"\0\0\x01\xba" + bytes(50), "a video (MPEG)"),
    "stream": (b"G" + bytes(187) + b"G" + bytes(187) + b"G", "a video (MPEG transport stream)"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(50), "a HEIC photograph"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(50), "a gzip file"),
    "zip": (b"PK\x03\x04" + bytes(50), "a zip archive"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "yolo": (b"0 0.5 0.5 0.25 0.125\n1 0.1 0.2 0.3 0.4\n", "a YOLO label file"),
    "yolo polygon": (b"0 0.5 0.5 0.25 0.125 0.1 0.2\n", "a YOLO label file"),
    "voc": (b"<annotation>\n<folder>VOC2007</folder></annotation>", "a Pascal VOC file"),
    "voc with a head": (b'<?xml version="1.0"?>\n<annotation><size/>', "a Pascal VOC file"),
    "cvat": (b'<?xml version="1.0"?>\n<annotations><version>1.1', "a file of CVAT"),
    "csv": (b"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,nut", "a table of boxes"),
    "yaml": (b"train: ../train/images\nnc: 2\n", "a YAML file"),
    "storage error": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "about an error"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_an_image_and_as_annotations(tmp_path, kind):
    data, told = KINDS[kind]
    assert told in what_is(data)
    with pytest.raises(UserError) as raised:
        decode_image(data, "p.jpg")
    assert f"p.jpg: cannot be decoded: it is not an image but {what_is(data)}" in str(raised.value)
    path = tmp_path / "instances.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        load_json(path)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"images": [], "html": "<html>", "xmin,x1": [1, 2, 3, 4, 5]}',
        b"[1, 2]",
        b"\xff\xd8\xff\xe0",
        b"1",
        b"not an image",
        b"GIF89a" + bytes(182) + b"G" + bytes(187) + b"G" + bytes(50),
    ],
)
def test_what_is_not_known_is_not_named(data):
    assert what_is(data) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"  \n", "the file is empty (3 bytes)"),
        (b'{"a": 1}\n{"a": 2}\n', "it is JSON Lines"),
        (json.dumps([{"file_name": "a", "id": 1}]).encode(), "COCO's file is one object"),
        (json.dumps([{"file_name": "a", "annotations": []}]).encode(), "Detectron2's records"),
        (json.dumps([{"data": {}, "annotations": []}]).encode(), "Label Studio's own JSON"),
        (json.dumps([{"image_id": 1, "bbox": []}]).encode(), "a list of results"),
        (json.dumps({"imagePath": "a", "shapes": []}).encode(), "a LabelMe file"),
    ],
)
def test_json_of_another_form(tmp_path, content, told):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_json(path)
    assert told in str(raised.value)


def test_a_folder_of_labels(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match=r"Is a directory; it holds YOLO label files"):
        load_json(tmp_path)
