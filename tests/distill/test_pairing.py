"""Levels are paired by stride and by how they are computed."""

from __future__ import annotations

import pytest

from drkd_jax.distill import pair_levels
from drkd_jax.errors import UserError
from drkd_jax.types import FeatureSpec

TWO_STAGE = FeatureSpec((256,) * 5, (4, 8, 16, 32, 64), ("lateral",) * 4 + ("pool",))
ONE_STAGE = FeatureSpec((256,) * 5, (8, 16, 32, 64, 128), ("lateral",) * 3 + ("conv_c5", "conv_p5"))


def test_equal_pyramids_meet_everywhere():
    assert [pair.name for pair in pair_levels(TWO_STAGE, TWO_STAGE)] == [
        "P2",
        "P3",
        "P4",
        "P5",
        "P6",
    ]


def test_p6_of_two_kinds_does_not_meet():
    pairs = pair_levels(ONE_STAGE, TWO_STAGE)
    assert [(pair.student, pair.teacher, pair.stride) for pair in pairs] == [
        (0, 1, 8),
        (1, 2, 16),
        (2, 3, 32),
    ]


def test_no_level_in_common_lists_both():
    coarse = FeatureSpec((8,), (64,), ("conv_c5",))
    with pytest.raises(UserError, match=r"stride 64 \(conv_c5\).*stride 64 \(pool\)"):
        pair_levels(coarse, TWO_STAGE)
