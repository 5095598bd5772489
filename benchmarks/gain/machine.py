"""Describes the machine and the program of a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

import drkd_jax
from benchmarks.gain.recipes import ROOT
from drkd_jax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pycocotools")
_ASK = "from benchmarks.gain.machine import devices; import json; print(json.dumps(devices()))"


def machine() -> dict[str, Any]:
    """`platform` ("cpu", "gpu", ...), `devices` and `cores`, as trainings will see them.

    Raises:
        UserError: JAX finds no device.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return devices()
    # In a separate process, as the first use of a GPU reserves its memory permanently.
    ran = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, cwd=ROOT)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no error text"])[-1]
        raise UserError(f"JAX finds no device: {last}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


def devices() -> dict[str, Any]:
    """The same, but uses the device in this process."""
    import jax

    found = jax.devices()
    return {
        "platform": found[0].platform,
        "devices": f"{len(found)} x {found[0].device_kind}",
        "cores": len(cores()),
    }


def cores() -> list[int]:
    """Ids of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def versions() -> dict[str, str]:
    """The versions of Python, the program and its main libraries."""
    return {
        "drkd_jax": drkd_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def commit() -> str:
    """The checkout's commit, with "+" if it has changes; "unknown" outside git."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return f"{head}{'+' if changes else ''}" if head else "unknown"


def _git(*words: str) -> str:
    try:
        ran = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
