from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax.data.transforms import fit, resize, scale_boxes

COCO = ((800, 1344), (1344, 800))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [  # by hand: scale = min(1333 / longer, 800 / shorter), then int(side * scale + 0.5)
        (480, 640, (800, 1067)),
        (427, 640, (800, 1199)),
        (333, 640, (694, 1333)),
        (640, 480, (1067, 800)),
        (500, 500, (800, 800)),
    ],
)
def test_resize_rule(height, width, size):
    canvas, fitted = fit(height, width, 800, 1333, COCO)
    assert fitted == size
    assert canvas == (0 if width >= height else 1)


@pytest.mark.parametrize(
    ("height", "width", "mmdet", "torchvision"),
    [  # what mmcv 2.1.0's imrescale and torchvision 0.14.1's GeneralizedRCNNTransform made of them
        (480, 640, (800, 1067), (800, 1066)),
        (427, 640, (800, 1199), (799, 1199)),
        (333, 640, (694, 1333), (693, 1333)),
        (375, 500, (800, 1067), (799, 1066)),
        (612, 612, (800, 800), (800, 800)),
        (33, 2000, (22, 1333), (21, 1333)),
        (1080, 1920, (750, 1333), (749, 1333)),
        (1, 7, (190, 1333), (190, 1333)),
    ],
)
def test_sides_are_the_library_s(height, width, mmdet, torchvision):
    canvases = ((1344, 1344),)
    assert fit(height, width, 800, 1333, canvases)[1] == mmdet
    assert fit(height, width, 800, 1333, canvases, "torchvision")[1] == torchvision


def test_floats_are_interpolated_and_bytes_are_rounded():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 5
    floats, rounded = (resize(image, (1, 4), dtype) for dtype in (np.float32, np.uint8))
    # pixel centres at halves, no antialiasing: torchvision's align_corners=False
    np.testing.assert_array_equal(floats[0, :, 0], [0, 1.25, 3.75, 5])
    np.testing.assert_array_equal(rounded[0, :, 0], [0, 1, 4, 5])


def test_smallest_holding_canvas():
    canvases = ((800, 1344), (800, 1088), (1344, 800))
    assert fit(480, 640, 800, 1333, canvases)[0] == 1
    assert fit(427, 640, 800, 1333, canvases)[0] == 0


def test_no_canvas_holds_it():
    canvas, size = fit(100, 200, 200, 400, ((64, 64), (96, 128), (128, 96)))
    assert canvas == 1
    assert size == (64, 128)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_always_on_its_canvas(height, width, canvases):
    canvas, size = fit(height, width, 200, 333, canvases)
    assert 1 <= size[0] <= canvases[canvas][0]
    assert 1 <= size[1] <= canvases[canvas][1]


def test_boxes_are_scaled_with_their_picture():
    boxes = np.array([[1, 2, 20, 10]], np.float32)
    scaled = scale_boxes(boxes, np.array([2.0, 2.0], np.float32), (20, 40))
    np.testing.assert_array_equal(scaled, [[2, 4, 40, 20]])


@pytest.mark.parametrize(("height", "width"), [(480, 640), (33, 2000), (900, 300)])
def test_a_stretched_picture_has_the_sides_that_are_asked_for(height, width):
    assert fit(height, width, 300, 500, ((320, 512),), "stretch") == (0, (300, 500))
    assert fit(height, width, 500, 300, ((320, 512), (512, 320)), "stretch") == (1, (500, 300))
    assert fit(height, width, 600, 400, ((320, 512), (512, 320)), "stretch") == (1, (480, 320))
