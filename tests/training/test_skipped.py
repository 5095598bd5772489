"""A run over a set with a broken image, ``config.data.on_error`` = "skip"."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax.data.plan import BatchPlan
from drkd_jax.errors import UserError
from drkd_jax.monitoring.metrics import read_metrics
from drkd_jax.training.loop import train
from tests.training import tiny

COUNT, BATCH, STEPS = 105, 4, 3
CANVASES = np.arange(COUNT) % 5 == 0  # 21 portraits: the last batch of them holds one image


def lonely() -> tuple[int, int]:
    """A seed, and the only image of one of its first three batches."""
    for seed in range(200):
        plan = BatchPlan(np.arange(COUNT), CANVASES.astype(np.int64), BATCH, seed=seed, flip=0.5)
        for number in range(STEPS):
            there = [int(i) for i in plan.batch(number).indices if i >= 0]
            if len(there) == 1 and CANVASES[there[0]]:
                return seed, there[0]
    raise AssertionError("no such seed")


def make(folder: Path, broken: int) -> str:
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i, portrait in enumerate(CANVASES):
        height, width = (48, 36) if portrait else (36, 48)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        box = {"image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20]}
        annotations.append(box | {"id": i})
    (folder / "images" / f"{broken}.png").write_bytes(b"")
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return f"coco:{folder / 'images'}:{folder / 'instances.json'}"


def test_a_run_goes_on_without_a_broken_image(tmp_path):
    seed, broken = lonely()
    config = tiny.config(steps=STEPS, warmup_steps=1, decay_at=(), checkpoint_every=STEPS)
    config["seed"] = seed
    spec = make(tmp_path, broken)
    config["data"] |= {"train": spec, "val": spec, "on_error": "skip"}
    train(config, tmp_path / "run")
    (line,) = [json.loads(text) for text in (tmp_path / "run/skipped.jsonl").open()]
    assert line["image_id"] == broken
    assert f"{broken}.png: is empty (0 bytes)" in line["reason"]
    lines = [x for x in read_metrics(tmp_path / "run/metrics.jsonl") if x["kind"] == "train"]
    assert len(lines) == STEPS
    for values in lines:  # one of these batches has no image at all
        assert math.isfinite(values["total"])
        assert math.isfinite(values["gradient_norm"])
        assert 0 < values["padding"] < 1
        assert values["loader_rate"] > 0
        assert values["boxes_past_max"] == 0
    assert lines[-1]["skipped"] == 1
    assert min(values["total"] for values in lines) == 0  # nothing to learn from there
    assert json.loads((tmp_path / "run/eval.json").read_text())["images"] == COUNT

    # The same command after the data changed: other boxes are said, other classes are refused.
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 20, 20]
    path.write_text(json.dumps(content))
    said = train(config, tmp_path / "run")["warnings"]
    assert any("config.data.train is not what it was" in warning for warning in said)
    for row in content["categories"] + content["annotations"]:
        row["category_id" if "bbox" in row else "id"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the classes \(1 thing\); .* has \(2 thing\) now"):
        train(config, tmp_path / "run")
