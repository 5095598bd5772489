"""Classes by their names: which of the data's is each of a detector's, whatever their order."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from drkd_jax.errors import UserError
from drkd_jax.models.detector import Detector

Named = tuple[int, str]  # a class's id in its own numbering, and its name
_SHOWN = 12  # classes of each side in a message


class ClassMap(NamedTuple):
    """A detector's classes in the numbers of some data.

    Attributes:
        labels: for each of the detector's labels the data's label; -1 where the data have no such
            class, and a detection of it counts for nothing.
        classes: for each of the data's labels the detector's label: `settings.class_ids`, where
            the detector is built for the data.
        lines: what a person should know; () where both sides are the same.
    """

    labels: tuple[int, ...]
    classes: tuple[int, ...]
    lines: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every label means the same on both sides."""
        return self.labels == self.classes == tuple(range(len(self.labels)))


def map_classes(
    detector: Sequence[Named], data: Sequence[Named], where: str = "the data"
) -> ClassMap:
    """Finds each class of some data among those of a detector, by name.

    Names are compared as they stand, and where that fails without regard to case, blanks,
    underscores, hyphens and the ways to write an accent. The ids of either side mean nothing to
    the other.

    Args:
        detector: (id, name) of each label of the detector, in order.
        data: (id, name) of each label of the data, in order.
        where: what a message calls the data.

    Raises:
        UserError: a class of the data that the detector does not know, or a name that stands
            twice; both sides are listed with their ids.
    """
    own, theirs = [name for _, name in detector], [name for _, name in data]
    if own == theirs:
        every = tuple(range(len(own)))
        return ClassMap(every, every, ())
    for key in (str, _plain):
        known, wanted = [key(name) for name in own], [key(name) for name in theirs]
        if set(wanted) <= set(known):
            break
    twice = [name for names in (known, wanted) for name, n in Counter(names).items() if n > 1]
    missing = [item for item, name in zip(data, wanted, strict=True) if name not in known]
    if missing or twice:
        fault = f"the detector does not know {_list(missing)}" if missing else ""
        if twice:
            fault += f"{'; ' * bool(fault)}more than one class is called {', '.join(twice[:4])}"
        raise UserError(
            f"{where}: {fault}. Its classes (id name): {_list(data)}; the detector's: "
            f"{_list(detector)}"
        )
    place = {name: label for label, name in enumerate(wanted)}
    labels = tuple(place.get(name, -1) for name in known)
    classes = tuple(known.index(name) for name in wanted)
    lines = []
    if classes != tuple(range(len(classes))):
        lines.append(f"{len(classes)} classes of {where} found by their names, in another order")
    absent = [item for item, label in zip(detector, labels, strict=True) if label < 0]
    if absent:
        lines.append(f"{where} has no class for {_list(absent)}: detections of these are left out")
    return ClassMap(labels, classes, tuple(lines))


def follow_classes(detector: Detector, found: ClassMap) -> Detector:
    """Lets a detector give its detections in the numbers of some data.

    Args:
        detector: built for its own classes; it is changed, and no array of it is.
        found: of `map_classes`, with the detector's own classes first.

    Returns:
        The detector: `predict` gives the data's labels, and drops what the data have no class for.
    """
    detector.class_ids = tuple(detector.class_ids[own] for own in found.classes)
    detector.num_classes = len(found.classes)
    return detector


def _plain(name: str) -> str:
    # The same letters are typed in more than one way: one sign, or a letter and its accent.
    name = unicodedata.normalize("NFKC", name)
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _list(items: Sequence[Named]) -> str:
    shown = ", ".join(f"{number} {name}" for number, name in items[:_SHOWN])
    more = len(items) - _SHOWN
    return shown + (f", ... ({more} more)" if more > 0 else "")
