"""Sets whose 16-bit pictures use fewer bits: said with the brightest value, and mended by a key."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from drkd_jax.data.check import check
from drkd_jax.data.findings import find
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
def test_dark_pictures_are_said_and_mended(coco_folder, bits, kind):
    deepen(coco_folder, bits, kind)
    brightest = (1 << bits) - 1
    told = (
        f"2 pictures hold 16-bit numbers; the brightest of 2 looked at is {brightest} of 65535, "
        "they are read as 16 bits: a.jpg, b.jpg. They come out dark: "
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
