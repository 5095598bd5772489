"""`predict` on many small images: CPU seconds per thousand images, from first to last.

    python benchmarks/predict_many.py [--images 20000] [--boxes 20] [--bookkeeping]

A detector with random weights finds the same number of boxes on each image, all written to
`detections.json`. Bookkeeping that grew with the earlier images would show in the last thousands.
With --bookkeeping, fixed boxes and one-pixel drawings replace the detector and the drawing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.cli import predict
from drkd_jax.models.arrays import flatten
from drkd_jax.types import Batch, Detections
from drkd_jax.weights.ours import About, write_ours

SIDE = 64  # pixels
STEP = 1000  # images between two time readings


class Clock(io.TextIOBase):
    """Receives the lines of `predict` and records the CPU time at every thousandth."""

    def __init__(self) -> None:
        self.lines, self.seconds, self.wall = 0, [time.process_time()], [time.perf_counter()]

    def write(self, text: str) -> int:
        """Counts the lines of a text."""
        for _ in range(text.count("\n")):
            self.lines += 1
            if self.lines % STEP == 0:
                self.seconds.append(time.process_time())
                self.wall.append(time.perf_counter())
        return len(text)


def write_detector(path: Path, boxes: int) -> None:
    """Writes a small RetinaNet that keeps even its worst boxes."""
    settings = {
        "detector": "retinanet",
        "backbone": {"depth": 18, "width": 8, "norm": "gn"},
        "channels": 16,
        "extra": "conv_c5",
        "head_convs": 1,
        "test": {"score": 0.0, "max_out": boxes, "pre_nms": 2 * boxes},
    }
    detector = models.init_detector(settings, 2, 0)
    arrays = flatten(nnx.as_pure(nnx.split(detector)[1]))
    side = 128  # a multiple of the coarsest stride
    data = {"canvases": ((side, side),), "shorter": SIDE, "longer": side}
    data |= {"mean": (120.0,) * 3, "std": (60.0,) * 3, "channels": "rgb"}
    categories = ((1, "nut"), (2, "bolt"))
    about = About("detector", settings, 2, categories, {"step": 1}, data)
    write_ours(path, {name: np.asarray(value) for name, value in arrays.items()}, about)


def leave_out_the_rest(boxes: int) -> None:
    """Makes `predict` use fixed boxes without a detector, and draw nothing."""
    load = predict.load_named

    def fixed(_, batch: Batch) -> Detections:
        num = len(batch.index)
        corners = np.sort(np.random.default_rng(0).uniform(0, SIDE, (num, boxes, 2, 2)), axis=2)
        scores = np.linspace(0.9, 0.1, boxes, dtype=np.float32)
        return Detections(
            corners.reshape(num, boxes, 4).astype(np.float32),
            np.tile(scores, (num, 1)),
            np.zeros((num, boxes), np.int32),
            np.ones((num, boxes), bool),
        )

    def without_detector(*arguments: Any) -> Any:
        return dataclasses.replace(load(*arguments), predict=fixed)

    predict.load_named = without_detector
    predict.draw_detections = lambda *_: np.zeros((1, 1, 3), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--boxes", type=int, default=20, help="an image")
    parser.add_argument("--bookkeeping", action="store_true", help="neither detect nor draw")
    arguments = parser.parse_args()
    if arguments.bookkeeping:
        leave_out_the_rest(arguments.boxes)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        write_detector(Path(folder, "detector.safetensors"), arguments.boxes)
        for i in range(arguments.images):
            noise = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            image = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(images / f"{i:06d}.jpg"), image)
        clock = Clock()
        call = [f"--weights={folder}/detector.safetensors", f"--out={out}", "--batch-size=16"]
        with contextlib.redirect_stdout(clock):
            code = predict.main([*call, "--score=0.99", str(images)])
        assert code == 0
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = json.loads((out / "detections.json").read_text())
    for number, (before, after) in enumerate(zip(clock.seconds, clock.seconds[1:], strict=False)):
        print(f"images {number * STEP + 1:6d} to {(number + 1) * STEP:6d}: {after - before:6.2f} s")
    print(
        f"{len(found['images'])} images, {len(found['annotations'])} boxes: "
        f"{clock.seconds[-1] - clock.seconds[0]:.0f} s of CPU time with building and compiling, "
        f"{clock.wall[-1] - clock.wall[0]:.0f} s on the clock, at most {memory:.0f} MiB"
    )


if __name__ == "__main__":
    main()
