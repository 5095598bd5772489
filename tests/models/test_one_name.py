"""`models`, the link at the top of a checkout, has the classes of `drkd_jax.models`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny import ROOT

SAME = """
import importlib, pkgutil, sys
import models, models.detector, models.build
from models import build
from models.detector import Detector
import drkd_jax.models
from flax import nnx

assert models is drkd_jax.models
assert build is models.build is sys.modules["drkd_jax.models.build"]
assert Detector is models.Detector is sys.modules["drkd_jax.models.detector"].Detector
for found in pkgutil.iter_modules(drkd_jax.models.__path__):
    one = importlib.import_module(f"models.{found.name}")
    assert one is importlib.import_module(f"drkd_jax.models.{found.name}"), found.name
    assert one.__name__ == one.__spec__.name == f"drkd_jax.models.{found.name}"

try:
    import models.yolo
except ModuleNotFoundError as error:
    assert str(error) == "No module named 'models.yolo'", error
else:
    raise AssertionError("models.yolo")
print("one")
"""


@pytest.mark.parametrize("first", ["models.retinanet", "drkd_jax.models"])
def test_the_link_makes_no_second_set_of_classes(first):
    """In a separate process, since the order of imports matters."""
    code = f"import {first}\n{SAME}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "one\n", done.stderr


def test_the_linter_passes_over_nothing_that_is_called_as_the_link_is():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = {Path(line) for line in done.stdout.splitlines()}
    for folder in ("drkd_jax", "tests"):
        assert set((ROOT / folder).rglob("*.py")) <= seen
    assert not any(path.is_relative_to(ROOT / "models") for path in seen)
