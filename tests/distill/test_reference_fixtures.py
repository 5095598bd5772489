"""Our answers against stored ones of the PyTorch reference, so torch is not needed here.

Made by: python -m drkd_jax crosscheck --torch-python PYTHON --only TEXT --keep tests/fixtures/TEXT
"""

from __future__ import annotations

from pathlib import Path

import pytest

from crosscheck.command import our_answer
from crosscheck.compare import compare
from crosscheck.exchange import read_answers, read_cases

FOLDERS = sorted((Path(__file__).parents[1] / "fixtures").glob("crosscheck_*"))
CASES = [(folder, case) for folder in FOLDERS for case in read_cases(folder)]


def test_there_are_fixtures():
    assert len(CASES) >= 4


@pytest.mark.parametrize(("folder", "case"), CASES, ids=[case.name for _, case in CASES])
def test_equals_the_reference(folder, case):
    rows = compare(case, our_answer(case), read_answers(folder)[case.name])
    assert rows
    assert [row for row in rows if not row.passes] == []
