"""The machine and the versions that a result was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import jax

import drkd_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pycocotools")


def machine() -> str:
    """Devices and CPU cores, in words."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{jax.device_count()} x {device.device_kind} ({device.platform}), {cores} CPU cores"


def versions() -> dict[str, str]:
    """Of Python, this package and what it computes with."""
    return {
        "drkd_jax": drkd_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
