"""Called by a test with 4 devices: what a step gathers on every device, as JSON.

Nothing runs: the step is only compiled, for images large enough to distinguish features from
lists of boxes.
"""

from __future__ import annotations

import json
import re
import sys

import jax
import numpy as np

from drkd_jax.step.sharding import replicated, split
from drkd_jax.training.setup import build_run
from drkd_jax.types import Batch
from tests.training import tiny

SIDE = 192  # pixels


def config(detector: str, distilled: bool) -> dict:
    """A config with grouped convolutions on both sides; the teacher's are also deformable."""
    values = tiny.config(detector, distilled=distilled, batch_size=8)
    values["data"].update(canvases=((SIDE, SIDE),), shorter=SIDE, longer=SIDE)
    grouped = {"depth": 14, "width": 8, "groups": 4, "group_width": 16}
    values["student"]["backbone"] = grouped | {"norm": "gn"}
    if distilled:
        values["teacher"]["backbone"] = grouped | {"norm": "gn", "dcn": "v2"}
    return values


def largest(detector: str, distilled: bool) -> int:
    """Bytes of the largest array from an all-gather in the step."""
    run = build_run(config(detector, distilled))
    B, G = 8, run.pipeline.max_boxes
    shapes = Batch(
        images=np.zeros((B, SIDE, SIDE, 3), np.uint8),
        sizes=np.full((B, 2), SIDE, np.int32),
        flip=np.zeros(B, bool),
        boxes=np.zeros((B, G, 4), np.float32),
        labels=np.zeros((B, G), np.int32),
        valid=np.zeros((B, G), bool),
        image_valid=np.ones(B, bool),
        index=np.arange(B, dtype=np.int32),
        scale=np.ones((B, 2), np.float32),
    )

    def placed(tree, sharding):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    everywhere = replicated(run.mesh)
    lowered = run.step.lower(
        placed(run.state, everywhere),
        placed(run.teacher_arrays, everywhere),
        placed(shapes, split(run.mesh)),
    )
    return max(gathered(lowered.compile().as_text()), default=0)


def gathered(text: str) -> list[int]:
    """Bytes of each array from an all-gather in a compiled program."""
    width = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
    found = []
    for line in text.splitlines():
        made = re.search(r"= (.*?) all-gather(?:-start)?\(", line)
        if made:
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1]):
                numbers = np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)
                found.append(int(numbers) * width.get(kind, 4))
    return found


if __name__ == "__main__":
    json.dump({name: largest(*job) for name, job in json.loads(sys.argv[1]).items()}, sys.stdout)
