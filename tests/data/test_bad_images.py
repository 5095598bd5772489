"""Unusual images, one row per kind: accepted, skipped with a message, or refused.

docs/data.md describes the same.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from drkd_jax.data.checking.check import check
from drkd_jax.data.pipeline import PipelineConfig, eval_batches, train_loader
from drkd_jax.data.plan import steps_per_epoch
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from tests.data.conftest import CocoFolder

CONFIG = PipelineConfig(
    batch_size=1,
    canvases=((64, 96), (96, 64)),
    shorter=64,
    longer=96,
    num_threads=0,
    drop_empty=False,
)
HEIGHT, WIDTH = 60, 80  # of a.jpg, as its annotations say

rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
IMAGE = np.stack([3 * columns, 4 * rows, 255 - 3 * columns], axis=2).astype(np.uint8)  # RGB
GREY = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)


def opencv(kind: str, image: np.ndarray = IMAGE) -> bytes:
    if image.ndim == 3:
        swap = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        image = cv2.cvtColor(image, swap)
    done, data = cv2.imencode(kind, image)
    assert done
    return data.tobytes()


def pillow(kind: str, mode: str = "RGB", **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def with_alpha(kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.dstack([IMAGE, GREY])).save(file, kind, **settings)
    return file.getvalue()


def animated(kind: str, **settings: Any) -> bytes:
    second = Image.fromarray(255 - IMAGE)
    return pillow(kind, save_all=True, append_images=[second], duration=100, **settings)


def turned(data: bytes, orientation: int = 6) -> bytes:
    """A JPEG with an EXIF orientation; 6 means to turn it clockwise for display."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes()
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def claiming(side: int) -> bytes:
    """A PNG whose header states a size that exceeds any memory."""
    data = bytearray(opencv(".png"))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(20) + data[middle + 20 :]


class Sound(NamedTuple):
    """A readable image: its bytes, the expected pixels, and the allowed mean error."""

    data: Callable[[], bytes]
    pixels: np.ndarray = IMAGE
    off: float = 0.0


def grey3() -> np.ndarray:
    return np.repeat(GREY[..., None], 3, axis=2)


SOUND = {
    "jpeg": Sound(lambda: pillow("JPEG", quality=95), off=2.0),
    "progressive jpeg": Sound(lambda: pillow("JPEG", quality=95, progressive=True), off=2.0),
    "bytes after the jpeg": Sound(lambda: pillow("JPEG", quality=95) + bytes(99), off=2.0),
    "grey jpeg": Sound(lambda: pillow("JPEG", "L", quality=95), grey3(), 1.5),
    "cmyk jpeg": Sound(lambda: pillow("JPEG", "CMYK", quality=95), off=3.0),
    "png under the name of a jpeg": Sound(lambda: pillow("PNG")),
    "16-bit png": Sound(lambda: opencv(".png", IMAGE.astype(np.uint16) * 257)),
    "16-bit grey png": Sound(lambda: opencv(".png", GREY.astype(np.uint16) * 257), grey3()),
    "rgba png": Sound(lambda: with_alpha("PNG")),
    "16-bit rgba png": Sound(
        lambda: opencv(".png", np.dstack([IMAGE, GREY]).astype(np.uint16) * 257)
    ),
    "grey png with alpha": Sound(lambda: pillow("PNG", "LA"), grey3(), 1.0),
    "palette png": Sound(lambda: pillow("PNG", "P"), off=25.0),  # 216 colours
    "1-bit png": Sound(lambda: pillow("PNG", "1"), grey3(), 128.0),  # black and white dots
    "bmp": Sound(lambda: pillow("BMP")),
    "tiff": Sound(lambda: pillow("TIFF")),
    "16-bit tiff": Sound(lambda: opencv(".tiff", IMAGE.astype(np.uint16) * 257)),
    "rgba tiff": Sound(lambda: with_alpha("TIFF")),
    "rgba tiff, turned, annotated as stored": Sound(
        lambda: with_alpha("TIFF", compression="tiff_lzw", tiffinfo={0x0112: 6})
    ),
    "webp": Sound(lambda: pillow("WEBP", lossless=True)),
    "rgba webp": Sound(lambda: with_alpha("WEBP", lossless=True, exact=True)),
    "gif": Sound(lambda: pillow("GIF"), off=12.0),  # 256 colours
    "animated gif": Sound(lambda: animated("GIF"), off=12.0),
    "animated webp": Sound(lambda: animated("WEBP", lossless=True)),
    "animated png": Sound(lambda: animated("PNG")),
    "exif-turned, annotated as stored": Sound(lambda: turned(pillow("JPEG", quality=95)), off=2.0),
    "exif-turned, annotated as shown": Sound(
        lambda: turned(pillow("JPEG", quality=95)), np.rot90(IMAGE, -1), 2.0
    ),
    "1x1": Sound(lambda: opencv(".png", IMAGE[:1, :1]), IMAGE[:1, :1]),
    "20000x50": Sound(
        lambda: opencv(".png", np.zeros((50, 20000, 3), np.uint8)),
        np.zeros((50, 20000, 3), np.uint8),
    ),
    "50x20000": Sound(
        lambda: opencv(".png", np.zeros((20000, 50, 3), np.uint8)),
        np.zeros((20000, 50, 3), np.uint8),
    ),
}

