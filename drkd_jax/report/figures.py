"""Figures of detections, and of the relations between pixels and between boxes.

Letters: H W pixels of the image, n boxes, h w one feature map, K classes.

Everything here takes plain arrays and writes one PNG. ``Figure`` is used without pyplot: no
window, no global state, and Agg draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from drkd_jax.draw import class_colour, draw_detections, scaled
from drkd_jax.report.found import Found, count
from drkd_jax.words import counted

DPI = 120
PANEL = 3.7  # inches, of an image's longer side
_PIXELS = round(PANEL * DPI)  # drawings are made in the size that they are shown in
PIXELS_HEADING = "Which pixels are alike to the marked one"
_WIDEST = 8.0  # largest width, in heights, of an image beside matrices
_WRITTEN = 10  # up to this many boxes the cells of a matrix show their numbers
_plain_texts = rc_context({"text.parse_math": False})  # names may contain dollar signs


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image, its annotations, and the detections of each detector."""

    image: UInt8[np.ndarray, "H W 3"]
    truth: Found
    found: Mapping[str, Found]
    title: str = ""


@_plain_texts
def detections(path: str | Path, scenes: Sequence[Scene], names: Sequence[str]) -> None:
    """Ground truth and every detector side by side, one row per image.

    Each detector shows its best boxes, as many as there are objects: so a cautious and a bold
    detector, or an early and a late one, are compared on the same terms. Below each panel is the
    number of objects they found (same class, overlap of at least half).

    Args:
        path: PNG to write.
        scenes: At least one; all with the same detectors.
        names: The K class names.
    """
    columns = ["ground truth", *scenes[0].found]
    # A portrait is as high as a landscape is wide.
    heights = [min(1.0, s.image.shape[0] / s.image.shape[1]) for s in scenes]
    figure = Figure(
        figsize=(PANEL * len(columns), PANEL * sum(heights) + 0.35 * len(scenes) + 0.9),
        layout="constrained",
    )
    figure.suptitle(
        "What each detector finds: its best boxes, as many as there are objects", fontsize=14
    )
    axes = figure.subplots(len(scenes), len(columns), squeeze=False, height_ratios=heights)
    used: set[int] = set()
    for row, scene in zip(axes, scenes, strict=True):
        for ax, column in zip(row, columns, strict=True):
            found = scene.truth if column == "ground truth" else scene.found[column]
            found = found.best(len(scene.truth.boxes))
            used |= {int(v) for v in found.labels}
            texts = [""] * len(found.boxes)
            if found.scores is not None:
                texts = [f"{v:.2f}".lstrip("0") for v in found.scores]
            _show(ax, _drawn(scene.image, found, names, texts))
            if column == "ground truth":
                caption = (
                    f"{scene.title}{', ' if scene.title else ''}{counted(len(texts), 'object')}"
                )
            else:
                right, _ = count(scene.truth, found)
                caption = f"{right} of {len(scene.truth.boxes)} found"
            ax.set_xlabel(caption, fontsize=10)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, fontsize=12)
    _class_legend(figure, sorted(used), names)
    figure.savefig(path, dpi=DPI)


@_plain_texts
def draw_pixels(
    path: Path,
    image: UInt8[np.ndarray, "H W 3"],
    stride: int,
    rows: Sequence[tuple[tuple[int, int], Mapping[str, Float[np.ndarray, "_ _"]]]],
    *,
    heading: str = PIXELS_HEADING,
    labels: Sequence[str] = (),
    box: Float[np.ndarray, "4"] | None = None,
) -> None:
    """The similarity of every pixel to a marked one: a row per marked pixel, a column per map.

    Args:
        path: PNG to write.
        image: The image as the detectors saw it, without its padding.
        stride: Pixels of `image` from one map pixel to the next.
        rows: (row, column) of the marked pixel of the map, and its similarities [h, w] by title;
            all with the same titles.
        heading: The heading above everything.
        labels: The labels of the rows, if any.
        box: An object to frame, xyxy, pixels of `image`.

    Raises:
        OSError: It cannot be written.
    """
    height, width = image.shape[:2]
    titles = ["image", *rows[0][1]]
    side = PANEL / max(height, width)
    figure = Figure(
        figsize=(side * width * len(titles) + 1.2, (side * height + 0.1) * len(rows) + 1.1),
        layout="constrained",
    )
    figure.suptitle(heading, fontsize=14)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    drawn = None
    for (left, *rest), (point, maps) in zip(axes, rows, strict=True):
        _show(left, image)
        _mark(left, point, stride, box)
        for ax, values in zip(rest, maps.values(), strict=True):
            _show(ax, grey)
            drawn = _overlay(ax, image, values, stride)
            _mark(ax, point, stride, box)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    for ax, label in zip(axes[:, 0], labels, strict=False):
        ax.set_ylabel(label, fontsize=12)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.015)
        bar.set_label(f"cosine with the marked pixel (mean taken off), stride {stride}")
    figure.savefig(path, dpi=DPI)


