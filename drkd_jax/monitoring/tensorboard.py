"""Writes scalars and images for TensorBoard, synchronously; and draws the images.

Letters: H W pixels of a drawing.

tensorboardX's own writer uses a thread: if that fails (on a full disk), the run would wait for it
for ever.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from drkd_jax.data.sources import Source
from drkd_jax.draw import draw_detections, scaled, side_by_side
from drkd_jax.errors import UserError
from drkd_jax.words import counted

_LONGEST = 640  # pixels of an image's longer side in a drawing


class TensorBoardWriter:
    """One event file of one session.

    Args:
        folder: the folder of the sessions' files; created if it does not exist.
        start: the step the session starts from; TensorBoard then hides later steps of the previous
            session.

    Raises:
        OSError: here and in every method: the file cannot be written.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # Also at step 0: a session killed before its first checkpoint has written steps, too.
        step = start + 1
        self._write(step=step, file_version="brain.Event:2")
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Writes each value as "GROUP/NAME"."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(f"{group}/{name}", value))
        self._writer.flush()

    def images(self, values: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], step: int) -> None:
        """Writes each RGB image as "images/NAME"."""
        for name, pixels in values.items():
            height, width = pixels.shape[:2]
            _, data = cv2.imencode(".png", pixels[..., ::-1])
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=data.tobytes()
            )
            value = Summary.Value(tag=f"images/{name}", image=image)
            self._write(step=step, summary=Summary(value=[value]))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **content))


def draw_scenes(
    source: Source, found: Sequence[Mapping[str, Any]], number: int, among: int = 0
) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Draws ground truth beside the best detections, as many as there are objects.

    With equally many, early and late students are compared on the same terms, without a score
    threshold. The first images with an object are drawn, so they are always the same ones.

    Args:
        source: the validation data.
        found: detections of an evaluation, in COCO's form.
        number: the most images to draw; 0 reads nothing.
        among: consider only this many first images; 0: all.

    Returns:
        RGB by the image's position; unreadable images are left out.
    """
    names = [category.name for category in source.categories]
    label_of = {category.id: label for label, category in enumerate(source.categories)}
    drawn = {}
    count = min(len(source), among) if among else len(source)
    full = (index for index in range(count) if source.meta(index).num_boxes)
    for index in itertools.islice(full, number):
        try:
            record = source.record(index)
        except UserError:  # the evaluation has already reported it
            continue
        factor = min(1.0, _LONGEST / max(record.image.shape[:2]))
        image, factor = scaled(np.asarray(record.image), factor), np.float32(factor)
        boxes, labels = record.boxes[~record.crowd], record.labels[~record.crowd]
        truth = draw_detections(image, boxes * factor, labels, None, names)
        mine = [row for row in found if row["image_id"] == record.image_id]
        mine = sorted(mine, key=lambda row: -row["score"])[: len(boxes)]
        corners = np.array([row["bbox"] for row in mine], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        seen = draw_detections(
            image,
            corners * factor,
            np.array([label_of[row["category_id"]] for row in mine], np.int64),
            np.array([row["score"] for row in mine], np.float32),
            names,
        )
        titles = f"ground truth, {counted(len(boxes), 'object')}", f"the best {len(mine)} found"
        drawn[f"{index:05d}"] = side_by_side([truth, seen], titles)
    return drawn
