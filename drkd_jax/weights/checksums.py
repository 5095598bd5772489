"""Checks that the arrays of a checkpoint or a file are unchanged since they were written.

A missing file raises an error when it is read, but a changed byte inside an array is just another
number, which a teacher or a continued run would use. So each array's CRC-32 is stored with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from drkd_jax.models.arrays import flatten

#: The key of the checksums in a checkpoint's item `about`.
CHECKSUMS = "checksums"
#: That of the checksums in the metadata of a safetensors file, beside "drkd_jax": earlier versions,
#: which allow no other keys in there, read such a file too.
IN_FILE = "drkd_jax.checksums"


def checksums(items: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """CRC-32 of the bytes of every array.

    Args:
        items: pytrees of arrays by the name of their item, such as "student"; arrays on several
            devices must be replicated.

    Returns:
        The checksums by item, then by flat name.
    """
    return {
        item: {name: _checksum(array) for name, array in flatten(tree).items()}
        for item, tree in items.items()
    }


def check_unchanged(item: str, tree: Any, about: Mapping[str, Any]) -> None:
    """Compares the arrays that were read with the stored checksums.

    Args:
        item: name of the item.
        tree: its arrays, or some of them, in any structure with the same flat names.
        about: the `about` of the same checkpoint; without checksums (older versions) it passes.

    Raises:
        ValueError: an array has changed since it was written.
    """
    kept = about.get(CHECKSUMS, {}).get(item, {})
    changed = [
        name
        for name, array in flatten(tree).items()
        if name in kept and kept[name] != _checksum(array)
    ]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{item}: {changed[0]}{others} differs from what was written (checksum)")


def with_checksums(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a safetensors file, with the checksums of its arrays and of its own texts."""
    said = checksums({"arrays": arrays, "metadata": _as_bytes(metadata)})
    return {**metadata, IN_FILE: json.dumps(said, sort_keys=True)}


def check_file(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Compares a safetensors file with its checksums; without any (other programs') it passes.

    Args:
        arrays: as the file has them, in its own dtypes.
        metadata: its metadata.

    Raises:
        ValueError: an array or a text has changed since it was written.
    """
    if IN_FILE not in metadata:
        return
    kept = json.loads(metadata[IN_FILE])
    if not isinstance(kept, dict) or not all(isinstance(part, dict) for part in kept.values()):
        raise ValueError(f"its {IN_FILE} are none")
    about = {CHECKSUMS: kept}
    check_unchanged("arrays", arrays, about)
    check_unchanged("metadata", _as_bytes(metadata), about)


def _as_bytes(texts: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {key: np.frombuffer(text.encode(), np.uint8) for key, text in texts.items()}


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
