"""Our own file: a detector's arrays by our names, and what is needed to build it again.

A safetensors file. Its metadata holds one JSON text under "drkd_jax"; the keys are those of
`About`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from drkd_jax.errors import UserError

KEY = "drkd_jax"
PARTS = ("detector", "pyramid", "backbone")


@dataclasses.dataclass(frozen=True)
class About:
    """What a file of ours says of its arrays.

    Attributes:
        part: "detector", "pyramid" (backbone and FPN) or "backbone".
        settings: of the model, as in a config; a backbone's under "backbone".
        num_classes: of the data; 0 without a head.
        categories: [id, name] of each class; [] where unknown.
        source: plain values: the file and its SHA-256, or the work folder and its step.
        data: sizes of pictures, mean and std of the training, where known.
    """

    part: str
    settings: Mapping[str, Any]
    num_classes: int = 0
    categories: tuple[tuple[int | str, str], ...] = ()
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_ours(path: Path, arrays: Mapping[str, np.ndarray], about: About) -> None:
    """Writes a file of ours; one of that name is replaced at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_safetensors(path, arrays, {KEY: json.dumps(dataclasses.asdict(about), sort_keys=True)})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file; one of that name is replaced at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    whole = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, part, dict(metadata))
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be written ({reason})") from error


def is_ours(path: Path) -> bool:
    """Whether a safetensors file is one of ours; False for any other file."""
    try:
        with safe_open(path, framework="numpy") as stream:
            return KEY in (stream.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_ours(path: Path) -> tuple[dict[str, np.ndarray], About]:
    """The arrays of a file of ours, and what it says of them; half precision becomes single.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            text = stream.metadata()[KEY]
            arrays = {name: _single(stream.get_tensor(name)) for name in stream.keys()}  # noqa: SIM118
        about = about_from(json.loads(text))
    except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole file of ours ({error})") from error
    return arrays, about


def about_from(said: Mapping[str, Any]) -> About:
    """An `About` from JSON's values.

    Raises:
        LookupError, TypeError, ValueError: they are none.
    """
    if said["part"] not in PARTS:
        raise ValueError(f"a {said['part']!r}; known: {', '.join(PARTS)}")
    categories = (
        (n if isinstance(n, str) else int(n), str(name)) for n, name in said["categories"]
    )
    return About(**{**said, "categories": tuple(categories)})


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
