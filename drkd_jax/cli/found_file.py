"""`detections.json` of `predict`: written incrementally, and valid JSON however it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import as_user_error, replacing


class FoundFile:
    """`detections.json` in COCO's form; images and their boxes are added one by one."""

    def __init__(self, path: Path, file: BinaryIO, categories: Sequence[tuple[Any, str]]):
        self._path, self._file = path, file
        self._images: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self._boxes = 0
        classes = [{"id": number, "name": name} for number, name in categories]
        file.write(f'{{"categories": {json.dumps(classes)}, "annotations": ['.encode())

    def add(self, image: dict[str, Any], boxes: Sequence[dict[str, Any]]) -> None:
        """Adds an image and its detections.

        Args:
            image: with "id".
            boxes: `category_id`, `bbox` (x, y, width, height in the image's pixels) and `score`
                each.

        Raises:
            UserError: the disk is full.
        """
        self._images.append(image)
        lines = []
        for box in boxes:
            self._boxes += 1
            area = box["bbox"][2] * box["bbox"][3]
            row = {"id": self._boxes, "image_id": image["id"], "iscrowd": 0, "area": area, **box}
            lines.append(f"{',' if self._boxes > 1 else ''}\n{json.dumps(row)}")
        with as_user_error(self._path):
            self._file.write("".join(lines).encode())
            self._file.flush()

    def skip(self, path: str, reason: str) -> None:
        """Adds an image that could not be read."""
        self._skipped.append({"file_name": path, "reason": reason})

    def end(self) -> None:
        """Writes the images, by their id, after the boxes."""
        images = sorted(self._images, key=lambda image: image["id"])
        rest = f'], "images": {json.dumps(images)}, "skipped": {json.dumps(self._skipped)}}}\n'
        self._file.write(rest.encode())


@contextlib.contextmanager
def found_file(path: Path, categories: Sequence[tuple[Any, str]]) -> Iterator[FoundFile]:
    """Opens `detections.json`. If it ends early, the file keeps the detections until then.

    Raises:
        UserError: it cannot be written.
    """
    ended: BaseException | None = None
    with as_user_error(path), replacing(path) as file:
        found = FoundFile(path, file, categories)
        try:
            yield found
        except (UserError, OSError, KeyboardInterrupt) as error:
            ended = error
        found.end()
    if ended is not None:
        raise ended
