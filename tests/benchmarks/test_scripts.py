"""Benchmarks start by their path, as their docstrings say, without a PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "flags", "reached"),
    [
        ("overfit.py", ["--coco=nowhere", "--workdir=w"], "nowhere/instances_train.json"),
        (
            "weights_sweep.py",
            ["--config=demo.py:drkd:faster_rcnn", "--teacher=t", "--grid", "pkd=1"],
            "unknown term 'pkd'",
        ),
    ],
)
def test_recipes_of_the_checkout_are_found(script, flags, reached, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert reached in found.stderr.splitlines()[-1]
