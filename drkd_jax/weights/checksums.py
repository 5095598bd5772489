"""Whether the arrays of a checkpoint are still those that were written.

A lost file is noticed by whoever reads it; a changed byte inside an array is only another number,
which a teacher would teach and a run would go on with. So every array's CRC-32 is kept beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from drkd_jax.models.arrays import flatten

#: The key of the sums in a checkpoint's part `about`.
CHECKSUMS = "checksums"


def checksums(items: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """CRC-32 of the bytes of every array.

    Args:
        items: pytrees of arrays by the name of their item, as "student"; of an array that lies on
            several devices, each holds the whole.

    Returns:
        By item, then by flat name.
    """
    return {
        item: {name: _checksum(array) for name, array in flatten(tree).items()}
        for item, tree in items.items()
    }


def check_unchanged(item: str, tree: Any, about: Mapping[str, Any]) -> None:
    """Compares what was read with the sums that were kept.

    Args:
        item: name of the item.
        tree: its arrays, or some of them, in any structure of the same flat names.
        about: of the same checkpoint; one of before there were sums passes.

    Raises:
        ValueError: an array is not what was written.
    """
    kept = about.get(CHECKSUMS, {}).get(item, {})
    changed = [
        name
        for name, array in flatten(tree).items()
        if name in kept and kept[name] != _checksum(array)
    ]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{item}: {changed[0]}{others} is not what was written, by its checksum")


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
