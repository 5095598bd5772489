"""A number with its noun and verb, and a list that is cut short."""

import pytest

from drkd_jax.words import counted, listed


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


def test_a_long_list_ends_in_dots():
    assert [listed(range(n), 3) for n in (0, 1, 3, 4)] == ["", "0", "0, 1, 2", "0, 1, 2, ..."]
