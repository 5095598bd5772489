"""Exports a detector to an ONNX file: mostly by jax2onnx, the rest by ONNX's own operators.

If this package's suppression and RoIAlign could be converted, they would run in an ONNX runtime as
loops of single steps; NonMaxSuppression and RoiAlign are one call each, with the same rules. So the
program is traced with placeholder calls (`ops.onnx_calls`), split at these, and reassembled as one
graph.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from drkd_jax.errors import UserError
from drkd_jax.export.onnx_graph import Graph
from drkd_jax.export.onnx_operators import add_regions, add_suppression
from drkd_jax.export.onnx_pieces import Piece, convert, pieces
from drkd_jax.export.program import Form, program
from drkd_jax.models.pixels import Pixels
from drkd_jax.ops.onnx_calls import SUPPRESS
from drkd_jax.ops.platform import tracing_for

_CHOSEN = ("boxes", "scores", "labels", "valid")
_ALL = ("boxes", "scores", "valid")


def need_packages() -> None:
    """Refuses to start without the packages for the conversion.

    Raises:
        UserError: one is missing; the message names the extra that installs it.
    """
    for package in ("jax2onnx", "onnx"):
        if find_spec(package) is None:
            raise UserError(
                f"--to=onnx needs {package}: pip install 'drkd-jax[onnx]' (or pip install "
                "'.[onnx]' in a checkout)"
            )


def to_onnx(detector: Any, pixels: Pixels, form: Form) -> bytes:
    """The bytes of an ONNX model of a detector.

    Inputs and outputs have the names, shapes and dtypes of the StableHLO program (`program`).

    Args:
        detector: a trained detector.
        pixels: the network's input format; the normalisation is part of the model.
        form: what is fixed; its batch must be a number.

    Returns:
        A serialized `onnx.ModelProto`.
    """
    run, arrays = program(detector, pixels, form.suppress)
    arrays = jax.tree.map(np.asarray, arrays)
    names = _CHOSEN if form.suppress else _ALL

    def ordered(images: Any, sizes: Any) -> tuple[Any, ...]:
        found = run(arrays, images, sizes)
        return tuple(found[name] for name in names)

    assert form.batch is not None
    inputs = {
        "images": jax.ShapeDtypeStruct((form.batch, *form.canvas, 3), jnp.dtype(form.dtype)),
        "sizes": jax.ShapeDtypeStruct((form.batch, 2), jnp.int32),
    }
    with tracing_for("onnx"):
        traced = jax.make_jaxpr(ordered)(*inputs.values())
    graph = Graph()
    values = _convert(graph, traced, list(inputs), detector.head_classes)
    outputs = {
        name: (value, like)
        for name, value, like in zip(names, values, traced.out_avals, strict=True)
    }
    return bytes(graph.model(inputs, outputs).SerializeToString())


def _convert(graph: Graph, traced: ClosedJaxpr, inputs: list[str], classes: int) -> list[str]:
    """Adds a traced program to a graph; returns the names of its outputs."""
    known: dict[Any, str] = dict(zip(traced.jaxpr.invars, inputs, strict=True))
    constants = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))

    def name(value: Any) -> str:
        if isinstance(value, Literal):
            like: Any = value.aval
            return graph.constant(np.asarray(value.val, like.dtype))
        if value not in known:
            known[value] = graph.constant(np.asarray(constants[value]))
        return known[value]

    for part in pieces(traced):
        if isinstance(part, Piece):
            given = graph.take_in(convert(part), [name(v) for v in part.inputs])
            for variable, value in zip(part.outputs, given, strict=True):
                # Indices from a top-k may have a wider dtype in ONNX than when traced.
                is_int = jnp.issubdtype(variable.aval.dtype, jnp.integer)
                known[variable] = graph.cast(value, variable.aval.dtype) if is_int else value
            continue
        operands = [name(v) for v in part.invars]
        (result,) = part.outvars
        if part.primitive is SUPPRESS:
            shape = result.aval.shape
            known[result] = add_suppression(graph, shape, classes, part.params["iou"], *operands)
        else:
            boxes, levels, *maps = operands
            known[result] = add_regions(
                graph, result.aval.shape, boxes, levels, maps, **part.params
            )
    return [name(v) for v in traced.jaxpr.outvars]