TRUNCATED = {
    "jpeg cut in half": lambda: pillow("JPEG")[:800],
    "jpeg without its last two bytes": lambda: pillow("JPEG")[:-2],
    "progressive jpeg cut": lambda: pillow("JPEG", progressive=True)[:-200],
    "jpeg header only": lambda: pillow("JPEG")[:20],
    "png cut": lambda: pillow("PNG")[:-40],
    "png damaged": lambda: damaged(pillow("PNG")),
    "png of 60000x60000": lambda: claiming(60000),
    "webp cut": lambda: pillow("WEBP")[:-40],
    "gif cut": lambda: pillow("GIF")[:900],
    "bmp cut": lambda: pillow("BMP")[:-900],
    "tiff cut": lambda: pillow("TIFF")[:90],
    "jpeg 2000 cut": lambda: opencv(".jp2")[:300],
    "pgm cut": lambda: opencv(".pgm", GREY)[:300],
    "32-bit float tiff": lambda: opencv(".tiff", IMAGE.astype(np.float32)),
}
NO_IMAGE = {
    "text": lambda: b"not an image",
    "zeros": lambda: bytes(5000),
}
OTHER_KINDS = {
    "web page": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "an HTML page"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="80"/>', "an SVG drawing"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(200), "a PDF document"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha", "git lfs pull"),
    "mp4": (lambda: b"\0\0\0\x20ftypisom" + bytes(99), "a video (MP4 or MOV)"),
    "heic": (lambda: b"\0\0\0\x20ftypheic" + bytes(99), "a HEIC photograph"),
}
UNREADABLE: dict[str, tuple[Callable[[CocoFolder], Any], str]] = {
    "missing": (lambda f: (f.images / "a.jpg").unlink(), "cannot be read: No such file"),
    "a folder": (
        lambda f: ((f.images / "a.jpg").unlink(), (f.images / "a.jpg").mkdir()),
        "cannot be read: Is a directory",
    ),
    "0 bytes": (lambda f: (f.images / "a.jpg").write_bytes(b""), "is empty (0 bytes)"),
    "size in the json unlike the file": (
        lambda f: (f.images / "a.jpg").write_bytes(opencv(".png", IMAGE[:50])),
        "the file is 80x50 pixels (width x height), its annotations say 80x60; correct",
    ),
}
for name, (make, told) in OTHER_KINDS.items():
    UNREADABLE[name] = (
        lambda f, make=make: (f.images / "a.jpg").write_bytes(make()),
        told,
    )
for kinds, told in ((TRUNCATED, "but is truncated or damaged"), (NO_IMAGE, "is not an image of")):
    for name, make in kinds.items():
        UNREADABLE[name] = (
            lambda f, make=make: (f.images / "a.jpg").write_bytes(make()),
            told,
        )


@pytest.mark.parametrize("kind", SOUND)
def test_images_that_work(coco_folder, kind):
    data, pixels, off = SOUND[kind]
    (coco_folder.images / "a.jpg").write_bytes(data())
    coco_folder.content["images"][0] |= {"height": pixels.shape[0], "width": pixels.shape[1]}
    coco_folder.write()
    source = open_source(coco_folder.spec)
    image = source.record(0).image
    assert image.shape == pixels.shape
    assert np.abs(image.astype(int) - pixels).mean() <= off
    (batch,) = (b for b in eval_batches(source, CONFIG) if b.index[0] == 0)
    height, width = batch.sizes[0]
    assert 0 < height <= batch.images.shape[1]
    assert 0 < width <= batch.images.shape[2]
    inside = batch.boxes[0][batch.valid[0]]
    assert np.isfinite(inside).all()
    assert (inside <= [width, height, width, height]).all()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_images_that_are_named(coco_folder, kind):
    spoil, told = UNREADABLE[kind]
    spoil(coco_folder)
    source = open_source(coco_folder.spec)  # images are read on demand
    loader = train_loader(source, CONFIG)
    with pytest.raises(UserError) as raised:
        [next(loader) for _ in range(steps_per_epoch(source, CONFIG))]
    assert told in str(raised.value)
    assert str(coco_folder.images / "a.jpg") in str(raised.value)
    (error,) = check(coco_folder.spec).errors
    assert error == str(raised.value)
