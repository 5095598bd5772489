"""Milliseconds per image on this CPU: our predictor, the StableHLO file, the ONNX file.

    python benchmarks/export.py [--detector faster_rcnn] [--canvas 320x480] [--rounds 10]

A detector with random weights (ResNet-18, FPN of 64 channels, 80 classes), one image per call.
The three alternate, so that a busy machine slows all alike; prints medians and their ratios to
ours. ONNX is left out if the extra `onnx` is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.export.onnx_program import to_onnx
from drkd_jax.export.program import Form, program, to_stablehlo
from drkd_jax.models.pixels import Pixels

EXTRA = {"retinanet": "conv_c5", "faster_rcnn": "pool", "cascade_rcnn": "pool"}
PIXELS = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def forms(detector: Any, canvas: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    """The ways to call the detector, each `(images, sizes) -> NumPy arrays`."""
    run, arrays = program(detector, PIXELS, suppress=True)
    placed, jitted = jax.device_put(arrays), jax.jit(run)
    file = to_stablehlo(detector, PIXELS, Form(canvas, 1, platforms=("cpu",)))
    call = jax.jit(jax.export.deserialize(bytearray(file)).call)
    found = {
        "ours": lambda images, sizes: jax.device_get(jitted(placed, images, sizes)),
        "StableHLO": lambda images, sizes: jax.device_get(call(images, sizes)),
    }
    if all(find_spec(name) for name in ("jax2onnx", "onnx", "onnxruntime")):
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detector.onnx"
            path.write_bytes(to_onnx(detector, PIXELS, Form(canvas, 1)))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        found["onnxruntime"] = lambda images, sizes: session.run(
            None, {"images": images, "sizes": sizes}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", choices=EXTRA, default="retinanet")
    parser.add_argument("--canvas", default="320x480")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    height, width = map(int, arguments.canvas.split("x"))
    settings = {
        "detector": arguments.detector,
        "backbone": {"depth": 18, "norm": "frozen_bn"},
        "channels": 64,
        "extra": EXTRA[arguments.detector],
    }
    detector = models.init_detector(settings, 80, 0)
    assert isinstance(detector, nnx.Module)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, height, width, 3), np.uint8)
    sizes = np.array([[height, width]], np.int32)
    called = forms(detector, (height, width))
    times: dict[str, list[float]] = {name: [] for name in called}
    for number in range(arguments.rounds + 1):
        for name, call in called.items():
            start = time.perf_counter()
            call(images, sizes)
            if number:  # the first call compiles
                times[name].append(1e3 * (time.perf_counter() - start))
    ours = statistics.median(times["ours"])
    for name, each in times.items():
        median = statistics.median(each)
        print(f"{name:12s} {median:8.1f} ms an image, {median / ours:.2f} of ours")


if __name__ == "__main__":
    main()
