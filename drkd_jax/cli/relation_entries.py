"""The numbers of `visualize` as JSON values.

Letters: n boxes, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from drkd_jax.cli.two_sides import SIDES
from drkd_jax.report.two_models import BoxRelation, PixelRelation


class Boxes(NamedTuple):
    """The boxes of one picture, on its canvas; `scores` None: ground truth."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"] | None
    names: tuple[str, ...]
    left_out: int  # by --max


def _rounded(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None else np.round(values.astype(np.float64), 4).tolist()


def pixel_entry(pixel: PixelRelation, stride: int, scale: Float[np.ndarray, "2"]) -> dict[str, Any]:
    """One pixel's similarities to all others; its middle in pixels of the picture."""
    middle = np.array([pixel.column + 0.5, pixel.row + 0.5]) * stride / scale
    maps = {
        side: {"x": _rounded(own.x), "phi": _rounded(own.phi)}
        for side, own in zip(SIDES, (pixel.a, pixel.b), strict=True)
    }
    return {
        "row": pixel.row,
        "column": pixel.column,
        "middle": _rounded(middle),
        "correlation": round(pixel.agreement, 4),
        **maps,
    }


def relation_entry(psi: BoxRelation) -> dict[str, Any]:
    """Both matrices, their difference, and the entropy of their rows as a share of log(n - 1)."""
    return {
        **{side: _rounded(own) for side, own in zip(SIDES, (psi.a, psi.b), strict=True)},
        "difference": _rounded(psi.b - psi.a),
        "row_entropy": {s: _rounded(rows) for s, rows in zip(SIDES, psi.entropy, strict=True)},
        "mean_row_entropy": {
            side: round(float(rows.mean()), 4)
            for side, rows in zip(SIDES, psi.entropy, strict=True)
        },
        "distance": psi.distance,
    }


def box_entries(boxes: Boxes, scale: Float[np.ndarray, "2"]) -> list[dict[str, Any]]:
    """The boxes in COCO's form (x, y, width, height), pixels of the picture, by their rows."""
    corners = boxes.boxes.astype(np.float64) / np.tile(scale, 2)
    corners[:, 2:] -= corners[:, :2]
    rows = []
    for i, box in enumerate(np.round(corners, 2).tolist()):
        row: dict[str, Any] = {"bbox": box, "name": boxes.names[int(boxes.labels[i])]}
        if boxes.scores is not None:
            row["score"] = round(float(boxes.scores[i]), 4)
        rows.append(row)
    return rows
