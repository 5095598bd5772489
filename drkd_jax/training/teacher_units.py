"""The file of a work folder that keeps the teacher's pretrained graph units."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.fault_tolerance.writing import write_bytes
from drkd_jax.models.arrays import flatten
from drkd_jax.training.setup import Run

UNITS_FILE = "teacher_units.npz"
# Keys of `config.data` that change nothing about the training images.
_HARMLESS = ("val", "on_error", "num_threads", "num_workers", "prefetch")


class Pretrained(NamedTuple):
    """What the phase left."""

    arrays: dict[str, np.ndarray]  # of the units, by flat name
    before: float  # the teacher's loss on the held-out images, as it is
    after: float  # and with the units
    images: int  # that were measured


def fingerprint(run: Run) -> str:
    """What the trained units depend on: the teacher's arrays, the data, the phase's settings."""
    assert run.teacher is not None
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(run.teacher.arrays).items()):
        if name.startswith(("backbone.", "neck.")):  # heads are there or not, as is asked
            digest.update(name.encode() + np.asarray(leaf).tobytes())
    distill = run.config["distill"]
    phase = {key: value for key, value in distill.items() if key.startswith("pretrain_")}
    data = {key: value for key, value in run.config["data"].items() if key not in _HARMLESS}
    settings = [
        distill.get("pixel_relation"),
        phase,
        data,
        run.train.batch_size,
        run.config["seed"],
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def read_units(path: Path, mark: str) -> Pretrained | None:
    """The units of the work folder; None where there are none, or others."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["fingerprint"] != mark:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Pretrained(arrays, about["before"], about["after"], about["images"])


def write_units(path: Path, mark: str, found: Pretrained) -> None:
    """Writes them in one go.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    about = {name: value for name, value in found._asdict().items() if name != "arrays"}
    text = json.dumps({"fingerprint": mark, **about})
    buffer = io.BytesIO()
    content: dict[str, Any] = {"about": np.array(text), **found.arrays}
    np.savez(buffer, **content)
    write_bytes(path, buffer.getvalue())
