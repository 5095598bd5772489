"""The relations of two models side by side, drawn.

Letters: H W pixels of the picture, n boxes, h w one map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from drkd_jax.draw import draw_detections
from drkd_jax.report.figures import (
    DPI,
    PANEL,
    class_legend,
    mark_pixel,
    show_picture,
)
from drkd_jax.report.similarity_map import overlay

_WRITTEN = 10  # boxes up to which a matrix has its numbers in its cells


def draw_pixels(
    path: Path,
    image: UInt8[np.ndarray, "H W 3"],
    stride: int,
    rows: Sequence[tuple[tuple[int, int], Mapping[str, Float[np.ndarray, "_ _"]]]],
) -> None:
    """How alike every pixel is to a marked one: a row a marked pixel, a column a map.

    Args:
        path: PNG to write.
        image: the picture as the detectors saw it, without its padding.
        stride: pixels of `image` from one map pixel to the next.
        rows: (row, column) of the marked pixel of the map, and its similarities [h, w] by title;
            all with the same titles.

    Raises:
        OSError: it cannot be written.
    """
    height, width = image.shape[:2]
    titles = ["picture", *rows[0][1]]
    side = PANEL / max(height, width)
    figure = Figure(
        figsize=(side * width * len(titles) + 1.2, (side * height + 0.1) * len(rows) + 1.1),
        layout="constrained",
    )
    figure.suptitle("Which pixels are alike to the marked one", fontsize=14)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    drawn = None
    for (left, *rest), (point, maps) in zip(axes, rows, strict=True):
        show_picture(left, image)
        mark_pixel(left, *point, stride)
        for ax, values in zip(rest, maps.values(), strict=True):
            show_picture(ax, grey)
            drawn = overlay(ax, image, values, stride)
            mark_pixel(ax, *point, stride)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.015)
        bar.set_label(f"cosine with the marked pixel (mean taken off), stride {stride}")
    figure.savefig(path, dpi=DPI)


def draw_boxes(
    path: Path,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    names: Sequence[str],
    matrices: Mapping[str, Float[np.ndarray, "n n"]],
    difference: Float[np.ndarray, "n n"],
) -> None:
    """The numbered boxes, the relation matrix of each model, and how they differ.

    Args:
        path: PNG to write.
        image: the picture as the detectors saw it, without its padding.
        boxes: xyxy, pixels of `image`.
        labels: 0..K-1.
        names: the K class names.
        matrices: psi by title; every row sums to 1.
        difference: the second less the first.

    Raises:
        OSError: it cannot be written.
    """
    ratio = image.shape[1] / image.shape[0]
    figure = Figure(figsize=(4.0 * ratio + 4.2 * 3 + 1.2, 5.2), layout="constrained")
    figure.suptitle("How much each box relates to the others: the matrix ψ", fontsize=14)
    axes = figure.subplots(1, 4, width_ratios=[ratio, 1.0, 1.0, 1.0])
    numbers = [str(i + 1) for i in range(len(boxes))]
    drawing = draw_detections(image, boxes, labels, None, names, texts=numbers, text_size=1.3)
    show_picture(axes[0], drawing)
    axes[0].set_title("boxes", fontsize=12)
    top = max(float(matrix.max()) for matrix in matrices.values())
    far = max(float(np.abs(difference).max()), 1e-6)
    shown = [(title, psi, "viridis", Normalize(0, top)) for title, psi in matrices.items()]
    shown.append(("B − A", difference, "coolwarm", Normalize(-far, far)))
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
    class_legend(figure, sorted({int(v) for v in labels}), names)
    figure.savefig(path, dpi=DPI)
