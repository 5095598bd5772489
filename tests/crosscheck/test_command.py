"""`crosscheck`: its verdicts and error messages, without torch."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from crosscheck import command
from crosscheck.case import Case
from crosscheck.compare import compare
from drkd_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CASE = Case("a case", "unit", {}, {}, 1e-5, 1e-4)


def test_a_wrong_output_fails_and_a_right_one_passes():
    theirs = {"out|y": np.ones(4), "dx|x": np.ones(4)}
    right = compare(CASE, {"out|y": np.ones(4) + 1e-6, "dx|x": np.ones(4) + 5e-5}, theirs)
    wrong = compare(CASE, {"out|y": np.ones(4) + 1e-4, "dx|x": np.ones(4) + 5e-4}, theirs)
    assert [row.passes for row in right] == [True, True]
    assert [row.passes for row in wrong] == [False, False]


def test_not_a_number_fails():
    rows = compare(CASE, {"out|y": np.full(2, np.nan)}, {"out|y": np.ones(2)})
    assert not rows[0].passes


def test_a_gradient_that_is_0_is_held_against_the_largest():
    theirs = {"dx|x": np.full(4, 100.0), "dp|b": np.zeros(4)}
    ours = {"dx|x": np.full(4, 100.0), "dp|b": np.full(4, 1e-6)}
    assert all(row.passes for row in compare(CASE, ours, theirs))
    ours["dp|b"] = np.full(4, 1e-3)
    assert [row.passes for row in compare(CASE, ours, theirs)] == [True, False]


def test_the_other_side_imports_neither_jax_nor_the_package():
    """Its interpreter has only torch and NumPy."""
    modules = sorted((ROOT / "crosscheck" / "reference").glob("*.py"))
    assert len(modules) > 15
    for path in [ROOT / "crosscheck" / "__init__.py", *modules]:
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top for alias in node.names if node.__class__ is ast.Import}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
        foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert foreign <= {"numpy", "torch", "torchvision", "mmdet", "mmengine", "crosscheck"}, path
        inside = {name for name in names if name.startswith("crosscheck")}
        assert all(name.startswith("crosscheck.reference") for name in inside), path.name


def test_complaints_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--torch-python"):
        command.main([])
    own = command.all_cases
    monkeypatch.setattr(command, "all_cases", functools.cache(lambda dtype: [*own(dtype)]))
    with pytest.raises(UserError, match="no case"):
        command.main(["--torch-python", sys.executable, "--only", "nonsense"])
    with pytest.raises(UserError, match="cannot be started"):
        command.main(["--torch-python", str(tmp_path / "none"), "--only", "anchors"])
    both = ["--torchvision", "--official", str(tmp_path), "--json", str(tmp_path / "a" / "b.json")]
    with pytest.raises(UserError, match="--torchvision and --official are two comparisons"):
        command.main(["--torch-python", str(tmp_path / "none"), *both])
    assert not any(tmp_path.iterdir())
