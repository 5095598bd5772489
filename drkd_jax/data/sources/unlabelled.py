"""Pictures without labels: a folder of files, or any source with its annotations left aside.

A distilled student can learn from them by every term that needs no boxes: the teacher has seen
what is in them, and no one has to draw it. They come after the labelled pictures in one source,
so a picture's position says which it is.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drkd_jax.data.decode import Scan, decode_picture, scan, sizes_of
from drkd_jax.data.header import PICTURE_SUFFIXES
from drkd_jax.data.sources.opening import JoinedSource
from drkd_jax.data.sources.records import AnnotationTable, Record, Source
from drkd_jax.errors import UserError


class PictureFolder(Source):
    """``pictures:DIR``: the picture files of a folder and of the folders in it, by path.

    Names of hidden files and of other kinds are left aside. A picture is shown as its EXIF says.

    Args:
        folder: where they lie.
        depth: bits that 16-bit pictures use, see ``decode_picture``.

    Raises:
        UserError: no such folder, or no picture in it.
    """

    def __init__(self, folder: str | Path, depth: int = 0):
        self.folder, self.depth = Path(folder), depth
        self.spec, self.categories = f"pictures:{folder}", ()
        if not self.folder.is_dir():
            raise UserError(f"picture folder {folder} does not exist; the form is pictures:DIR")
        self._paths = [
            Path(place, name)
            for place, _, names in sorted(os.walk(self.folder, followlinks=True))
            for name in sorted(names)
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")
        ]
        if not self._paths:
            raise UserError(f"picture folder {folder} holds no picture")

    @functools.cached_property
    def scan(self) -> Scan:  # type: ignore[override]  # made once, where wanted
        """What the picture files say of themselves."""
        return scan(self._paths)

    @functools.cached_property
    def table(self) -> AnnotationTable:  # type: ignore[override]  # made once, where wanted
        """Names and sizes, and no annotation."""
        sizes = sizes_of(self._paths)
        lying = self.scan.orientation >= 5
        sizes[lying] = sizes[lying, ::-1]
        names = tuple(os.path.relpath(path, self.folder) for path in self._paths)
        return _table(names, np.arange(1, len(names) + 1), sizes)

    def path(self, index: int) -> Path:
        """Where picture ``index`` lies."""
        return self._paths[index]

    def record(self, index: int) -> Record:
        """Reads picture ``index``.

        Raises:
            UserError: the file is missing or no picture.
        """
        path, (height, width) = self._paths[index], self.table.sizes[index].tolist()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"picture {path} cannot be read: {error.strerror}") from error
        image = decode_picture(data, str(path), height, width, depth=self.depth)
        return Record(image, *self.table.boxes(index), index + 1, str(path))


class WithoutLabels(Source):
    """Pictures of a source without their annotations and classes.

    Args:
        source: the whole.
        indices: positions in it.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, list(indices)
        self.spec, self.categories = source.spec, ()
        self.exif, self.depth = source.exif, source.depth
        known = source.table.take(self._indices)
        self.table = _table(known.names, known.image_ids, known.sizes)

    def path(self, index: int) -> Path | None:
        """Where picture ``index`` lies; None where it is no file."""
        return self._source.path(self._indices[index])

    def record(self, index: int) -> Record:
        """The picture; raises what the whole source raises."""
        boxes, labels, crowd = self.table.boxes(index)
        record = self._source.record(self._indices[index])
        return record._replace(boxes=boxes, labels=labels, crowd=crowd)


class WithUnlabelled(JoinedSource):
    """Labelled pictures, and behind them pictures without labels.

    Args:
        labelled: the set that is trained on.
        unlabelled: its annotations are left aside, and so are its pictures that are files of
            ``labelled`` too.

    Attributes:
        labelled: the first part.
        num_labelled: how many pictures it has; those from this position on have no labels.

    Raises:
        UserError: nothing is left of ``unlabelled``.
    """

    def __init__(self, labelled: Source, unlabelled: Source):
        known = {_place(labelled, i) for i in range(len(labelled))} - {None}
        others = [i for i in range(len(unlabelled)) if _place(unlabelled, i) not in known]
        if not others:
            raise UserError(f"{unlabelled.spec}: every picture of it is one of {labelled.spec}")
        super().__init__([labelled, WithoutLabels(unlabelled, others)])
        self.labelled, self.num_labelled = labelled, len(labelled)
        self.categories = labelled.categories
        self.mended = [line for line in self.mended if "share ids" not in line]


def labelled_part(source: Source) -> Source:
    """The pictures of a source that have labels."""
    return source.labelled if isinstance(source, WithUnlabelled) else source


def _place(source: Source, index: int) -> str | None:
    path = source.path(index)
    return None if path is None else os.path.realpath(path)


def _table(names: tuple[str, ...], ids: np.ndarray, sizes: np.ndarray) -> AnnotationTable:
    """A table without annotations."""
    nothing = np.zeros(0, np.int64)
    return AnnotationTable(
        categories=(),
        names=names,
        image_ids=ids,
        sizes=sizes,
        starts=np.zeros(len(names) + 1, np.int64),
        ids=nothing,
        bbox=np.zeros((0, 4)),
        area=np.zeros(0),
        labels=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
    )
