"""A student as a file of ours: from a run's work folder, or from such a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from drkd_jax.errors import UserError
from drkd_jax.training.loading import load_arrays
from drkd_jax.training.writing import reason, write_text
from drkd_jax.weights.opening import open_weights
from drkd_jax.weights.ours import About


def student_arrays(source: str | Path, which: str = "best") -> tuple[dict[str, Any], About]:
    """The student alone: its arrays by flat name, and what is needed to build it again.

    Args:
        source: a work folder, or a file of weights.
        which: "best" or "last" checkpoint of a work folder.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    if not Path(source).is_dir():
        weights = open_weights(source)
        return weights.arrays, weights.about
    arrays, about, step = load_arrays(source, which)
    config = about["config"]
    origin = {"workdir": Path(source).name, "which": which, "step": step}
    if about.get("numbers"):
        origin["numbers"] = about["numbers"]
    categories = tuple(
        (number if isinstance(number, str) else int(number), str(name))
        for number, name in about["categories"]
    )
    return {name: np.asarray(array) for name, array in arrays.items()}, About(
        part="detector",
        settings={key: value for key, value in config["student"].items() if key != "init"},
        num_classes=len(categories),
        categories=categories,
        source=origin,
        data={key: value for key, value in config["data"].items() if key != "train"},
    )


def write_orbax(folder: Path, arrays: Mapping[str, Any], about: About) -> None:
    """Writes an orbax folder `student`, by flat name, and `about.json` beside it.

    Raises:
        UserError: something lies there already, or it cannot be written.
    """
    folder = folder.absolute()
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "student", dict(arrays))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from error
    text = json.dumps(dataclasses.asdict(about), indent=2, sort_keys=True)
    write_text(folder / "about.json", text + "\n")
