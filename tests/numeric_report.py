"""Makes failures understandable on other machines: processor, versions, worst entry.

A plugin of pytest. The comparisons of `numpy.testing` name the entry with the largest error, both
numbers and the multiple of the tolerance; every report of a failure ends with the machine.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A processor's instructions determine how XLA and Eigen round.
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve")


@functools.cache
def machine() -> str:
    """Processor, cores, versions and flags, one per line."""
    model, flags = platform.processor() or platform.machine(), set()
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.is_file() else []:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            model = value
        elif key in ("flags", "Features"):
            flags = set(value.split())
    packages = []
    for name in ("jax", "jaxlib", "flax", "numpy"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} missing")
    found = " ".join(name for name in INSTRUCTIONS if name in flags) or "unknown"
    return (
        f"processor: {model}, {os.cpu_count()} cores, instructions: {found}\n"
        f"versions: Python {platform.python_version()}, {', '.join(packages)}\n"
        f"XLA_FLAGS: {os.environ.get('XLA_FLAGS', '')}"
    )


def worst_entry(ours: Any, wanted: Any, rtol: float = 0.0, atol: float = 0.0) -> str:
    """The entry with the largest multiple of its tolerance; "" if there is none.

    Args:
        ours: array-like.
        wanted: the expected values; the shapes must broadcast.
        rtol: tolerance relative to ``wanted``.
        atol: absolute tolerance.
    """
    try:
        a, b = np.broadcast_arrays(np.asarray(ours, np.float64), np.asarray(wanted, np.float64))
    except (TypeError, ValueError):
        return ""
    if not a.size:
        return ""
    with np.errstate(all="ignore"):
        return _worst(a, b, rtol, atol)


def _worst(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> str:
    off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    off = np.nan_to_num(off, nan=np.inf)
    allowed = atol + rtol * np.abs(b)
    times = np.where(off == 0, 0.0, off / np.maximum(allowed, np.finfo(float).tiny))
    at = np.unravel_index(np.argmax(np.where(np.isnan(times), np.inf, times)), a.shape)
    size = abs(b[at])
    share = f"{off[at] / size:.3g}" if size > 0 else "inf"
    limit = f", {off[at] / allowed[at]:.3g} of its tolerance" if allowed[at] > 0 else ""
    place = f"[{', '.join(map(str, at))}] of {a.shape}" if a.shape else "scalar"
    return (
        f"worst entry {place}: {a[at]:.9g}, wanted {b[at]:.9g}, "
        f"off by {off[at]:.3g}, relative {share}{limit}"
    )


def _explained(compare: Callable[..., None], rtol: float) -> Callable[..., None]:
    """A comparison of `numpy.testing` whose error names the worst entry."""

    @functools.wraps(compare)
    def explained(actual: Any, desired: Any, *more: Any, **named: Any) -> None:
        __tracebackhide__ = True
        try:
            compare(actual, desired, *more, **named)
        except AssertionError as error:
            given = dict(zip(("rtol", "atol"), more, strict=False)) if rtol else {}
            limits = {"rtol": rtol, "atol": 0.0} | given
            limits |= {key: named[key] for key in ("rtol", "atol") if key in named}
            if line := worst_entry(actual, desired, **limits):
                error.add_note(line)
            raise

    return explained


def pytest_configure(config: pytest.Config) -> None:
    """Extends the messages of `numpy.testing`'s comparisons."""
    patch = pytest.MonkeyPatch()
    for name, rtol in (("assert_allclose", 1e-7), ("assert_array_equal", 0.0)):
        patch.setattr(np.testing, name, _explained(getattr(np.testing, name), rtol))
    config.add_cleanup(patch.undo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Adds the machine to the report of every failure."""
    report = yield
    if report.failed:
        report.sections.append(("machine", machine()))
    return report
