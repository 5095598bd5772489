"""Pictures with what each run found on them, switched by radio buttons alone.

A picture is embedded once; ground truth and every run are SVG layers over it, of which the style
sheet shows the one whose button is checked.

Letters: H W pixels of the picture.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from drkd_jax.errors import UserError
from drkd_jax.report.figures import Found, matched
from drkd_jax.report.page.changes import Looked, most_changed
from drkd_jax.report.page.markup import Html, join, tag
from drkd_jax.report.page.runs import Truth

MOST = 6  # pictures of each kind
LONGER = 640  # pixels of an embedded picture's longer side, at most
_QUALITY = 80
_UNCHANGED = 3  # pictures that are shown where none changed


def gallery(
    pictures: Sequence[Looked],
    names: Sequence[str],
    classes: Sequence[str],
    truth: Truth,
    reference: int,
    other: int,
) -> Html:
    """The pictures that changed most from one run to the other, helped and hurt.

    Args:
        pictures: All that have objects.
        names: Of the runs.
        classes: By label.
        truth: Where the pictures are read.
        reference: Position of the run that is compared with.
        other: Position of the run that the pictures are sorted by.
    """
    helped, hurt = most_changed(pictures, reference, other, MOST)
    changes = np.array([p.right[other] - p.right[reference] for p in pictures], int)
    total = [sum(p.right[run] for p in pictures) for run in (reference, other)]
    objects = sum(len(p.truth.boxes) for p in pictures)
    words = (
        f"Each run shows its best boxes, as many as the picture has objects; a box is right where "
        f"it overlaps a free object of its class by at least half. Over the {len(pictures)} "
        f"pictures with objects {names[reference]} finds {total[0]} of {objects} so"
    )
    if reference == other:
        words += "."
    else:
        words += (
            f", {names[other]} {total[1]}. {names[other]} finds more in "
            f"{int((changes > 0).sum())} pictures, fewer in {int((changes < 0).sum())}, as many in "
            f"{int((changes == 0).sum())}. Pictures are sorted by that change."
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
                "The first pictures"
                if reference == other
                else "No picture changed; the first ones",
                list(pictures[:_UNCHANGED]),
                "same",
            )
        ]
    for title, chosen, group in groups:
        parts.append(tag("h3", title))
        if not chosen:
            parts.append(tag("p", "There is no such picture."))
            continue
        scenes = [
            _scene(p, f"{group}{i}", names, classes, truth, reference, other)
            for i, p in enumerate(chosen)
        ]
        parts.append(tag("div", scenes, class_="scenes"))
    return join(parts)


def embedded(image: UInt8[np.ndarray, "H W 3"], longer: int = LONGER) -> str:
    """A picture as a JPEG inside a URL, shrunk where it is larger than it is shown."""
    factor = longer / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    settings = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _scene(
    picture: Looked,
    group: str,
    names: Sequence[str],
    classes: Sequence[str],
    truth: Truth,
    reference: int,
    other: int,
) -> Html:
    try:
        record = truth.source.record(picture.place)
    except UserError as error:
        words = f"This picture cannot be read: {' '.join(str(error).split())}"
        return tag("p", words, class_="scene warning")
    number = len(picture.truth.boxes)
    height, width = record.image.shape[:2]
    layers = [_layer(height, width, classes, picture.truth, np.ones(number, bool), None)]
    texts = [f"ground truth ({number})"]
    for name, found, right in zip(names, picture.found, picture.right, strict=True):
        taken = matched(picture.truth, found)
        missed = np.ones(number, bool)
        missed[taken[taken >= 0]] = False
        objects = Found(picture.truth.boxes[missed], picture.truth.labels[missed])
        layers.append(_layer(height, width, classes, found, taken >= 0, objects))
        texts.append(f"{name} ({right} of {number})")
    buttons = [
        tag("input", type="radio", name=group, id=f"{group}-{i}", checked=i == other + 1)
        for i in range(len(layers))
    ]
    labels = [tag("label", text, for_=f"{group}-{i}") for i, text in enumerate(texts)]
    image = tag(
        "img",
        src=embedded(np.asarray(record.image)),
        width=width,
        height=height,
        alt=f"{Path(record.name).name}: {number} objects, {', '.join(texts[1:])}",
    )
    change = picture.right[other] - picture.right[reference]
    name = Path(record.name).name
    mark, title = None, f"{name}: {picture.right[other]} of {number}"
    if reference != other:
        mark = tag("strong", f"{change:+d}")
        title = f"{name}: {picture.right[reference]} to {picture.right[other]} of {number}"
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
        # At the right edge letters run to the left, or they would be cut off.
        fits = x1 + 0.6 * letters * len(text) < width
        place, anchor = (x1, None) if fits else (min(x2, width), "end")
        words = tag("text", text, x=place, y=f"{above:.1f}", text_anchor=anchor)
    outline = tag("path", d=path)
    return tag("g", tag("title", title), outline, outline, words, class_=kind)
