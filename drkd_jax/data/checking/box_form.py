"""Detects boxes that are not x, y, width, height in pixels, and the likely cause.

Letters: M annotations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from drkd_jax.data.sources.records import AnnotationTable
from drkd_jax.words import counted

LARGE = 0.05  # share of odd boxes from which a cause is searched for
_FITS = 0.8  # share of the odd boxes that a cause must explain
_SLACK = 1.0  # pixels that a box may extend outside before it counts as cut
_SEVERAL = 10  # number of boxes in an image's first pixel that cannot be a coincidence
_CLEAR = 0.15  # a smaller share of odd boxes can occur in a correct set
_NEARLY_ALL = 0.98  # share of all boxes
_BEYOND = 0.2  # share of the odd boxes that are completely outside
_MOST = 0.6  # share of wrong boxes from which a run would learn nonsense
_FEW = 20  # with fewer boxes "all of them" is no evidence


class BoxForm(NamedTuple):
    """The faults in the boxes of a set.

    Attributes:
        share: share of boxes that are cut at the edge of their image or unusable.
        cause: text for the likely cause, or "".
        none_usable: whether no box could be one in pixels.
        wrong: whether impossible boxes show that most or all have the cause's form, so that even
            those that look right are wrong.
    """

    share: float
    cause: str
    none_usable: bool
    wrong: bool = False


def box_form(table: AnnotationTable) -> BoxForm:
    """Examines all boxes of a set together."""
    count = len(table.ids)
    if not count:
        return BoxForm(0.0, "", True)
    odd = cut(table) | ~table.usable
    share = float(odd.mean())
    unit, corners = _within_unit(table), _area_of_corners(table)
    none_usable = not (table.usable & ~unit).any() and bool(unit.any() or not table.usable.any())
    if unit.mean() >= LARGE or unit.sum() >= _SEVERAL:
        cause, some = counted(int(unit.sum()), "box", _NORMALISED), float(unit.mean())
        return BoxForm(max(share, some), cause, none_usable, some >= _MOST)
    if corners.mean() >= LARGE:
        some = float(corners.mean())
        return BoxForm(max(share, some), _CORNERS, none_usable, some >= _MOST)
    if share >= LARGE:
        cause, wrong = _explain(table, odd, share)
        return BoxForm(share, cause, none_usable, wrong)
    # No box is odd here, so _shares only guesses, and may be wrong about a correct set.
    return BoxForm(share, _shares(table), none_usable)


def cut(table: AnnotationTable) -> Bool[np.ndarray, "M"]:
    """Marks the boxes that extend outside their image by more than a pixel."""
    x, y, w, h = table.bbox.T
    over = np.abs(table.clipped - np.stack([x, y, x + w, y + h], axis=1)).max(axis=1, initial=0)
    return table.usable & (over > _SLACK)


_NORMALISED = "have values between 0 and 1 only: normalised? COCO's bbox is in pixels"
_CORNERS = "corners instead of width and height? COCO's bbox is x, y, width, height"
_CENTRES = "centres instead of top left corners? COCO's bbox starts at the top left corner"
_SWAPPED = "y before x? COCO's bbox is x, y, width, height"
_CORNERS_Y = "corners, y before x (ymin, xmin, ymax, xmax)? COCO's bbox is x, y, width, height"
_SPANS = "spans (xmin, xmax, ymin, ymax)? COCO's bbox is x, y, width, height"
_OTHER_SIZE = "boxes of images of another size? They refer to the file's own pixels"


def _within_unit(table: AnnotationTable) -> Bool[np.ndarray, "M"]:
    """Boxes within an image's first pixel, as relative ones are (they may slightly exceed 1)."""
    x, y, w, h = table.bbox.T
    big = table.sizes[table.image_of].min(axis=1) > 4
    within = (np.abs([x, y]).max(axis=0) <= 1.5) & (np.maximum(w, h) <= 1.5)
    return big & within & (np.maximum(w, h) > 0)


def _area_of_corners(table: AnnotationTable) -> Bool[np.ndarray, "M"]:
    """Boxes whose stated area fits corners, but not width and height."""
    x, y, w, h = table.bbox.T
    area, as_stated, as_corners = table.area, w * h, (w - x) * (h - y)
    right = (w > x) & (h > y) & (area > 0)
    near = np.abs(area - as_corners) <= 0.01 * area
    return right & near & (np.abs(area - as_stated) > 0.05 * area)


def _explain(table: AnnotationTable, odd: np.ndarray, share: float) -> tuple[str, bool]:
    """The cause that explains most of the odd boxes, and whether it makes most or all boxes wrong.

    Some odd boxes of a correct set look like centres or swapped axes. So these causes are accepted
    only if many boxes are odd, or if all boxes of the set would then fit.
    """
    x, y, w, h = table.bbox.T
    height, width = table.sizes[table.image_of].T

    def inside(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
        low = (x1 >= -_SLACK) & (y1 >= -_SLACK) & (x2 > x1) & (y2 > y1)
        return low & (x2 <= width + _SLACK) & (y2 <= height + _SLACK)

    # Boxes that are odd for another reason (area, small size) are no evidence about the form.
    odd = odd & ~inside(x, y, x + w, y + h)
    if odd.mean() < LARGE:
        return "", False
    causes = {
        _CORNERS: inside(x, y, w, h),
        _CENTRES: inside(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
        _SWAPPED: inside(y, x, y + h, x + w),
        _CORNERS_Y: inside(y, x, h, w),
        _SPANS: inside(x, w, y, h),
    }
    fits = {
        cause: float(rows[odd].mean())
        for cause, rows in causes.items()
        if cause == _CORNERS or share >= _CLEAR or rows.mean() >= _NEARLY_ALL
    }
    best = max(fits, key=lambda cause: fits[cause])
    # In a correct set of one or two images all boxes may extend outside.
    enough = len(x) >= _FEW
    most = bool(enough and odd.mean() >= _MOST)
    if fits[best] >= _FITS:
        # Correct boxes of large objects that extend slightly outside also fit as corners.
        telling = enough and best not in (_CORNERS, _CORNERS_Y) and odd.mean() >= _CLEAR
        return best, most or bool(telling and causes[best].mean() >= _NEARLY_ALL)
    beyond = (x >= width) | (y >= height)
    return (_OTHER_SIZE, most) if beyond[odd].mean() >= _BEYOND else ("", False)


def _shares(table: AnnotationTable) -> str:
    """Whether all boxes look like shares of 100 or of 1000, in images larger than that."""
    x, y, w, h = table.bbox.T
    if len(x) < _FEW or len(np.unique(table.image_of)) < 5:
        return ""
    sides = np.sort(table.sizes[table.image_of], axis=1)
    shorter, longer = sides.min(axis=0)
    near, far = sorted([(x + w).max(), (y + h).max()])
    for whole, name in ((100, "percent"), (1000, "thousandths")):
        # The closer this is to the images' size, the more of the range the boxes must fill.
        much_larger = shorter >= 2 * whole and far >= 0.8 * whole and near >= 0.6 * whole
        larger = shorter > whole and longer >= 1.5 * whole and near >= 0.9 * whole
        if far <= 1.01 * whole and (much_larger or larger):
            return (
                f"all boxes lie in the first {whole} pixels of larger images: in {name}? COCO's "
                "bbox is in pixels"
            )
    return ""
