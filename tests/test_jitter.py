"""``--jitter`` moves only drawn numbers, by its step, and lists the verdicts that change."""

from __future__ import annotations

import numpy as np
import pytest

from tests import jitter

pytest_plugins = ["pytester"]

# One test depends on the seventh digit of its input, one does not, one reads a stored case.
TESTS = """
import numpy as np

def test_it_hangs_on_the_last_digit():
    assert np.random.default_rng(0).normal() == 0.12573021669449207

def test_it_does_not():
    assert abs(np.random.default_rng(0).normal() - 0.12573) < 1e-5

def test_it_never_passed():
    assert np.random.RandomState(0).uniform() > 1
"""


def test_verdicts_that_change_are_listed(pytester):
    value = np.random.default_rng(0).normal()
    pytester.makepyfile(test_moved=TESTS.replace("0.12573021669449207", repr(float(value))))
    path = str(pytester.path / "test_moved.py")
    result = pytester.runpytest_inprocess("-p", "tests.jitter", "--jitter=2", path)
    text = result.stdout.str()
    assert result.ret == 1, text
    assert "3 tests as they are, 1 failed" in text
    assert "2 runs, 1 verdicts that change" in text
    (line,) = (line for line in text.splitlines() if line.endswith("in seed 1, seed 2"))
    assert "test_it_hangs_on_the_last_digit" in line


def test_what_is_drawn_moves_by_a_ten_millionth(monkeypatch, tmp_path):
    plain = np.random.default_rng(3).normal(size=1000)
    state = np.random.RandomState(3).uniform(1, 2, (10, 10))
    whole = np.random.default_rng(3).integers(0, 9, 1000)
    np.savez(tmp_path / "cases.npz", x=np.float32([0, 1, -2]), n=np.arange(3))
    np.savez(tmp_path / "answers.npz", x=np.float32([0, 1, -2]))
    jitter.install(5, monkeypatch)
    for moved, drawn in (
        (np.random.default_rng(3).normal(size=1000), plain),
        (np.random.RandomState(3).uniform(1, 2, (10, 10)), state),
    ):
        off = np.abs(moved / drawn - 1)
        assert 0 < off.max() < 2.01e-7
        np.testing.assert_array_equal(np.random.default_rng(3).integers(0, 9, 1000), whole)
    again = np.random.default_rng(3).normal(size=1000)  # one seed, one list of numbers
    np.testing.assert_array_equal(np.random.default_rng(3).normal(size=1000), again)
    with jitter.still():
        np.testing.assert_array_equal(np.random.default_rng(3).normal(size=1000), plain)
    with np.load(tmp_path / "cases.npz") as file:
        np.testing.assert_array_equal(file["n"], np.arange(3))
        x = file["x"]
    assert x.dtype == np.float32
    assert x[0] == 0
    np.testing.assert_allclose(x, [0, 1, -2], rtol=3e-7)
    np.testing.assert_array_equal(np.load(tmp_path / "answers.npz")["x"], [0, 1, -2])


@pytest.mark.parametrize("given", [["--jitter=3", "-x", "a"], ["-x", "--jitter", "3", "a"]])
def test_the_runs_get_all_other_arguments(given):
    assert jitter.own_arguments([*given, "--code-paths"]) == ["-x", "a"]
