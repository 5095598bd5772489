"""Maps the classes of a detector to those of the data by name, whatever their order."""

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
    """The mapping between a detector's classes and those of some data.

    Attributes:
        labels: for each of the detector's labels the data's label; -1 if the data lack the class,
            whose detections are then ignored.
        classes: for each of the data's labels the detector's label; this is `settings.class_ids` of
            a detector that is built for the data.
        lines: messages for the user; () if both sides are the same.
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

    Names are compared exactly, and if that fails, ignoring case, blanks, underscores, hyphens and
    the encoding of accents. The ids of the two sides are unrelated.

    Args:
        detector: (id, name) of each label of the detector, in order.
        data: (id, name) of each label of the data, in order.
        where: the name of the data in messages.

    Raises:
        UserError: the detector lacks a class of the data, or a name occurs twice; the message lists
            both sides with their ids.
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
    """Makes a detector return its detections with the class numbers of some data.

    Args:
        detector: built for its own classes; it is changed, but not its arrays.
        found: from `map_classes`, with the detector's own classes as its first argument.

    Returns:
        The detector: `predict` returns the data's labels, and drops classes that the data lack.
    """
    detector.class_ids = tuple(detector.class_ids[own] for own in found.classes)
    detector.num_classes = len(found.classes)
    return detector


def _plain(name: str) -> str:
    # Unicode has several encodings of the same text: one character, or a letter and its accent.
    name = unicodedata.normalize("NFKC", name)
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _list(items: Sequence[Named]) -> str:
    shown = ", ".join(f"{number} {name}" for number, name in items[:_SHOWN])
    more = len(items) - _SHOWN
    return shown + (f", ... ({more} more)" if more > 0 else "")
