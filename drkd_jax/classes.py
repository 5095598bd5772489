"""Classes of two sides brought together by their names; their numbers may differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from drkd_jax.errors import UserError

Classes = Sequence[tuple[Any, str]]  # (id, name) each; the position is the label

_SHOWN = 8  # classes of a side that a message lists


def match_classes(
    own: Classes,
    theirs: Classes,
    needed: Collection[Any] = (),
    *,
    who: str = "the detector",
    whose: str = "the data",
) -> tuple[Any | None, ...]:
    """For each class of a detector the id of the class of that name in a data set.

    Args:
        own: classes of the detector, by label.
        theirs: classes of the data.
        needed: ids of the data's classes that the detector has to know, as those with boxes.
        who: what a message calls the detector.
        whose: what it calls the data.

    Returns:
        One id of the data for each class of the detector; None where the data has no such class.

    Raises:
        UserError: a needed class is none of the detector's, no class is the same, or a name
            stands for several classes. Both sides are shown, ids beside names.
    """
    names, other_names = [name for _, name in own], [name for _, name in theirs]
    if names == other_names:
        return tuple(number for number, _ in theirs)
    both = f"{whose} has the classes {_few(theirs)}; {who} knows {_few(own)}"
    for name, times in (Counter(names) | Counter(other_names)).items():
        if times > 1:
            raise UserError(f"'{name}' is the name of {times} classes, so which is which? {both}")
    lacking = [each for each in theirs if each[0] in needed and each[1] not in names]
    if lacking:
        raise UserError(
            f"{both}. It was not trained on {_few(lacking)}, of which there are boxes: give the "
            "classes the same names, or leave these boxes out"
        )
    if not set(names) & set(other_names):
        raise UserError(f"{both}. No class is the same: give the classes the same names")
    id_of = {name: number for number, name in theirs}
    return tuple(id_of.get(name) for name in names)


def class_differences(own: Classes, theirs: Classes) -> list[str]:
    """How the classes of two sides that were brought together differ, a line each; [] if not."""
    names, other_names = {name for _, name in own}, {name for _, name in theirs}
    lines = []
    missing = [each for each in own if each[1] not in other_names]
    strange = [each for each in theirs if each[1] not in names]
    if missing:
        lines.append(f"not in the data, and not counted: {_few(missing)}")
    if strange:
        lines.append(f"unknown to the detector, and without a box: {_few(strange)}")
    if not lines and [tuple(each) for each in own] != [tuple(each) for each in theirs]:
        lines.append(f"by name: the data has {_few(theirs)}; the detector {_few(own)}")
    return lines


def _few(classes: Classes) -> str:
    listed = ", ".join(f"{name} (id {number})" for number, name in classes[:_SHOWN])
    return listed + (f", ... ({len(classes)} in all)" if len(classes) > _SHOWN else "")
