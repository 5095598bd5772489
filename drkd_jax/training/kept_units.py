"""The teacher's pretrained graph units in the work folder, with a mark of their origin."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drkd_jax.fault_tolerance.writing import write_bytes

UNITS_FILE = "teacher_units.npz"


class Pretrained(NamedTuple):
    """The result of the pretraining phase."""

    arrays: dict[str, np.ndarray]  # of the units, by flat name
    before: float  # the teacher's loss on the held-out images, without the units
    after: float  # the same with the units
    images: int  # number of measured images


def read_units(path: Path, mark: str) -> Pretrained | None:
    """The units in the work folder; None if there are none, or they have another mark."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["fingerprint"] != mark:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Pretrained(arrays, about["before"], about["after"], about["images"])


def write_units(path: Path, mark: str, found: Pretrained) -> None:
    """Writes the units atomically.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    about = {"fingerprint": mark, **found._asdict()}
    arrays = about.pop("arrays")
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_bytes(path, buffer.getvalue())
