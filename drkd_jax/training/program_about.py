"""What lies beside an exported program: the JSON that says what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from drkd_jax import __version__
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.records import Category
from drkd_jax.training.pixels import Pixels
from drkd_jax.training.program import Form

_CHOSEN: dict[str, tuple[str, list[Any], str]] = {
    "boxes": ("float32", ["B", "N", 4], "x0, y0, x1, y1 in pixels of the canvas"),
    "scores": ("float32", ["B", "N"], "0..1, falling"),
    "labels": ("int32", ["B", "N"], "place in the list of classes, from 0"),
    "valid": ("bool", ["B", "N"], "false: the row only fills up, nothing was found"),
}
_ALL: dict[str, tuple[str, list[Any], str]] = {
    "boxes": (
        "float32",
        ["B", "N", "D", 4],
        "x0, y0, x1, y1 in pixels of the canvas, of every anchor or region; D is the number of "
        "classes, or 1 where a box serves them all",
    ),
    "scores": ("float32", ["B", "N", "K"], "0..1, of each class, background left out"),
    "valid": ("bool", ["B", "N"], "false: the row only fills up"),
}


def about_program(
    form: Form,
    pixels: Pixels,
    categories: Sequence[Category],
    num_classes: int,
    pipeline: PipelineConfig,
    settings: Any,
    source: str,
    step: int,
) -> dict[str, Any]:
    """Plain values about a program, for JSON.

    Args:
        form: what is fixed in it.
        pixels: the normalisation that is part of it.
        categories: of the classes, in the order of their labels; () where they have no names.
        num_classes: of the data.
        pipeline: how pictures come to their canvas.
        settings: of the detector; the limits of its tests are copied.
        source: name of the work folder or file.
        step: of the training.

    Returns:
        The program's maker, its classes, inputs and outputs.
    """
    batch = form.batch or "B"
    outputs = _CHOSEN if form.suppress else _ALL
    names = [{"id": c.id, "name": c.name} for c in categories]
    test = settings.test
    return {
        "made_by": {"drkd_jax": __version__, "jax": jax.__version__},
        "source": {"name": source, "step": step},
        "platforms": list(form.platforms),
        "classes": names or [{"id": k + 1, "name": f"class {k + 1}"} for k in range(num_classes)],
        "inputs": {
            "images": {
                "dtype": form.dtype,
                "shape": [batch, *form.canvas, 3],
                "meaning": "RGB, 0..255; the picture in the top left corner of the canvas",
            },
            "sizes": {
                "dtype": "int32",
                "shape": [batch, 2],
                "meaning": "height and width of each picture on its canvas, pixels",
            },
        },
        "resize_before": {
            "rule": pipeline.resize,
            "shorter": pipeline.shorter,
            "longer": pipeline.longer,
        },
        "normalised_inside": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "channels": pixels.channels,
        },
        "suppressed_inside": form.suppress,
        "limits": {
            "score": test.score,
            "iou": test.nms,
            "candidates": test.pre_nms,
            "detections": test.max_out,
        },
        "outputs": {
            name: {"dtype": dtype, "shape": [batch, *shape[1:]], "meaning": meaning}
            for name, (dtype, shape, meaning) in outputs.items()
        },
    }
