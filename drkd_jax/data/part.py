"""Some images of a source, as a source of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drkd_jax.data.records import Category, Meta, Record, Source


class Part:
    """The images of a source at some of its positions, in that order.

    Args:
        source: the whole.
        indices: positions in it.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, [int(index) for index in indices]

    @property
    def spec(self) -> str:
        """The string that opened the whole source."""
        return self._source.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        """Those of the whole source."""
        return self._source.categories

    def __len__(self) -> int:
        return len(self._indices)

    def describe(self) -> dict[str, Any]:
        """The whole source's counts, with the number of images here."""
        return {**self._source.describe(), "pictures": len(self)}

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes, without reading pixels."""
        return self._source.meta(self._indices[index])

    def record(self, index: int) -> Record:
        """The image and its boxes; raises what the whole source raises."""
        return self._source.record(self._indices[index])

    def coco_ground_truth(self) -> dict[str, Any]:
        """The whole source's, cut to the images here."""
        truth = self._source.coco_ground_truth()
        ids = {self.meta(i).image_id for i in range(len(self))}
        return {
            **truth,
            "images": [image for image in truth["images"] if image["id"] in ids],
            "annotations": [each for each in truth["annotations"] if each["image_id"] in ids],
        }
