"""Classes are matched by name, in any order and with any ids."""

import pytest

from drkd_jax.errors import UserError
from drkd_jax.weights.classes import map_classes

OWN = [(1, "nut"), (2, "bolt"), (3, "pin")]


@pytest.mark.parametrize(
    ("data", "labels", "classes", "words"),
    [
        (OWN, (0, 1, 2), (0, 1, 2), ""),
        ([(7, "nut"), (8, "bolt"), (40, "pin")], (0, 1, 2), (0, 1, 2), ""),
        ([(1, "bolt"), (2, "nut"), (3, "pin")], (1, 0, 2), (1, 0, 2), "another order"),
        ([(1, "bolt"), (5, "nut")], (1, 0, -1), (1, 0), "no class for 3 pin"),
        ([(1, "\uff2eut"), (2, "bolt"), (3, "pin")], (0, 1, 2), (0, 1, 2), ""),
        ([(1, "Nut "), (2, "BOLT"), (3, "pin")], (0, 1, 2), (0, 1, 2), ""),
    ],
)
def test_classes_are_found_by_name(data, labels, classes, words):
    found = map_classes(OWN, data, "val.json")
    assert (found.labels, found.classes) == (labels, classes)
    assert words in " ".join(found.lines)
    assert bool(found.lines) == bool(words)
    assert found.same == (labels == (0, 1, 2))


def test_blanks_and_underscores_are_one():
    found = map_classes([(1, "traffic light"), (2, "cup")], [(1, "cup"), (2, "traffic_light")])
    assert found.classes == (1, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            [(4, "nut"), (9, "screw")],
            r"does not know 9 screw.*4 nut, 9 screw.*1 nut, 2 bolt, 3 pin",
        ),
        ([(1, "nut"), (2, "nut")], "more than one class is called nut"),
        ([(1, "NUT"), (2, "nut"), (3, "bolt")], "more than one class is called nut"),
    ],
)
def test_what_cannot_be_mapped_shows_ids_beside_names(data, words):
    with pytest.raises(UserError, match=words):
        map_classes(OWN, data, "val.json")
