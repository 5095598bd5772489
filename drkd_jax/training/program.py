"""A detector as one function of pixels, in a file that runs without this package.

Letters: B pictures, H W pixels of the canvas, N detections (anchors or regions without the
suppression), D boxes of each, K classes.

The file holds the bytes of a `jax.export.Exported`: StableHLO with the weights inside. JAX alone
reads and calls it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from drkd_jax.errors import UserError
from drkd_jax.ops.platform import tracing_for
from drkd_jax.training.pixels import Pixels

#: What a program can be lowered for, by JAX's names.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: What pixels can come as.
DTYPES = ("uint8", "float32")

# The names of `ops.platform` where they differ.
_FORMS = {"cuda": "gpu", "rocm": "gpu"}


@dataclasses.dataclass(frozen=True)
class Form:
    """What is fixed in an exported program.

    Attributes:
        canvas: height and width, pixels.
        batch: pictures of a call; None: any number.
        dtype: of the pixels, one of `DTYPES`.
        suppress: whether the detections are chosen inside; else every box and score comes out.
        platforms: of `PLATFORMS`.
    """

    canvas: tuple[int, int]
    batch: int | None = None
    dtype: str = "uint8"
    suppress: bool = True
    platforms: tuple[str, ...] = ("cpu", "cuda")


def check_form(form: Form, stride: int) -> None:
    """Refuses a canvas that the detector's maps do not divide.

    Args:
        form: asked for.
        stride: of the detector.

    Raises:
        UserError: names the nearest canvas that does.
    """
    if any(side % stride or side < stride for side in form.canvas):
        near = "x".join(str(max(1, -(-side // stride)) * stride) for side in form.canvas)
        shown = "x".join(map(str, form.canvas))
        raise UserError(f"--canvas={shown}: both sides must be multiples of {stride}; use {near}")


def program(detector: Any, pixels: Pixels, suppress: bool) -> tuple[Callable[..., Any], Any]:
    """The function `(arrays, images, sizes) -> outputs by name`, and the arrays.

    Args:
        detector: trained.
        pixels: the network's input; the normalisation is part of the function.
        suppress: as of `Form`.

    Returns:
        (function, arrays). Of the function: ``images`` ``[B, H, W, 3]`` RGB 0..255, the picture in
        the top left corner of the canvas; ``sizes`` int32 ``[B, 2]`` its height and width, pixels.
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

    For each platform it holds the forms that are fast there (`ops.platform`).

    Args:
        detector: trained.
        pixels: the network's input.
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
