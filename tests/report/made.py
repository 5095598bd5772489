"""Work folders like those of finished runs, and the tables of a page about them."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.data.sources import open_source
from drkd_jax.evaluation import coco_scores

VAL = "shapes:6:1"


def leave_run(folder: Path, noise: float, val: str = VAL, images: int = 0, **changes: Any) -> Path:
    """Writes a work folder like that of a training.

    Args:
        folder: the new folder.
        noise: error of the detections, pixels.
        val: the scored source.
        images: number of its first images that were scored; 0: all.
        changes: changes of the config.
    """
    source = open_source(val)
    truth = source.coco_ground_truth()
    if images:
        kept = {source.meta(index).image_id for index in range(images)}
        truth["images"] = [row for row in truth["images"] if row["id"] in kept]
        truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in kept]
    rng = np.random.default_rng(7)
    found = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [float(v) for v in np.asarray(row["bbox"]) + rng.normal(0, noise, 4)],
            "score": 0.5 + 0.4 * float(rng.random()),
        }
        for row in truth["annotations"]
    ]
    numbers = coco_scores(truth, found).numbers
    config = {
        "data": {"val": val, "train": "shapes:4"},
        "train": {"steps": 20},
        "teacher": None,
        **changes,
    }
    lines = [
        {"kind": "train", "step": s, "cls_loss": 1 / s, "roi_box_loss": 0.1} for s in (5, 10, 20)
    ]
    lines.append({"kind": "eval", "step": 20, **numbers})
    folder.mkdir(parents=True)
    scored = {"step": 20, "data": val, "images": len(truth["images"]), **numbers}
    summary = {"final": numbers, "steps": 20, "warnings": ["it was & it is"]}
    for name, content in (
        ("detections", found),
        ("eval", scored),
        ("config", config),
        ("summary", summary),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def cells(text: str, caption: str) -> list[list[str]]:
    """The rows of the table whose caption starts with this."""
    found = re.search(rf"<caption>{re.escape(escape(caption))}.*?</table>", text, re.DOTALL)
    assert found is not None
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], re.DOTALL)
    return [
        [
            re.sub("<[^>]*>", "", cell)
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]
