"""One context of MLIR for many programs, where JAX makes a new one for each.

Loading the dialects takes 3 to 5 ms, a tenth to a quarter of what a program of one operation
costs, and most programs of the tests are such. It rests on a private name of JAX: where that is
gone nothing happens but that the tests take longer.
"""

from __future__ import annotations

import threading
from typing import Any

_PROGRAMS = 300  # that share a context: what they intern stays in it


def share_contexts() -> None:
    """Makes JAX lower into a context of the thread's own, renewed now and then."""
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        return
    own = threading.local()

    def shared() -> Any:
        left = getattr(own, "left", 0)
        if not left:
            own.context, left = make(), _PROGRAMS
        own.left = left - 1
        return own.context

    mlir.make_ir_context = shared
