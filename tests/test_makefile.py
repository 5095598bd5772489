"""`make crosscheck` uses a given interpreter, and creates its own otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"


def stub(path: Path, words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


def crosscheck(folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    """Runs it with programs that only print their arguments."""
    stub(folder / "bin" / "python", 'echo "ours $*"')
    python = stub(folder / "python", f'echo "theirs $*" >> {folder}/asked')
    call = ["make", "-f", str(MAKEFILE), "-o", "env", "crosscheck", "BIN=bin", f"PYTHON={python}"]
    # The tests themselves may run under make, which passes on its flags and variables.
    outer = {name for name in os.environ if "MAKE" in name} | {"MFLAGS", "TORCH_PYTHON"}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run([*call, *given], cwd=folder, env=env, capture_output=True, text=True)


def asked(folder: Path) -> str:
    return (folder / "asked").read_text() if (folder / "asked").exists() else ""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_crosscheck_installs_torch_only_where_no_interpreter_is_named(tmp_path):
    ran = crosscheck(tmp_path, "TORCH_PYTHON=sh")  # by name, as PYTHON may be
    assert ran.stdout.endswith("ours -m drkd_jax crosscheck --torch-python=sh\n")
    ran = crosscheck(tmp_path, "TORCH_PYTHON=no/such/python")
    assert ran.returncode == 2
    assert "TORCH_PYTHON=no/such/python: no such program" in ran.stderr
    assert "-m venv" not in asked(tmp_path)
    stub(tmp_path / ".venv-torch/bin/python", "exit 1")  # an install that was cut off
    stub(tmp_path / ".venv-torch/bin/pip", f'echo "pip $*" >> {tmp_path}/asked')
    assert crosscheck(tmp_path).returncode == 0
    assert "-m venv .venv-torch" in asked(tmp_path)
    assert "pip install --quiet torch" in asked(tmp_path)
