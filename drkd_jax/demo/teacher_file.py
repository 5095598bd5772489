"""Teachers as single small files: those included in the package, and how to make and score them.

They are stored in half precision and read as float32. The file's metadata has its card: how the
teacher was trained.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from drkd_jax.data.config import read_pipeline
from drkd_jax.data.sources import open_source
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.folding import fold
from drkd_jax.models.pixels import read_pixels
from drkd_jax.step.settings import eval_settings
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import num_parameters
from drkd_jax.training.evaluate import evaluate, predictor
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import write_ours

_FOLDER = Path(__file__).with_name("teachers")


class Scored(NamedTuple):
    """The evaluation of a file's detector on the images that a config names."""

    numbers: dict[str, float]  # the 12 of COCO
    found: list[dict[str, Any]]  # detections, in COCO's form
    parameters: int
    card: dict[str, Any]


def shipped(detector: str) -> Path:
    """The file of the teacher that is included in the package.

    Args:
        detector: "retinanet" or "faster_rcnn".
    """
    return _FOLDER / f"{detector}.safetensors"


def export_half(workdir: Path, out: Path, summary: Mapping[str, Any], command: str) -> None:
    """Writes the last checkpoint of a run as one file in half precision, with its card.

    Args:
        workdir: work folder of the run.
        out: the file.
        summary: the return value of the run's training.
        command: the command that trained it.

    Raises:
        UserError: there is no checkpoint, or the file cannot be written.
    """
    weights = load(workdir, which="last")
    half = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in weights.arrays.items()
    }
    config = json.loads((workdir / "config.json").read_text())
    card = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "seed": config["seed"],
        "step": weights.step,
        "train": config["data"]["train"],
        "val": config["data"]["val"],
        "ap_single_precision": summary["final"]["AP"],
        "seconds": round(summary["seconds"]),
        "precision": "float16",
    }
    write_ours(out, half, dataclasses.replace(weights.about, source=card))


def score(path: Path, config: Mapping[str, Any]) -> Scored:
    """Runs the detector of a file on `config.data.val` and scores it.

    Args:
        path: a file of ours with a detector.
        config: a run's config, for its images and its evaluation.

    Raises:
        UserError: the file or the images cannot be read.
    """
    weights = load(path)
    settings, mesh = eval_settings(config["eval"]), data_mesh()
    graph, state = nnx.split(fold(weights.detector()))
    pixels = read_pixels(as_tuples(dict(config["data"])), "float32")
    numbers, found = evaluate(
        predictor(graph, pixels, mesh, settings.least_limit),
        (put_everywhere(nnx.as_pure(state), mesh),),
        open_source(config["data"]["val"]),
        read_pipeline(as_tuples(dict(config)), settings.batch_size),
        settings,
        mesh,
    )
    return Scored(numbers, found, num_parameters(weights.arrays), dict(weights.about.source))
