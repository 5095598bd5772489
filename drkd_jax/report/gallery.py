"""Images of the page, switched by radio buttons alone: what each run found, relation heat maps.

An image is embedded once. Ground truth and every run are SVG layers over it, and for each pixel
that can be picked there are heat maps of how alike all others are to it; the style sheet shows
those whose button is checked.

Letters: H W pixels of the image, h w one feature map.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps

from drkd_jax.draw import scaled
from drkd_jax.errors import UserError, one_line
from drkd_jax.report.found import Found, Looked, matched, most_changed
from drkd_jax.report.markup import Html, join, tag
from drkd_jax.report.relations import Relations, similarity
from drkd_jax.report.runs import Truth
from drkd_jax.words import counted

_MOST = 6  # most images of each kind
_LONGER = 640  # most pixels of an embedded image's longer side
_QUALITY = 80
_UNCHANGED = 3  # images to show if none changed
MOST_PIXELS = 4  # pixels to choose from
_LONGER_MAP = 256  # pixels of a heat map's longer side


def gallery(
    images: Sequence[Looked],
    names: Sequence[str],
    classes: Sequence[str],
    truth: Truth,
    reference: int,
    other: int,
) -> Html:
    """The images that changed most from one run to the other, helped and hurt.

    Args:
        images: All images that have objects.
        names: Names of the runs.
        classes: Classes by label.
        truth: The source of the images.
        reference: Index of the reference run.
        other: Index of the run that the images are sorted by.
    """
    helped, hurt = most_changed(images, reference, other, _MOST)
    changes = np.array([p.right[other] - p.right[reference] for p in images], int)
    total = [sum(p.right[run] for p in images) for run in (reference, other)]
    objects = sum(len(p.truth.boxes) for p in images)
    words = (
        f"Each run shows its best boxes, as many as the image has objects; a box is right where "
        f"it overlaps a free object of its class by at least half. Over "
        f"{counted(len(images), 'image')} with objects, {names[reference]} finds {total[0]} of "
        f"{objects} so"
    )
    if reference == other:
        words += "."
    else:
        words += (
            f", {names[other]} {total[1]}. {names[other]} finds more in "
            f"{counted(int((changes > 0).sum()), 'image')}, fewer in {int((changes < 0).sum())}, "
            f"as many in {int((changes == 0).sum())}. Images are sorted by that change."
        )
    key = tag(
        "ul",
        tag("li", tag("span", class_="key right"), "right box, or object in the ground truth"),
        tag("li", tag("span", class_="key wrong"), "wrong box"),
        tag("li", tag("span", class_="key missed"), "object that was not found"),
        class_="legend",
    )
    parts: list[Html] = [tag("p", words), key]
    groups = [
        (f"Helped most: {names[other]} finds more than {names[reference]}", helped, "more"),
        (f"Hurt most: {names[other]} finds fewer than {names[reference]}", hurt, "fewer"),
    ]
    if not helped and not hurt:
        groups = [
            (
                "The first images" if reference == other else "No image changed; the first ones",
                list(images[:_UNCHANGED]),
                "same",
            )
        ]
    for title, chosen, group in groups:
        parts.append(tag("h3", title))
        if not chosen:
            parts.append(tag("p", "No image."))
            continue
        scenes = [
            _scene(p, f"{group}{i}", names, classes, truth, reference, other)
            for i, p in enumerate(chosen)
        ]
        parts.append(tag("div", scenes, class_="scenes"))
    return join(parts)


def _embedded(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """An image as a JPEG data URL, shrunk if it is larger than shown."""
    image = scaled(image, min(1.0, _LONGER / max(image.shape[:2])))
    settings = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _scene(
    looked: Looked,
    group: str,
    names: Sequence[str],
    classes: Sequence[str],
    truth: Truth,
    reference: int,
    other: int,
) -> Html:
    try:
        record = truth.source.record(looked.place)
    except UserError as error:
        return tag("p", f"This image cannot be read: {one_line(error)}", class_="scene warning")
    number = len(looked.truth.boxes)
    height, width = record.image.shape[:2]
    layers = [_layer(height, width, classes, looked.truth, np.ones(number, bool), None)]
    texts = [f"ground truth ({number})"]
    for name, found, right in zip(names, looked.found, looked.right, strict=True):
        taken = matched(looked.truth, found)
        missed = np.ones(number, bool)
        missed[taken[taken >= 0]] = False
        objects = Found(looked.truth.boxes[missed], looked.truth.labels[missed])
        layers.append(_layer(height, width, classes, found, taken >= 0, objects))
        texts.append(f"{name} ({right} of {number})")
    buttons = [
        tag("input", type="radio", name=group, id=f"{group}-{i}", checked=i == other + 1)
        for i in range(len(layers))
    ]
    labels = [tag("label", text, for_=f"{group}-{i}") for i, text in enumerate(texts)]
    image = tag(
        "img",
        src=_embedded(np.asarray(record.image)),
        width=width,
        height=height,
        alt=f"{Path(record.name).name}: {counted(number, 'object')}, {', '.join(texts[1:])}",
    )
    change = looked.right[other] - looked.right[reference]
    name = Path(record.name).name
    mark, title = None, f"{name}: {looked.right[other]} of {number}"
    if reference != other:
        mark = tag("strong", f"{change:+d}")
        title = f"{name}: {looked.right[reference]} to {looked.right[other]} of {number}"
    return tag(
        "fieldset",
        tag("legend", mark, " ", title, title=record.name),
        buttons,
        tag("div", labels, class_="tabs"),
        tag("div", image, layers, class_="frame"),
        class_="scene",
    )


def _layer(
    height: int,
    width: int,
    classes: Sequence[str],
    found: Found,
    right: np.ndarray,
    missed: Found | None,
) -> Html:
    letters = max(height, width) / 34
    parts = []
    if missed is not None:
        for box, label in zip(missed.boxes, missed.labels, strict=True):
            parts.append(_box(box, "missed", f"{classes[label]}, not found", "", letters, width))
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        score = "" if found.scores is None or missed is None else f" {found.scores[i]:.2f}"
        text = classes[label] + score
        parts.append(_box(box, "right" if right[i] else "wrong", text, text, letters, width))
    return tag(
        "svg",
        parts,
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        font_size=f"{letters:.1f}",
        aria_hidden="true",
    )


def _box(box: np.ndarray, kind: str, title: str, text: str, letters: float, width: int) -> Html:
    x1, y1, x2, y2 = (round(float(v), 1) for v in box)
    path = f"M{x1} {y1}H{x2}V{y2}H{x1}Z"
    words = None
    if text:
        above = y1 - 0.25 * letters if y1 > 1.3 * letters else y2 + 0.95 * letters
        # At the right edge text extends to the left, or it would be cut off.
        fits = x1 + 0.6 * letters * len(text) < width
        place, anchor = (x1, None) if fits else (min(x2, width), "end")
        words = tag("text", text, x=place, y=f"{above:.1f}", text_anchor=anchor)
    outline = tag("path", d=path)
    return tag("g", tag("title", title), outline, outline, words, class_=kind)


def heat_maps(shown: Relations, names: Mapping[str, str]) -> Html | None:
    """An image with pixels to pick, and for each of them the maps of both sides.

    The pixels are the centres of the largest objects.

    Args:
        shown: The relations of a run on one image.
        names: Names of its sides ("teacher", "student").

    Returns:
        The markup; None if the run has no pixel relation or the image no object.
    """
    if not shown.pixel or not len(shown.boxes):
        return None
    height, width = shown.image.shape[:2]
    # Each pixel once, that of the largest object first.
    points = list(dict.fromkeys(map(shown.centre, shown.largest)))[:MOST_PIXELS]
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
    image = tag("img", src=_embedded(shown.image), alt="image with the pixels to pick")
    views = [tag("div", _views(shown, names, p, i + 1)) for i, p in enumerate(points)]
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
    frame = tag("div", image, marks, class_="frame marks")
    whole = tag(
        "fieldset",
        tag("legend", "Pixels to pick"),
        buttons,
        frame,
        tag("div", views, class_="views"),
        class_="scene pick",
    )
    return join(tag("p", words), scale, whole)


def _views(
    shown: Relations, names: Mapping[str, str], point: tuple[int, int], number: int
) -> list[Html]:
    figures = []
    for side, pair in shown.pixel.items():
        for features, what in zip(pair, ("x", "φ(x)"), strict=True):
            values = similarity(features, point)
            title = f"{names.get(side, side)}, {what}"
            alt = f"{title}: alike to pixel {number}; {np.mean(values > 0.5):.0%} above 0.5"
            image = tag("img", src=_coloured(values, point), alt=alt)
            figures.append(tag("figure", tag("figcaption", title), image))
    return figures


def _coloured(values: Float[np.ndarray, "h w"], point: tuple[int, int]) -> str:
    """A PNG data URL: blue -1, grey 0, red +1; the picked pixel is yellow."""
    colours = colormaps["coolwarm"]((values + 1) / 2)[..., :3]
    colours[point] = (1.0, 0.9, 0.0)
    factor = max(1, _LONGER_MAP // max(values.shape))
    pixels = np.rint(255 * colours[..., ::-1]).astype(np.uint8)  # OpenCV expects BGR
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    _, data = cv2.imencode(".png", pixels)
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
