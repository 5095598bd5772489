"""One context of MLIR for many programs, instead of JAX's new one for each.

Loading the dialects takes 3 to 5 ms, a tenth to a quarter of the cost of a program of one
operation, and most programs of the tests are such. It uses a private name of JAX: without that
name, the tests only take longer.
"""

from __future__ import annotations

import threading
from typing import Any

_PROGRAMS = 300  # programs that share a context, which keeps all their interned data


def share_contexts() -> None:
    """Makes JAX lower into a context per thread, which is renewed from time to time."""
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
