"""A failure names the processor, jaxlib and the worst entry."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest

from tests import numeric_report

pytest_plugins = ["pytester"]

FAILS = """
import numpy as np

def test_it():
    wanted = np.ones((2, 3))
    ours = wanted.copy()
    ours[0, 1] += 2e-5
    ours[1, 2] -= 3e-5
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
"""


def test_a_failure_says_where_it_was_and_by_how_much(pytester):
    pytester.makepyfile(FAILS)
    result = pytester.runpytest_inprocess("-p", "tests.numeric_report", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert f"jaxlib {version('jaxlib')}" in text
    assert "processor: " in text
    assert "worst entry [1, 2] of (2, 3): 0.99997, wanted 1, off by 3e-05, relative 3e-05" in text
    assert "27.3 of its tolerance" in text  # 1e-6 and a ten-millionth of the wanted number


@pytest.mark.parametrize(
    ("ours", "wanted", "said"),
    [
        ([1.0, np.nan], [1.0, 2.0], "[1] of (2,): nan, wanted 2, off by inf"),
        (3.0, 0.0, "scalar: 3, wanted 0, off by 3, relative inf"),
        ([np.inf, 1.0], [np.inf, 1.5], "[1] of (2,)"),
        (["a"], ["b"], ""),
        ([], [], ""),
        ([1.0, 2.0], [1.0, 2.0, 3.0], ""),
    ],
)
def test_the_worst_entry(ours, wanted, said):
    found = numeric_report.worst_entry(ours, wanted)
    assert said in found if said else found == ""
