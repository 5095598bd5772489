"""Relation heat maps: how alike all pixels are to one that the reader picks on the picture.

Letters: h w one feature map, C channels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float
from matplotlib import colormaps

from drkd_jax.report.figures import similarity
from drkd_jax.report.page.gallery import embedded
from drkd_jax.report.page.markup import Html, join, tag
from drkd_jax.report.relations import Relations

MOST = 4  # pixels to choose from
_PIXELS = 256  # of a heat map's longer side


def heat_maps(shown: Relations, names: Mapping[str, str]) -> Html | None:
    """A picture with pixels to pick, and for each of them the maps of both sides.

    The pixels are the centres of the largest objects.

    Args:
        shown: What the relation modules of a run made of one picture.
        names: Of its sides ("teacher", "student").

    Returns:
        None where the run has no pixel relation or the picture no object.
    """
    if not shown.pixel or not len(shown.boxes):
        return None
    height, width = shown.image.shape[:2]
    points = _points(shown)
    buttons = [
        tag("input", type="radio", name="pixel", id=f"pixel-{i}", checked=i == 0)
        for i in range(len(points))
    ]
    marks = []
    for i, (row, column) in enumerate(points):
        left, top = ((v + 0.5) * shown.stride for v in (column, row))
        style = f"left:{100 * left / width:.2f}%;top:{100 * top / height:.2f}%"
        label = tag("label", str(i + 1), for_=f"pixel-{i}", style=style, title=f"pixel {i + 1}")
        marks.append(label)
    picture = tag("img", src=embedded(shown.image), alt="picture with the pixels to pick")
    views = [tag("div", _maps(shown, names, p, i + 1)) for i, p in enumerate(points)]
    words = (
        "Pick a pixel by its number: the maps show how alike every other pixel's features are to "
        "it (cosine, the mean over the map taken off), before (x) and after (φ(x)) the relation "
        f"module of each side, at stride {shown.stride}."
    )
    scale = tag(
        "p",
        "-1, opposite ",
        tag("span", class_="scale", aria_hidden="true"),
        " +1, alike; 0 is the mean of the map",
        class_="small",
    )
    frame = tag("div", picture, marks, class_="frame marks")
    whole = tag(
        "fieldset",
        tag("legend", "Pixels to pick"),
        buttons,
        frame,
        tag("div", views, class_="views"),
        class_="scene pick",
    )
    return join(tag("p", words), scale, whole)


def _points(shown: Relations) -> list[tuple[int, int]]:
    """Row and column of the feature pixels at the centres of the largest objects, each once."""
    sides = shown.boxes[:, 2:] - shown.boxes[:, :2]
    rows, columns = _extent(shown)
    points: dict[tuple[int, int], None] = {}
    for i in np.argsort(-sides.prod(axis=1), kind="stable"):
        x, y = (shown.boxes[i, :2] + shown.boxes[i, 2:]) / 2 / shown.stride
        points[min(int(y), rows - 1), min(int(x), columns - 1)] = None
    return list(points)[:MOST]


def _extent(shown: Relations) -> tuple[int, int]:
    """Feature rows and columns that lie on the picture; the others are padding."""
    height, width = shown.image.shape[:2]
    return -(-height // shown.stride), -(-width // shown.stride)


def _maps(
    shown: Relations, names: Mapping[str, str], point: tuple[int, int], number: int
) -> list[Html]:
    rows, columns = _extent(shown)
    figures = []
    for side, pair in shown.pixel.items():
        for features, what in zip(pair, ("x", "φ(x)"), strict=True):
            values = similarity(np.asarray(features)[:rows, :columns], point)
            title = f"{names.get(side, side)}, {what}"
            alt = f"{title}: alike to pixel {number}; {np.mean(values > 0.5):.0%} above 0.5"
            image = tag("img", src=_coloured(values, point), alt=alt)
            figures.append(tag("figure", tag("figcaption", title), image))
    return figures


def _coloured(values: Float[np.ndarray, "h w"], point: tuple[int, int]) -> str:
    """A PNG inside a URL: blue -1, grey 0, red +1; the picked pixel is yellow."""
    colours = colormaps["coolwarm"]((values + 1) / 2)[..., :3]
    colours[point] = (1.0, 0.9, 0.0)
    factor = max(1, _PIXELS // max(values.shape))
    pixels = np.rint(255 * colours[..., ::-1]).astype(np.uint8)  # OpenCV wants BGR
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    _, data = cv2.imencode(".png", pixels)
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
