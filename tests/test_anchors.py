import numpy as np
import pytest

from drkd_jax import anchors


def test_base_anchors_have_the_asked_areas_and_ratios_in_order():
    ratios, scales = (0.5, 1.0, 2.0), (4.0, 4.0 * 2 ** (1 / 3))
    base = anchors.base_anchors(8, ratios, scales)
    assert base.shape == (6, 4)
    assert base.dtype == np.float32
    widths, heights = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
    np.testing.assert_allclose(heights / widths, np.repeat(ratios, 2), rtol=1e-6)
    np.testing.assert_allclose(widths * heights, np.tile((8 * np.array(scales)) ** 2, 3), rtol=1e-6)
    np.testing.assert_array_equal(base[:, :2], -base[:, 2:])


def test_known_anchors_of_mmdetection():
    # Documented there for AnchorGenerator([16], [1.], [1.], [9]).
    np.testing.assert_array_equal(anchors.base_anchors(9, [1.0], [1.0]), [[-4.5, -4.5, 4.5, 4.5]])
    row = anchors.grid(anchors.base_anchors(9, [1.0], [1.0]), (2, 2), 16)
    expected = [[-4.5, -4.5, 4.5, 4.5], [11.5, -4.5, 20.5, 4.5]]
    np.testing.assert_array_equal(row[:2], expected)
    np.testing.assert_array_equal(row[2], [-4.5, 11.5, 4.5, 20.5])


def test_known_anchors_of_torchvision():
    # The cell anchors that torchvision prints for sizes (32,), ratios (0.5, 1, 2).
    base = anchors.base_anchors(1, (0.5, 1.0, 2.0), (32,), rounded=True)
    np.testing.assert_array_equal(
        base, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    )
    # A half rounds to even: side 101.
    np.testing.assert_array_equal(
        anchors.base_anchors(1, (1.0,), (101,), rounded=True), [[-50, -50, 50, 50]]
    )


def test_grid_runs_over_y_then_x_then_the_anchors_of_a_cell():
    base = anchors.base_anchors(4, (0.5, 2.0), (1,))
    rows = anchors.grid(base, (3, 5), (8, 4)).reshape(3, 5, 2, 4)
    for y in range(3):
        for x in range(5):
            shift = np.asarray([4 * x, 8 * y, 4 * x, 8 * y], np.float32)
            np.testing.assert_array_equal(rows[y, x], base + shift)


@pytest.mark.parametrize("stride", [4, 64])
def test_inside_by_centre_counts_the_cells_of_the_image(stride):
    map_hw = (256 // stride, 320 // stride)
    rows = anchors.grid(anchors.base_anchors(stride, (0.5, 1.0, 2.0), (8,)), map_hw, stride)
    sizes = np.asarray([[256, 320], [96, 160], [0, 0]], np.int32)
    got = np.asarray(anchors.inside(rows, sizes)).reshape(3, *map_hw, 3)
    for image, (height, width) in enumerate(sizes):
        cells = np.zeros(map_hw, bool)
        cells[: -(-height // stride), : -(-width // stride)] = True
        np.testing.assert_array_equal(got[image], np.repeat(cells[..., None], 3, axis=-1))
