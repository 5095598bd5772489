"""A number with its noun and verb."""

import pytest

from drkd_jax.words import counted


@pytest.mark.parametrize(
    ("number", "noun", "rest", "said"),
    [
        (0, "image", "", "0 images"),
        (1, "image", "", "1 image"),
        (2, "box", "", "2 boxes"),
        (3, "class name", "have two", "3 class names have two"),
        (1, "class name", "have two", "1 class name has two"),
        (2, "entry", "are", "2 entries are"),
        (1, "entry", "are", "1 entry is"),
        (2, "array", "", "2 arrays"),
        (2, "class", "", "2 classes"),
        (1, "array", "differ", "1 array differs"),
    ],
)
def test_a_number_with_its_noun(number, noun, rest, said):
    assert counted(number, noun, rest) == said
