"""Scalars and pictures as TensorBoard reads them, written at once.

tensorboardX's own writer hands them to a thread: where that fails (a full disk) the run would wait
for it for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar


class TensorBoardWriter:
    """One event file of one session.

    Args:
        folder: where the sessions' files lie; made where it is not there.
        start: the step the session starts from; TensorBoard then hides later ones of the session
            before.

    Raises:
        OSError: here and in every method: it cannot be written.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if start:
            step = start + 1
            self._write(step=step, file_version="brain.Event:2")
            self._write(step=step, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Writes each value as "GROUP/NAME"."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(f"{group}/{name}", value))
        self._writer.flush()

    def pictures(self, values: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], step: int) -> None:
        """Writes each RGB picture as "pictures/NAME"."""
        for name, picture in values.items():
            height, width = picture.shape[:2]
            _, data = cv2.imencode(".png", picture[..., ::-1])
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=data.tobytes()
            )
            value = Summary.Value(tag=f"pictures/{name}", image=image)
            self._write(step=step, summary=Summary(value=[value]))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **content))
