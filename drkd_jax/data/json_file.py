"""An annotation file's JSON, or the name of what the file is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drkd_jax.data.kinds import what_is
from drkd_jax.errors import UserError

# Keys that give other tools' files away.
_OTHERS = {
    "imagePath": "a LabelMe file (one a picture): convert the set to COCO's JSON first",
    "_via_img_metadata": "a project of VGG Image Annotator: export it as COCO",
    "features": "GeoJSON: convert it to COCO's JSON first",
    "info_list": "a file of another tool",
}


def load_json(path: Path) -> dict[str, Any]:
    """Reads a json object (UTF-8, UTF-16 or UTF-32, with or without a byte order mark).

    Raises:
        UserError: no such file, not json, not an object; a file of a known other kind is named.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"annotations {path} cannot be read: {error.strerror}{_holds(path)}"
        ) from error
    if not data.strip():
        raise UserError(f"annotations {path}: the file is empty ({len(data)} bytes)")
    kind = what_is(data)
    if kind is not None:
        raise UserError(f"annotations {path} are not valid json: the file is {kind}")
    try:
        content = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(
            f"annotations {path} are not valid json: not {error.encoding} text ({error.reason} at "
            f"byte {error.start}); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        lines = _json_lines(data)
        hint = "; it is JSON Lines, one object a line: COCO's file is one object" if lines else ""
        raise UserError(f"annotations {path} are not valid json: {error}{hint}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"annotations {path} hold a {type(content).__name__}, not a json object{_list(content)}"
        )
    if "images" not in content:
        for key, other in _OTHERS.items():
            if key in content:
                raise UserError(f"{path}: no list 'images'; it is {other}")
    return content


def _holds(path: Path) -> str:
    """What a folder of annotations seems to hold."""
    if not path.is_dir():
        return ""
    endings = {child.suffix.lower() for child in path.iterdir()}
    for ending, kind in {".txt": "YOLO label", ".xml": "Pascal VOC", ".json": "JSON"}.items():
        if ending in endings:
            return f"; it holds {kind} files, and wanted is one instances file of COCO's form"
    return ""


def _json_lines(data: bytes) -> bool:
    """Whether the first two lines are an object each."""
    lines = [line for line in data.splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def _list(content: Any) -> str:
    if not (isinstance(content, list) and content and isinstance(content[0], dict)):
        return ""
    first = content[0]
    if "bbox" in first and "file_name" not in first:
        return "; it looks like a list of results, not like annotations"
    if "annotations" in first and "data" in first:
        return "; it is Label Studio's own JSON: export as COCO there"
    if "file_name" in first and "annotations" in first:
        return "; it is a list of Detectron2's records: COCO's file is one object"
    return "; COCO's file is one object with 'images', 'annotations' and 'categories'"
