"""Which machine a function is traced for, where its fastest form depends on that.

A CPU runs loops of small steps in its caches cheaply and large intermediate arrays slowly; a GPU
the other way round. An operation with two forms asks here, while it is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_chosen: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Where what is being traced will run: "cpu", "gpu", "tpu", or "onnx" for such a file."""
    return _chosen.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Has everything traced inside take the forms of another platform.

    For compiling ahead of time and for comparing the forms with each other. What `jax.jit` has
    traced before is not traced again.

    Args:
        name: "cpu", "gpu", "tpu" or "onnx".
    """
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
