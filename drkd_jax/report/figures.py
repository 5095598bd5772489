"""Pictures of what the detectors find and of what the relation modules see.

Letters: H W pixels of the picture, n boxes, h w one feature map, C channels, K classes.

Everything here takes plain arrays and writes one PNG. ``Figure`` is used without pyplot: no
window, no global state, and Agg draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from drkd_jax.draw import class_colour, draw_detections
from drkd_jax.report.similarity_map import overlay

DPI = 120
PANEL = 3.7  # inches, of a picture's longer side
_PIXELS = round(PANEL * DPI)  # drawings are made in the size that they are shown in


@dataclasses.dataclass(frozen=True)
class Found:
    """Boxes of one picture, from a detector or (scores None) from the annotations.

    Attributes:
        boxes: [n, 4] xyxy, pixels of the picture.
        labels: [n], 0..K-1.
        scores: [n], 0..1, or None.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"] | None = None

    def best(self, number: int) -> Found:
        """Only so many boxes, those with the highest scores."""
        if self.scores is None:
            return self
        keep = np.argsort(-self.scores, kind="stable")[:number]
        return Found(self.boxes[keep], self.labels[keep], self.scores[keep])


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture, its annotations, and what each detector found there."""

    image: UInt8[np.ndarray, "H W 3"]
    truth: Found
    found: Mapping[str, Found]
    title: str = ""


def detections(path: str | Path, scenes: Sequence[Scene], names: Sequence[str]) -> None:
    """Ground truth and every detector side by side, a row a picture.

    Each detector shows its best boxes, as many as there are objects: so a careful and a bold
    detector, or an early and a late one, are seen on the same terms. Under each panel stands how
    many objects they found (same class, overlap of at least half).

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
            show_picture(ax, _drawn(scene.image, found, names, texts))
            if column == "ground truth":
                caption = f"{scene.title}{', ' if scene.title else ''}{len(texts)} objects"
            else:
                right, _ = count(scene.truth, found)
                caption = f"{right} of {len(scene.truth.boxes)} found"
            ax.set_xlabel(caption, fontsize=10)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, fontsize=12)
    class_legend(figure, sorted(used), names)
    figure.savefig(path, dpi=DPI)


def count(truth: Found, found: Found, overlap: float = 0.5) -> tuple[int, int]:
    """How many objects were found, and how many boxes were wrong.

    A box, best score first, takes the annotated object of its class that it overlaps most, if that
    is free and the overlap is large enough.

    Args:
        truth: Annotations.
        found: Detections.
        overlap: Least intersection over union.

    Returns:
        Objects found; boxes that found none.
    """
    right = int((matched(truth, found, overlap) >= 0).sum())
    return right, len(found.boxes) - right


def matched(truth: Found, found: Found, overlap: float = 0.5) -> Int[np.ndarray, "n"]:
    """Which annotated object each box takes, by the rule of `count`; -1 where it takes none."""
    free = np.ones(len(truth.boxes), bool)
    taken = np.full(len(found.boxes), -1)
    scores = np.zeros(len(found.boxes)) if found.scores is None else found.scores
    for i in np.argsort(-scores, kind="stable"):
        value = _overlaps(found.boxes[i], truth.boxes) * (free & (truth.labels == found.labels[i]))
        if value.size and value.max() >= overlap:
            taken[i] = value.argmax()
            free[taken[i]] = False
    return taken


