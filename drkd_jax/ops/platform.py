"""The platform that a function is traced for, since the fastest form can depend on it.

A CPU is fast with loops of small steps that stay in its caches and slow with large intermediate
arrays; a GPU is the opposite. Operations with two forms call `platform` while they are traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_chosen: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """The platform of the program being traced: "cpu", "gpu", "tpu", or "onnx" for a file."""
    return _chosen.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Makes everything traced inside use the forms of another platform.

    This serves compilation ahead of time and comparisons of the forms. Functions that `jax.jit`
    has already traced are not traced again.

    Args:
        name: "cpu", "gpu", "tpu" or "onnx".
    """
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
