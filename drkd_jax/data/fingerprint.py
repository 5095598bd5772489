"""What a set held when a checkpoint was written, in a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from drkd_jax.data.records import Source


def fingerprint(source: Source) -> dict[str, Any]:
    """Counts and digests of a set: of its pictures and of their annotations.

    Of picture files names, stated sizes, lengths and first bytes count; times and folders do not.

    Returns:
        JSON values: ``pictures`` and ``annotations`` (how many), ``picture_digest`` and
        ``annotation_digest``. Empty for a source without a table of its annotations.
    """
    table = getattr(source, "table", None)
    if table is None:
        return {}
    scanned = getattr(source, "scan", None)
    content = scanned.content if scanned is not None else np.zeros(0, np.int64)
    pictures = (repr(table.names), repr(table.image_ids.tolist()), table.sizes, content)
    boxes = (table.starts, table.bbox, table.area, table.labels, table.crowd)
    return {
        "pictures": len(table),
        "annotations": len(table.ids),
        "picture_digest": _digest(*pictures),
        "annotation_digest": _digest(*boxes),
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> str:
    """What differs between two fingerprints of one source, in a line; "" where nothing does.

    Args:
        old: of the checkpoint; empty where it has none.
        new: of the set as it is now.
        what: the key of the config that names it.
    """
    if not old or not new:
        return ""
    parts = [
        f"{key} ({old[key]} then, {new[key]} now)"
        for key in ("pictures", "annotations")
        if old[f"{key[:-1]}_digest"] != new[f"{key[:-1]}_digest"]
    ]
    if not parts:
        return ""
    return f"{what} is not what it was at the last checkpoint: other {' and '.join(parts)}"


def _digest(*parts: str | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        digest.update(data + b"\0")
    return digest.hexdigest()
