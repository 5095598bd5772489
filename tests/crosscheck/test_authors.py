"""`crosscheck --official`: its arguments, the code that it runs, and what its cases rely on.

Runs without torch and checkouts, which only the comparison itself needs.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

from crosscheck.authors import BOXES, CANVAS, MAP_TERMS, STRIDES, authors_cases
from crosscheck.command import COMPONENTS
from crosscheck.crosskd import rest_of_head
from crosscheck.reference.checkouts import FILES, OWN, recognised, take
from drkd_jax import __main__ as command_line
from drkd_jax import boxes as box_ops

THEIRS = """
import mmcv
from ..nowhere import Base

raise RuntimeError("the file as a whole must not run")


def double(x):
    return 2 * x


def _unasked(x=mmcv.nothing):
    return x


@MODELS.register_module()
class Loss(Base):
    weight: Nothing = 3

    def forward(self, x: Tensor) -> Union[Tensor, dict]:
        return self.weight * double(x) + OFFSET
"""


def make_checkout(folder, repository, *, lacking=()):
    for file in FILES[repository]:
        if file not in lacking:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    return folder


def test_checkouts_are_known_by_their_files(tmp_path):
    made = {name: make_checkout(tmp_path / str(i), name) for i, name in enumerate(reversed(FILES))}
    assert recognised([]) == {}
    assert recognised(list(made.values())) == made


def refusal(capsys, *folders):
    given = ["--torch-python", sys.executable, "--official", *map(str, folders)]
    assert command_line.main(["crosscheck", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_a_folder_that_cannot_be_used_is_refused_in_a_line(tmp_path, capsys):
    mine = make_checkout(tmp_path / "mine", "yzd-v/FGD")
    other = tmp_path / "other"
    (other / "mmdet").mkdir(parents=True)
    line = refusal(capsys, mine, other)
    assert line.startswith(f"--official {other}: a checkout of none of the known repositories")
    assert all(name in line for name in FILES)
    assert refusal(capsys, tmp_path / "gone") == f"--official {tmp_path / 'gone'}: no such folder"
    twice = make_checkout(tmp_path / "twice", "yzd-v/FGD")
    assert f"yzd-v/FGD is in {mine} already" in refusal(capsys, mine, twice)
    two_stage = "mmdet/models/detectors/two_stage.py"
    half = make_checkout(tmp_path / "half", OWN, lacking=[two_stage])
    assert refusal(capsys, half) == f"--official {half}: {OWN} without {two_stage}"


def test_what_is_named_runs_and_nothing_else(tmp_path):
    file = tmp_path / "loss.py"
    file.write_text(THEIRS)
    space = {"Base": object, "OFFSET": 1}
    take(file, ["Loss", "double"], space)
    assert space["Loss"]().forward(5) == 31
    assert "_unasked" not in space
    with pytest.raises(LookupError, match=r"loss\.py does not define Absent"):
        take(file, ["Absent", "double"], {})


@pytest.fixture(scope="module")
def cases():
    return list(authors_cases("float32", FILES))


def test_every_repository_that_is_there_has_its_cases(cases):
    assert set(MAP_TERMS) | {OWN} == set(FILES)
    assert {case.component for case in cases} <= set(COMPONENTS)
    for repository, terms in MAP_TERMS.items():
        found = [case.name for case in cases if f" of {repository}, " in case.name]
        assert {name.split(" of ")[0] for name in found} >= set(terms)
    assert not list(authors_cases("float32", [OWN]))


def test_nothing_of_the_cases_is_padding(cases):
    for case in cases:
        c = case.arrays["c"]
        assert (c["sizes"] == CANVAS).all()
        assert c["image_valid"].all()
        assert c["valid"].any(1).tolist() == [True, True, False]


def test_boxes_lie_on_borders_and_both_units_agree_on_them():
    """We divide by `stride` pixels, the authors by the canvas."""
    boxes = np.float32(BOXES)
    for stride in STRIDES:
        for axis, side in ((0, CANVAS[1]), (1, CANVAS[0])):
            cells = boxes[:, axis::2] / np.float32(side) * np.float32(side // stride)
            np.testing.assert_array_equal(cells, boxes[:, axis::2] / stride)
            assert (cells == np.round(cells)).sum() > 3


def test_some_of_crosskds_boxes_reach_the_limits_of_the_box_code(cases):
    (case,) = (case for case in cases if case.component == "authors_crosskd")
    x, c = case.arrays["x"], case.arrays["c"]
    _, deltas = rest_of_head(c, x["t_classes1"], x["t_boxes1"])
    sides = np.asarray(deltas)[..., 2:]
    assert (sides > box_ops.MAX_LOG_RATIO).any()
    assert (sides < -box_ops.MAX_LOG_RATIO).any()
    assert (np.abs(sides) < box_ops.MAX_LOG_RATIO).mean() > 0.5
