"""The one record that every source hands over, and what is known of it without its pixels.

Letters: H W pixels of the source picture, n its boxes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

Id = int | str  # of a picture or class, as the source's own file has it

_WHOLE = re.compile(r"-?\d{1,20}")


def id_key(value: Any) -> Any:
    """What an id is compared by: a text that is a whole number is the same id as the number."""
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if _WHOLE.fullmatch(text) else (text or value)


class Category(NamedTuple):
    """A class of objects: its id in the source's own numbering, and its name."""

    id: Id
    name: str


class Meta(NamedTuple):
    """What is known of a picture before it is read.

    ``num_boxes`` counts the boxes that training sees: neither crowd nor degenerate.
    """

    image_id: Id
    height: int  # pixels
    width: int  # pixels
    num_boxes: int


class Record(NamedTuple):
    """A picture as the source has it, with its boxes in source pixels.

    Boxes are clipped to the picture and degenerate ones are left out (see
    ``AnnotationTable.usable``); crowd regions are among them, flagged.
    """

    image: UInt8[np.ndarray, "H W 3"]  # RGB
    boxes: Float[np.ndarray, "n 4"]  # xyxy, float32
    labels: Int32[np.ndarray, "n"]  # 0..K-1, by rising category id
    crowd: Bool[np.ndarray, "n"]
    image_id: Id
    name: str  # file name, or what a message calls the picture


@runtime_checkable
class Source(Protocol):
    """A set of pictures with boxes, read by position. Picklable, safe to read from threads."""

    @property
    def spec(self) -> str:
        """The string that opened it."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """Classes by rising id; the position is the label."""
        ...

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Counts for the start of a run: pictures, boxes, classes, crowd, empty, dropped."""
        ...

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes, without reading pixels."""
        ...

    def record(self, index: int) -> Record:
        """The picture and its boxes.

        Raises:
            UserError: the picture is missing, not decodable or of another size than stated.
        """
        ...

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict (original ids, crowd included), for evaluation."""
        ...
