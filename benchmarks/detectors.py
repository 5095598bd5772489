"""Times teacher forward and student step against torchvision's, in one run, with ratios.

    python benchmarks/detectors.py [--torch-python /usr/bin/python3] [--canvas 256x320]

fasterrcnn_resnet50_fpn and retinanet_resnet50_fpn, full width, random weights, frozen norms. The
teacher is backbone and pyramid without gradients, as distillation needs it (ours with folded norms,
as in training); the step is losses, gradient and SGD of only the detector. torchvision runs first,
in its own interpreter (`--torch-python`, by default this one); without torchvision there, its
column stays empty. On a GPU it runs in channels_last, in bfloat16 under autocast. A ratio is
torchvision's time over ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.models.pixels import Pixels
from drkd_jax.step import schedule
from drkd_jax.step.settings import TrainSettings
from drkd_jax.step.sharding import data_mesh, put_batch, put_everywhere
from drkd_jax.step.state import new_state, split_module
from drkd_jax.step.train_step import Recipe, train_step
from drkd_jax.training.teacher import load_teacher
from drkd_jax.types import Batch

# Like the outputs of torchvision's heads: 90 classes and the background, or 91 sigmoids.
CLASSES = {"faster_rcnn": 90, "retinanet": 91}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
WARM = 2  # calls before the measured ones


def shortest(function: Callable[[], Any], repeat: int) -> float:
    """Milliseconds of the fastest call after warming up."""
    times = []
    for _ in range(WARM + repeat):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[WARM:])


def make_batch(arguments: argparse.Namespace) -> Batch:
    height, width = arguments.canvas
    random, B, G = np.random.default_rng(0), arguments.batch, 8
    low = random.uniform(0, 0.6, (B, G, 2)) * (width, height)
    high = low + random.uniform(0.05, 0.4, (B, G, 2)) * (width, height)
    return Batch(
        images=random.integers(0, 256, (B, height, width, 3)).astype(np.uint8),
        sizes=np.tile(np.asarray([[height, width]], np.int32), (B, 1)),
        flip=np.zeros(B, bool),
        boxes=np.concatenate([low, high], axis=-1).astype(np.float32),
        labels=np.zeros((B, G), np.int32),
        valid=np.ones((B, G), bool),
        image_valid=np.ones(B, bool),
        index=np.arange(B, dtype=np.int32),
        scale=np.ones((B, 2), np.float32),
    )


def torchvision_times(arguments: argparse.Namespace, batch: Batch) -> dict[str, Any]:
    """Runs the other side; empty if it cannot run."""
    settings = {
        "canvas": arguments.canvas,
        "batch": arguments.batch,
        "boxes": batch.boxes.tolist(),
        "dtype": arguments.dtype,
        "detectors": arguments.detectors,
        "repeat": arguments.repeat,
        "warm": WARM,
        "threads": arguments.threads,
        "gpu": jax.default_backend() == "gpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        source, sink = Path(folder, "settings.json"), Path(folder, "times.json")
        source.write_text(json.dumps(settings))
        script = Path(__file__).with_name("detectors_torch.py")
        done = subprocess.run([arguments.torch_python, str(script), str(source), str(sink)])
        if done.returncode:
            print("torchvision did not run: its column stays empty")
            return {}
        return dict(json.loads(sink.read_text()))


def measure(
    name: str, arguments: argparse.Namespace, batch: Batch
) -> tuple[dict[str, float], float]:
    """Times of one detector, and its loss in the last step."""
    settings = {"detector": name, "convention": "torchvision"}
    dtype = jnp.dtype(arguments.dtype)
    times = {}
    mesh = data_mesh()
    given = {**settings, "init": "random", "dtype": arguments.dtype}
    teacher = load_teacher(given, CLASSES[name], seed=0)
    images = jax.random.normal(jax.random.key(0), (*batch.images.shape[:3], 3), dtype)
    forward = jax.jit(lambda arrays, x: nnx.merge(teacher.graph, arrays).features(x).maps)
    arrays = put_everywhere(teacher.arrays, mesh)
    times[f"{name} teacher"] = shortest(lambda: forward(arrays, images), arguments.repeat)

    student = models.init_detector(settings, CLASSES[name], 0, dtype)
    parts = {"student": split_module(student, student.is_trained)}
    training = TrainSettings(batch_size=arguments.batch, learning_rate=1e-5, steps=100)
    rate = schedule.learning_rate(training, (), training.steps)
    recipe = Recipe(
        graphs={"student": parts["student"].graph},
        is_trained={"student": student.is_trained},
        weights={},
        tx=schedule.optimiser(training, rate),
        schedule=rate,
        pixels=Pixels(MEAN, STD, dtype),
        seed=0,
    )
    step = train_step(recipe, mesh)
    state = put_everywhere(new_state(parts, recipe.tx), mesh)
    placed = put_batch(batch, mesh)
    values: Any = None

    def one() -> Any:
        nonlocal state, values
        state, values = step(state, None, placed)
        return state, values

    times[f"{name} train step"] = shortest(one, arguments.repeat)
    return times, values.to_dict()["total"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    gpu = jax.default_backend() == "gpu"
    parser.add_argument("--canvas", default="800x1344" if gpu else "256x320", help="height x width")
    parser.add_argument("--batch", type=int, default=8 if gpu else 2)
    parser.add_argument(
        "--dtype", default="bfloat16" if gpu else "float32", choices=("float32", "bfloat16")
    )
    parser.add_argument("--detectors", default="faster_rcnn,retinanet")
    parser.add_argument("--repeat", type=int, default=10 if gpu else 3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's on the CPU")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch, torchvision")
    parser.add_argument("--json", help="write the times to this file as well")
    arguments = parser.parse_args()
    arguments.canvas = tuple(map(int, arguments.canvas.split("x")))
    arguments.detectors = arguments.detectors.split(",")
    batch = make_batch(arguments)
    about = torchvision_times(arguments, batch)
    device = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__} on {device} ({os.cpu_count()} CPU cores), {arguments.dtype}, "
        f"batch {arguments.batch} of {arguments.canvas[0]}x{arguments.canvas[1]}; torchvision "
        f"{about.get('torchvision', '-')}, torch {about.get('torch', '-')} on "
        f"{about.get('device', '-')}"
    )
    print(f"{'':24} {'ours ms':>9} {'torchvision ms':>15} {'ratio':>6}")
    rows = []
    for name in arguments.detectors:
        times, loss = measure(name, arguments, batch)
        for case, own in times.items():
            other = about.get("times", {}).get(case)
            row = {"case": case, "ours_ms": own, "torchvision_ms": other}
            shown = f"{'-':>15} {'-':>6}"
            if other is not None:
                row["ratio"] = other / own
                shown = f"{other:15.1f} {other / own:6.2f}"
            rows.append(row)
            print(f"{case:24} {own:9.1f} {shown}", flush=True)
        theirs = about.get("losses", {}).get(name)
        print(f"{name} loss: ours {loss:.4f}" + (f", torchvision {theirs:.4f}" if theirs else ""))
    if arguments.json:
        about.pop("times", None)
        record = {"device": device, "jax": jax.__version__, "torchvision": about, "rows": rows}
        Path(arguments.json).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
