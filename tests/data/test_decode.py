from __future__ import annotations

import cv2
import numpy as np
import pytest

from drkd_jax.data.decode import decode_picture, stored_size
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
def picture() -> np.ndarray:
    image = np.zeros((24, 40, 3), np.uint8)
    image[:12, :20] = (255, 0, 0)  # blue, as OpenCV counts
    return image


def test_rgb(picture):
    data = cv2.imencode(".png", picture)[1].tobytes()
    np.testing.assert_array_equal(decode_picture(data, "x", 24, 40), picture[:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_and_deep_become_rgb(dtype, channels):
    image = np.full((5, 7, channels), np.iinfo(dtype).max, dtype)
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(decode_picture(data, "x"), np.full((5, 7, 3), 255, np.uint8))


def test_orientation_is_obeyed_only_where_the_stated_size_wants_it(picture):
    data = _turned(_jpeg(picture), 6)  # to be shown turned clockwise
    assert decode_picture(data, "x").shape == (24, 40, 3)
    as_stored = decode_picture(data, "x", 24, 40)
    turned = decode_picture(data, "x", 40, 24)
    np.testing.assert_array_equal(turned, np.rot90(as_stored, -1))


def test_size_from_the_header(picture):
    data = _jpeg(picture)
    assert stored_size(data, "x") == (24, 40)
    assert stored_size(_turned(data, 6), "x") == (24, 40)
    assert stored_size(cv2.imencode(".png", picture)[1].tobytes(), "x") == (24, 40)
    with pytest.raises(UserError, match="broken"):
        stored_size(data[:10], "broken")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", [".png", ".tiff", ".pgm"])
def test_depth_makes_the_brightest_value_white(bits, kind):
    brightest = (1 << bits) - 1
    deep = np.linspace(0, brightest, 35).reshape(5, 7).round().astype(np.uint16)
    data = cv2.imencode(kind, deep)[1].tobytes()
    image = decode_picture(data, "x", depth=bits)
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 255)
    np.testing.assert_allclose(image[..., 0], deep * (255 / brightest), atol=0.5)


def test_depth_leaves_8_bits_alone_and_cuts_what_is_brighter():
    plain = np.arange(35, dtype=np.uint8).reshape(5, 7)
    data = cv2.imencode(".png", plain)[1].tobytes()
    np.testing.assert_array_equal(decode_picture(data, "x", depth=12)[..., 0], plain)
    data = cv2.imencode(".png", np.full((5, 7), 60000, np.uint16))[1].tobytes()
    assert (decode_picture(data, "x", depth=12) == 255).all()
    colours = np.array([[[4095, 0, 2048]]], np.uint16)  # BGR
    data = cv2.imencode(".png", colours)[1].tobytes()
    assert decode_picture(data, "x", depth=12).tolist() == [[[128, 0, 255]]]
