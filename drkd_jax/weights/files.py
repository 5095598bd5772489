"""The arrays of a foreign file by their paths from its root, whatever the file's form.

| form | how it begins |
|---|---|
| torch.save, since torch 1.6 | a zip file |
| torch.save, before | a pickle of a magic number |
| a pickle of NumPy arrays (Detectron2's model zoo) | a pickle of a dict |
| safetensors | 8 bytes that count a JSON header |
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from drkd_jax.errors import UserError
from drkd_jax.weights.file_kinds import what_it_is
from drkd_jax.weights.pickled_names import Block, Tensor
from drkd_jax.weights.torch_file import Saved, read_torch_file

_DEEPEST = 6  # dicts around a model's own


class ForeignFile(NamedTuple):
    """A file's arrays by their paths, and what stands beside them."""

    arrays: dict[str, np.ndarray]
    meta: Mapping[str, Any]  # plain values; nothing in it was checked
    form: str  # "zip", "legacy", "pickle" or "safetensors"
    left_out: Mapping[str, str]  # paths beside arrays that hold none, and what they hold
    inert: tuple[str, ...]  # names of objects that were left unbuilt

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array."""
        return {key: tuple(array.shape) for key, array in self.arrays.items()}


def read_foreign(path: Path) -> ForeignFile:
    """Reads a file of torch.save, a pickle of arrays or a safetensors file.

    Raises:
        UserError: it cannot be read, is something else, would run code, or holds no weights.
    """
    if what := what_it_is(path):
        raise UserError(f"{path}: {what}")
    found = _of_torch(path, read_torch_file(path)) if not is_safetensors(path) else _safe(path)
    if not found.arrays:
        raise UserError(f"{path}: holds no weights: not one array in it, however deep")
    return found


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like one of safetensors.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    # The header's size, of a file that can be: text of 9 letters counts far more.
    size = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and size < 1 << 40


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked_name(path: Path, digest: str) -> str:
    """Whether the hash agrees with the one in a file's name, as both libraries put it there."""
    found = re.search(r"-([0-9a-f]{8})\.(pth|pt)$", path.name)
    if not found:
        return "the name holds no hash"
    return "as its name says" if digest.startswith(found[1]) else f"its name says {found[1]}"


def _of_torch(path: Path, saved: Saved) -> ForeignFile:
    root = saved.content
    if not isinstance(root, dict):
        raise UserError(f"{path}: holds no dict of weights but a {type(root).__name__}")
    arrays: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    seen: set[int] = set()
    todo: list[tuple[str, dict[Any, Any], int]] = [("", root, 0)]
    while todo:
        start, place, depth = todo.pop(0)
        if id(place) in seen or depth > _DEEPEST:
            continue
        seen.add(id(place))
        others = {}
        for key, value in place.items():
            name = f"{start}{key}"
            if isinstance(value, Tensor) or (isinstance(value, Block) and value.dtype is not None):
                arrays[name] = saved.array(value)
            elif isinstance(value, dict):
                todo.append((f"{name}.", value, depth + 1))
            else:
                others[name[:80]] = f"no array but a {type(value).__name__}"
        if len(others) < len(place) and start:
            left_out |= others
    meta = _meta(root)
    beside = {key: value for key, value in root.items() if isinstance(key, str)}
    return ForeignFile(
        arrays, meta if isinstance(meta, dict) else beside, saved.form, left_out, saved.inert
    )


def _meta(root: dict[Any, Any]) -> Any:
    """The dict "meta" of a checkpoint, which may itself be inside of another."""
    places = [root]
    for _ in range(_DEEPEST):
        for place in places:
            if isinstance(place.get("meta"), dict):
                return place["meta"]
        inner = {id(v): v for place in places for v in place.values() if isinstance(v, dict)}
        places = list(inner.values())
    return None


def _safe(path: Path) -> ForeignFile:
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            meta = stream.metadata() or {}
    except AttributeError as error:  # NumPy has no type of that name
        raise UserError(
            f"{path}: holds numbers of a kind that is not read ({error}); save it in float32, "
            "float16 or bfloat16"
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); cut short? Download it again"
        ) from error
    return ForeignFile(arrays, meta, "safetensors", {}, ())
