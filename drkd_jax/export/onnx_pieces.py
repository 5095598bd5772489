"""Splits a traced program into pieces that jax2onnx converts and the calls that it cannot."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from drkd_jax.errors import UserError, one_line
from drkd_jax.export.onnx_graph import OPSET
from drkd_jax.ops.onnx_calls import ALIGN, SUPPRESS

_CALLS = (ALIGN, SUPPRESS)


class Piece(NamedTuple):
    """Consecutive equations, with their input and output variables."""

    program: ClosedJaxpr
    inputs: list[Any]
    outputs: list[Any]


def pieces(traced: ClosedJaxpr) -> Iterator[Any]:
    """Splits a program at its calls of `ops.onnx_calls`, which occur only at the top level.

    Args:
        traced: from `jax.make_jaxpr`.

    Yields:
        A `Piece`, or the equation of a call, in execution order.
    """
    equations = traced.jaxpr.eqns
    calls = [i for i, equation in enumerate(equations) if equation.primitive in _CALLS]
    begin = 0
    for end in [*calls, len(equations)]:
        if end > begin:
            yield _piece(traced, begin, end)
        if end < len(equations):
            yield equations[end]
        begin = end + 1


def _piece(traced: ClosedJaxpr, begin: int, end: int) -> Piece:
    """The equations from one number up to another."""
    whole = traced.jaxpr
    equations = whole.eqns[begin:end]
    constants = dict(zip(whole.constvars, traced.consts, strict=True))
    made = {v: None for equation in equations for v in equation.outvars}
    read = {
        v: None
        for equation in equations
        for v in equation.invars
        if not isinstance(v, Literal) and v not in made
    }
    inputs = [v for v in read if v not in constants]
    own = [v for v in read if v in constants]
    read_later = [v for equation in whole.eqns[end:] for v in equation.invars] + whole.outvars
    later = {v for v in read_later if not isinstance(v, Literal)}
    outputs = [v for v in made if v in later]
    jaxpr = whole.replace(constvars=own, invars=inputs, outvars=outputs, eqns=equations)
    return Piece(ClosedJaxpr(jaxpr, [constants[v] for v in own]), inputs, outputs)


def convert(piece: Piece) -> Any:
    """The `onnx.ModelProto` of a piece, its inputs and outputs in the piece's order.

    Raises:
        UserError: the converter does not support something in it.
    """
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in piece.inputs]
    # Traced already, so that the converter meets plain operations and none of the Flax calls that
    # it replaces by its own.
    with _quiet():
        import jax2onnx

        try:
            model = jax2onnx.to_onnx(
                jaxpr_as_fun(piece.program), inputs=inputs, model_name="piece", opset=OPSET
            )
        except Exception as fault:
            # It can raise any error, usually for an operation that it does not support.
            raise UserError(
                f"--to=onnx: jax2onnx does not convert this detector ({one_line(fault)[:200]}); "
                "use --to=stablehlo"
            ) from fault
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the converter's own output and log lines; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
