"""The smallest run that has everything: two canvases, a student, a teacher, three terms."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drkd_jax.models.arrays import flatten

ROOT = Path(__file__).resolve().parents[2]


def config(detector: str = "retinanet", *, distilled: bool = False, **train: Any) -> dict[str, Any]:
    """A config of plain values; `train` replaces keys of its part of that name."""
    two_stage = detector == "faster_rcnn"
    student: dict[str, Any] = {
        "detector": detector,
        "backbone": {"depth": 10, "width": 8, "norm": "gn"},
        "channels": 16,
        "extra": "pool" if two_stage else "conv_c5",
        "min_level": 4,  # two levels: half of a test's time is compiling
        "max_level": 5,
    }
    if two_stage:
        regions = {"pre_nms": 60, "max_out": 40, "pre_nms_test": 60, "max_out_test": 40}
        student |= {"fc": 16, "proposals": regions, "sampler": {"rpn": 64, "roi": 32}}
    else:
        student |= {"head_convs": 1}
    result: dict[str, Any] = {
        "seed": 3,
        "data": {
            "train": "shapes:24",
            "val": "shapes:6:1",
            "canvases": ((64, 96), (96, 64)),
            "shorter": 64,
            "longer": 96,
            "max_boxes": 16,
            "flip": 0.5,
            "drop_empty": True,
            "num_threads": 1,
            "num_workers": 0,
            "prefetch": 2,
            "mean": (120.0, 120.0, 120.0),
            "std": (60.0, 60.0, 60.0),
        },
        "student": student | {"init": ""},
        "teacher": None,
        "distill": None,
        "train": {
            "batch_size": 4,
            "steps": 8,
            "learning_rate": 0.01,
            "warmup_steps": 3,
            "warmup_factor": 0.1,
            "decay_at": (6.0,),
            "log_every": 1,
            "checkpoint_every": 3,
            "eval_every": 0,
            "keep": 2,
        }
        | train,
        "eval": {"batch_size": 4},
    }
    if distilled:
        teacher = copy.deepcopy(student)
        teacher["backbone"]["width"] = 12
        teacher["channels"] = 24
        result["teacher"] = teacher | {"checkpoint": "", "init": "random", "dtype": "float32"}
        result["distill"] = {
            "pixel_relation": {"nodes": (4,)},
            "instance_relation": {"embedding": 8, "filter_rank": 4},
        }
    return result


def python(
    *arguments: str,
    preexec_fn: Callable[[], None] | None = None,
    devices: int = 1,
    **environment: str,
) -> subprocess.Popen[str]:
    """Starts Python in the project's root; its output can be read from the pipes."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


def names(tree: Any) -> list[str]:
    """The flat names of a pytree's arrays."""
    return list(flatten(tree))
