"""Exports a detector as one function of pixels, in a file that runs without this package.

Letters: B images, H W pixels of the canvas, N detections (anchors or regions without the
suppression), D boxes of each, K classes.

The file holds the bytes of a `jax.export.Exported`: StableHLO with the weights inside. Only JAX is
needed to read and call it. A JSON file beside it describes inputs and outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from drkd_jax import __version__
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources.records import Category
from drkd_jax.errors import UserError
from drkd_jax.models.pixels import Pixels
from drkd_jax.ops.platform import tracing_for

#: The platforms a program can be lowered for, by JAX's names.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: The possible dtypes of pixels.
DTYPES = ("uint8", "float32")

# The names in `ops.platform`, if they differ.
_FORMS = {"cuda": "gpu", "rocm": "gpu"}


@dataclasses.dataclass(frozen=True)
class Form:
    """What is fixed in an exported program.

    Attributes:
        canvas: height and width, pixels.
        batch: images per call; None: any number.
        dtype: dtype of the pixels, one of `DTYPES`.
        suppress: whether detections are selected inside; otherwise all boxes and scores are output.
        platforms: some of `PLATFORMS`.
    """

    canvas: tuple[int, int]
    batch: int | None = None
    dtype: str = "uint8"
    suppress: bool = True
    platforms: tuple[str, ...] = ("cpu", "cuda")


def check_form(form: Form, stride: int) -> None:
    """Refuses a canvas that is not a multiple of the detector's stride.

    Args:
        form: the requested form.
        stride: stride of the detector.

    Raises:
        UserError: names the nearest canvas that is.
    """
    if any(side % stride or side < stride for side in form.canvas):
        nearest = "x".join(str(max(1, -(-side // stride)) * stride) for side in form.canvas)
        shown = "x".join(map(str, form.canvas))
        raise UserError(
            f"--canvas={shown}: both sides must be multiples of {stride}; use {nearest}"
        )


def program(detector: Any, pixels: Pixels, suppress: bool) -> tuple[Callable[..., Any], Any]:
    """The function `(arrays, images, sizes) -> outputs by name`, and the arrays.

    Args:
        detector: a trained detector.
        pixels: the network's input format; the normalisation is part of the function.
        suppress: see `Form`.

    Returns:
        (function, arrays). Its ``images`` are ``[B, H, W, 3]`` RGB 0..255, with the image in the
        top left corner of the canvas; ``sizes`` int32 ``[B, 2]`` its height and width, pixels.
        The outputs are the fields of `types.Detections`, or of `types.Unsuppressed`.
    """
    graph, state = nnx.split(detector)

    def run(arrays: Any, images: Any, sizes: Any) -> dict[str, Any]:
        module = nnx.merge(graph, arrays, copy=True)
        features = module.features(pixels.normalise(images, sizes))
        head = module.predict if suppress else module.unsuppressed
        return dict(head(features, sizes)._asdict())

    return run, nnx.as_pure(state)


def to_stablehlo(detector: Any, pixels: Pixels, form: Form) -> bytes:
    """The bytes of a `jax.export.Exported` of the detector.

    For each platform it contains the forms that are fast there (`ops.platform`).

    Args:
        detector: a trained detector.
        pixels: the network's input format.
        form: what is fixed; see `check_form`.

    Returns:
        What `jax.export.deserialize` reads. `.call(images, sizes)` gives the outputs of `program`.
    """
    run, arrays = program(detector, pixels, form.suppress)
    arrays = jax.tree.map(np.asarray, arrays)

    def of(platform: str) -> Callable[..., Any]:
        def traced(*operands: Any) -> Any:
            with tracing_for(platform):
                return run(*operands)

        return traced

    def whole(images: Any, sizes: Any) -> Any:
        branches = {name: of(_FORMS.get(name, name)) for name in form.platforms}
        return jax.lax.platform_dependent(arrays, images, sizes, **branches)

    batch = export.symbolic_shape("B")[0] if form.batch is None else form.batch
    images = jax.ShapeDtypeStruct((batch, *form.canvas, 3), jnp.dtype(form.dtype))
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    exported = export.export(jax.jit(whole), platforms=form.platforms)(images, sizes)
    return bytes(exported.serialize())


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
    classes: Sequence[Category],
    pipeline: PipelineConfig,
    settings: Any,
    source: str,
    step: int,
) -> dict[str, Any]:
    """A description of a program as plain values, for JSON.

    Args:
        form: what is fixed in it.
        pixels: the normalisation that is part of it.
        classes: in the order of their labels.
        pipeline: how images are placed on their canvas.
        settings: settings of the detector; its test limits are copied.
        source: name of the work folder or file.
        step: step of the training.

    Returns:
        The program's maker, its classes, inputs and outputs.
    """
    batch = form.batch or "B"
    outputs = _CHOSEN if form.suppress else _ALL
    test = settings.test
    return {
        "made_by": {"drkd_jax": __version__, "jax": jax.__version__},
        "source": {"name": source, "step": step},
        "platforms": list(form.platforms),
        "classes": [{"id": c.id, "name": c.name} for c in classes],
        "inputs": {
            "images": {
                "dtype": form.dtype,
                "shape": [batch, *form.canvas, 3],
                "meaning": "RGB, 0..255; the image in the top left corner of the canvas",
            },
            "sizes": {
                "dtype": "int32",
                "shape": [batch, 2],
                "meaning": "height and width of each image on its canvas, pixels",
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
