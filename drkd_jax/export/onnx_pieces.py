"""A traced program in pieces: what jax2onnx converts, and the calls between that it cannot."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from drkd_jax.errors import UserError
from drkd_jax.export.onnx_graph import OPSET
from drkd_jax.ops.onnx_calls import ALIGN, SUPPRESS

_CALLS = (ALIGN, SUPPRESS)


class Piece(NamedTuple):
    """Equations in a row, and the variables that they take and give."""

    program: ClosedJaxpr
    inputs: list[Any]
    outputs: list[Any]


def pieces(traced: ClosedJaxpr) -> Iterator[Any]:
    """Cuts a program at its calls of `ops.onnx_calls`, which stand in no inner program.

    Args:
        traced: of `jax.make_jaxpr`.

    Yields:
        A `Piece`, or the equation of a call, in the order in which they run.
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
    later = {v for equation in whole.eqns[end:] for v in equation.invars if not _fixed(v)}
    later |= {v for v in whole.outvars if not _fixed(v)}
    outputs = [v for v in made if v in later]
    jaxpr = whole.replace(constvars=own, invars=inputs, outvars=outputs, eqns=equations)
    return Piece(ClosedJaxpr(jaxpr, [constants[v] for v in own]), inputs, outputs)


def _fixed(variable: Any) -> bool:
    return isinstance(variable, Literal)


def convert(piece: Piece) -> Any:
    """The `onnx.ModelProto` of a piece, its inputs and outputs in the piece's order.

    Raises:
        UserError: the converter does not know something in it.
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
            # Its own faults come as whatever they are, mostly an operation that it has no rule for.
            said = " ".join(str(fault).split())[:200] or type(fault).__name__
            raise UserError(
                f"--to=onnx: jax2onnx does not convert this detector ({said}); use --to=stablehlo"
            ) from fault
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the converter prints and logs of its own parts; errors are raised still."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