@_plain_texts
def draw_boxes(
    path: Path,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    names: Sequence[str],
    matrices: Mapping[str, Float[np.ndarray, "n n"]],
    difference: Float[np.ndarray, "n n"] | None = None,
) -> None:
    """The numbered boxes of an image, and the relation matrices between them.

    Args:
        path: PNG to write.
        image: The image as the detectors saw it, without its padding.
        boxes: xyxy, pixels of `image`; at least one.
        labels: 0..K-1.
        names: The K class names.
        matrices: psi by title; every row is a softmax, so it sums to 1.
        difference: The second minus the first, if it should be shown.

    Raises:
        OSError: It cannot be written.
    """
    top = max(float(matrix.max()) for matrix in matrices.values())
    shown = [(title, psi, "viridis", Normalize(0, top)) for title, psi in matrices.items()]
    if difference is not None:
        far = max(float(np.abs(difference).max()), 1e-6)
        shown.append(("B − A", difference, "coolwarm", Normalize(-far, far)))
    ratio = min(image.shape[1] / image.shape[0], _WIDEST)
    figure = Figure(figsize=(4.0 * ratio + 4.6 * len(shown), 5.2), layout="constrained")
    figure.suptitle("How much each box relates to the others: the matrix ψ", fontsize=14)
    axes = figure.subplots(1, 1 + len(shown), width_ratios=[ratio] + [1.0] * len(shown))
    numbers = [str(i + 1) for i in range(len(boxes))]
    drawing = draw_detections(image, boxes, labels, None, names, texts=numbers, text_size=1.3)
    _show(axes[0], drawing)
    axes[0].set_title("boxes", fontsize=12)
    for ax, (title, values, colours, norm) in zip(axes[1:], shown, strict=True):
        drawn = ax.imshow(values, cmap=colours, norm=norm)
        ax.set_title(title, fontsize=10)
        size = 8 if len(boxes) > 12 else 10
        ax.set_xticks(range(len(boxes)), numbers, fontsize=size)
        ax.set_yticks(range(len(boxes)), numbers, fontsize=size)
        ax.set_xlabel("to box j")
        figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.015)
        if len(boxes) <= _WRITTEN:
            for i, j in np.ndindex(values.shape):
                bright = norm(values[i, j]) > 0.6 if colours == "viridis" else True
                text = f"{round(float(values[i, j]), 2) + 0.0:.2f}".replace("0.", ".", 1)
                ink = "black" if bright else "white"
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
    axes[1].set_ylabel("from box i")
    _class_legend(figure, sorted({int(v) for v in labels}), names)
    figure.savefig(path, dpi=DPI)


def _drawn(
    image: UInt8[np.ndarray, "H W 3"], found: Found, names: Sequence[str], texts: Sequence[str]
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The image with its boxes, in the size of a panel."""
    factor = _PIXELS / max(image.shape[:2])
    return draw_detections(
        scaled(image, factor),
        found.boxes * np.float32(factor),
        found.labels,
        found.scores,
        names,
        shorter=1,
        texts=texts,
        text_size=1.3,
    )


def _show(ax: Axes, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    """An image alone: no ticks, no frame."""
    ax.imshow(image)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _mark(
    ax: Axes, point: tuple[int, int], stride: int, box: Float[np.ndarray, "4"] | None
) -> None:
    """A yellow frame around one feature pixel, and a white one around an object."""
    row, column = point
    frames: list[tuple[tuple[float, float], float, float, str, float]]
    frames = [((column * stride, row * stride), stride, stride, "#ffe600", 2.0)]
    if box is not None:
        x1, y1, x2, y2 = (float(v) for v in box)
        around = (x1, y1), x2 - x1, y2 - y1
        frames = [(*around, "black", 3.0), (*around, "white", 1.4), *frames]
    for (x, y), width, height, colour, line in frames:
        corner = x - 0.5, y - 0.5  # a pixel's coordinate is that of its centre
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=line))


def _class_legend(figure: Figure, labels: Sequence[int], names: Sequence[str]) -> None:
    """The colours of some classes, below everything."""
    if not labels:
        return
    colours = [[v / 255 for v in class_colour(k)] for k in labels]
    patches = [
        Patch(color=(r, g, b), label=names[k]) for k, (r, g, b) in zip(labels, colours, strict=True)
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(10, len(patches)), frameon=False
    )


def _overlay(
    ax: Axes, image: UInt8[np.ndarray, "H W 3"], values: Float[np.ndarray, "h w"], stride: int
) -> AxesImage:
    """Lays a map's similarities, from -1 to 1, over an image that is shown."""
    (height, width), (down, across) = image.shape[:2], values.shape
    drawn = ax.imshow(
        values,
        cmap="coolwarm",
        norm=Normalize(-1, 1),
        alpha=0.8,
        interpolation="nearest",
        extent=(-0.5, across * stride - 0.5, down * stride - 0.5, -0.5),
    )
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    return drawn