def similarity(
    features: Float[np.ndarray, "h w C"], point: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """How alike every pixel's channels are to those of one pixel.

    The mean over the map is taken off first: features of one network share a large common part,
    and without this every pixel would look alike.

    Args:
        features: One map.
        point: Row and column of the pixel that is compared with.

    Returns:
        Cosine, -1..1; 1 at the point itself, 0 where a pixel is as the mean.
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean((0, 1))
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[point]


def pixel_relation(
    path: str | Path,
    image: UInt8[np.ndarray, "H W 3"],
    box: Float[np.ndarray, "4"],
    stride: int,
    maps: Mapping[str, tuple[Float[np.ndarray, "_ _ _"], Float[np.ndarray, "_ _ _"]]],
) -> None:
    """Which pixels are alike to the centre of a box, before and after the relation module.

    Args:
        path: PNG to write.
        image: The picture as the detectors saw it (after the resize), without its padding.
        box: The object that is asked about, xyxy, pixels of ``image``.
        stride: Pixels of ``image`` from one feature pixel to the next.
        maps: For each side ("teacher", "student"): x and phi(x), each [h, w, C] over the canvas.
    """
    height, width = image.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    row = min(int((box[1] + box[3]) / 2 / stride), rows - 1)
    column = min(int((box[0] + box[2]) / 2 / stride), columns - 1)
    panel = PANEL * height / width
    figure = Figure(
        figsize=(PANEL * 3 + 1.2, (panel + 0.1) * len(maps) + 0.9), layout="constrained"
    )
    figure.suptitle(
        "Which pixels are alike to the marked one, before and after the relation module",
        fontsize=14,
    )
    axes = figure.subplots(len(maps), 3, squeeze=False)
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    drawn = None
    for (left, *rest), (side, pair) in zip(axes, maps.items(), strict=True):
        show_picture(left, image)
        _mark(left, box, row, column, stride)
        left.set_ylabel(side, fontsize=12)
        for ax, features in zip(rest, pair, strict=True):
            values = similarity(np.asarray(features)[:rows, :columns], (row, column))
            show_picture(ax, grey)
            drawn = overlay(ax, image, values, stride)
            _mark(ax, box, row, column, stride)
    for ax, title in zip(axes[0], ("picture", "features x", "relation features φ(x)"), strict=True):
        ax.set_title(title, fontsize=12)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.015)
        bar.set_label(f"cosine with the marked pixel (mean taken off), stride {stride}")
    figure.savefig(path, dpi=DPI)


def instance_relation(
    path: str | Path,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    names: Sequence[str],
    matrices: Mapping[str, Float[np.ndarray, "n n"]],
) -> None:
    """The numbered objects of a picture beside the relation matrices between them.

    Args:
        path: PNG to write.
        image: The picture as the detectors saw it, without its padding.
        boxes: xyxy, pixels of ``image``.
        labels: 0..K-1.
        names: The K class names.
        matrices: psi for each side; every row is a softmax, so it sums to 1.
    """
    count_boxes = len(boxes)
    ratio = image.shape[1] / image.shape[0]
    figure = Figure(figsize=(4.0 * ratio + 4.2 * len(matrices) + 0.6, 5.2), layout="constrained")
    figure.suptitle("How much each object relates to the others: the matrix ψ", fontsize=14)
    axes = figure.subplots(
        1, 1 + len(matrices), squeeze=False, width_ratios=[ratio] + [1.0] * len(matrices)
    )[0]
    numbers = [str(i + 1) for i in range(count_boxes)]
    show_picture(
        axes[0],
        draw_detections(
            image, boxes, labels, None, names, shorter=480, texts=numbers, text_size=1.3
        ),
    )
    axes[0].set_title("objects", fontsize=12)
    top = max([float(np.max(m)) for m in matrices.values() if m.size] or [1.0])
    drawn = None
    for ax, (side, matrix) in zip(axes[1:], matrices.items(), strict=True):
        drawn = ax.imshow(matrix, cmap="viridis", norm=Normalize(0, top))
        ax.set_title(side, fontsize=12)
        ax.set_xticks(range(count_boxes), numbers, fontsize=8 if count_boxes > 12 else 10)
        ax.set_yticks(range(count_boxes), numbers, fontsize=8 if count_boxes > 12 else 10)
        ax.set_xlabel("to object j")
        if count_boxes <= 10:
            for i, j in np.ndindex(count_boxes, count_boxes):
                ink = "white" if matrix[i, j] < 0.6 * top else "black"
                value = f"{matrix[i, j]:.2f}".lstrip("0")
                ax.text(j, i, value, ha="center", va="center", fontsize=8, color=ink)
    axes[1].set_ylabel("from object i")
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(axes[1:]), shrink=0.85, pad=0.015)
        bar.set_label("ψ(i, j), each row sums to 1")
    class_legend(figure, sorted({int(v) for v in labels}), names)
    figure.savefig(path, dpi=DPI)


def _drawn(
    image: UInt8[np.ndarray, "H W 3"], found: Found, names: Sequence[str], texts: Sequence[str]
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The picture with its boxes, in the size of a panel."""
    height, width = image.shape[:2]
    factor = _PIXELS / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    boxes = found.boxes * np.float32(factor)
    return draw_detections(
        image, boxes, found.labels, found.scores, names, shorter=1, texts=texts, text_size=1.3
    )


def show_picture(ax: Axes, picture: UInt8[np.ndarray, "_ _ 3"]) -> None:
    """A picture alone: no ticks, no frame."""
    ax.imshow(picture)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _mark(ax: Axes, box: Float[np.ndarray, "4"], row: int, column: int, stride: int) -> None:
    """The object's frame, and the feature pixel at its centre."""
    x1, y1, x2, y2 = (float(v) for v in box)
    for width, colour in ((3.0, "black"), (1.4, "white")):
        ax.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width)
        )
    mark_pixel(ax, row, column, stride)


def mark_pixel(ax: Axes, row: int, column: int, stride: int) -> None:
    """A yellow frame around one feature pixel."""
    ax.add_patch(
        Rectangle(
            (column * stride - 0.5, row * stride - 0.5),
            stride,
            stride,
            fill=False,
            ec="#ffe600",
            lw=2.0,
        )
    )


def class_legend(figure: Figure, labels: Sequence[int], names: Sequence[str]) -> None:
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


def _overlaps(
    box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n"]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - common
    return np.where(union > 0, common / np.maximum(union, 1e-12), 0.0)
