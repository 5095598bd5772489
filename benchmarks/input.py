"""Speed of the input path: images per second and core by stage, and a PyTorch DataLoader's.

    python benchmarks/input.py --coco IMAGES_DIR:INSTANCES_JSON [--torch-python PYTHON]

Both sides do the same work on the same planned batches: read, decode, resize, pad (all uint8,
OpenCV), scale and pad boxes, stack rows; the sums of all pixels are compared. PYTHON is an
interpreter with torch and opencv-python-headless. The sides alternate within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drkd_jax.data.decode import decode_image
from drkd_jax.data.pipeline import PipelineConfig, train_loader
from drkd_jax.data.plan import padding_share, steps_per_epoch
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.data.transforms import fit


def stages(source: CocoSource, config: PipelineConfig, count: int, repeat: int) -> dict[str, float]:
    """Images per second of one thread: each stage alone, and whole batches of these images."""
    loader = train_loader(source, dataclasses.replace(config, num_threads=0))
    found = [next(loader).index for _ in range(count)]
    indices = [int(i) for i in np.concatenate(found) if i >= 0]
    paths = [source.images_dir / source.table.names[i] for i in indices]
    files = [path.read_bytes() for path in paths]
    images = [decode_image(data, "") for data in files]
    places = [
        fit(*image.shape[:2], config.shorter, config.longer, config.canvases) for image in images
    ]
    resized = [
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        for image, (_, size) in zip(images, places, strict=True)
    ]

    def pad() -> None:
        at = 0
        for batch in found:
            rows = int((batch >= 0).sum())
            height, width = config.canvases[places[at][0]]
            canvas = np.zeros((len(batch), height, width, 3), np.uint8)
            for row in range(rows):
                h, w = places[at + row][1]
                canvas[row, :h, :w] = resized[at + row]
            at += rows

    def each(do: Callable[..., Any], *inputs: Any) -> Callable[[], None]:
        def run() -> None:
            for values in zip(*inputs, strict=True):
                do(*values)  # nothing is kept, so memory is reused, as in the loader

        return run

    sizes = [size[::-1] for _, size in places]
    work: dict[str, Callable[[], None]] = {
        "read": each(Path.read_bytes, paths),
        "decode": each(lambda data: decode_image(data, ""), files),
        "resize": each(
            lambda image, size: cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
            images,
            sizes,
        ),
        "pad": pad,
    }
    seconds = dict.fromkeys([*work, "all"], 1e9)
    for _ in range(repeat):
        for name, do in work.items():
            before = time.perf_counter()
            do()
            seconds[name] = min(seconds[name], (time.perf_counter() - before) / len(files))
        loader.set_state({"next_batch": 0})
        seconds["all"] = min(seconds["all"], 1 / rate(loader, count))
    rates = {name: 1 / value for name, value in seconds.items()}
    # The remaining time, for boxes and bookkeeping, if it is measurable.
    rest = seconds["all"] - sum(seconds[name] for name in work)
    everything = rates.pop("all")
    return rates | {"batch": 1 / rest if rest > 1e-6 else float("inf"), "all": everything}


def rate(loader: Any, count: int, skip: int = 0) -> float:
    for _ in range(skip):
        next(loader)
    before, images = time.perf_counter(), 0
    for _ in range(count):
        images += int(next(loader).image_valid.sum())
    return images / (time.perf_counter() - before)


def plan(source: CocoSource, config: PipelineConfig) -> dict[str, Any]:
    """The batches of the first epoch, in the format of benchmarks/input_torch.py."""
    loader = train_loader(source, dataclasses.replace(config, num_threads=0))
    rows: list[dict[str, Any]] = []
    batches: list[list[int]] = []
    for _ in range(steps_per_epoch(source, config)):
        batch = next(loader)
        batches.append([])
        for row in np.flatnonzero(batch.image_valid):
            index = int(batch.index[row])
            boxes, labels, crowd = source.table.boxes(index)
            entry = {
                "path": str(source.images_dir / source.table.names[index]),
                "canvas": batch.images.shape[1:3],
                "size": batch.sizes[row].tolist(),
                "boxes": boxes[~crowd][: config.max_boxes].tolist(),
                "labels": labels[~crowd][: config.max_boxes].tolist(),
            }
            batches[-1].append(len(rows))
            rows.append(entry)
    return {"rows": rows, "batches": batches, "max_boxes": config.max_boxes}


class Torch:
    """The DataLoader in the other interpreter."""

    def __init__(self, python: str, plan_file: str):
        script = Path(__file__).with_name("input_torch.py")
        self._process = subprocess.Popen(
            [python, str(script), plan_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends one command and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"skip": 0, "sum": False, **command}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the other process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the other interpreter ended; does it have torch and OpenCV?")
        return json.loads(line)


def compare(source: CocoSource, config: PipelineConfig, torch: Torch, full: int, repeat: int):
    """Alternates both loaders over whole epochs; rows that fill up batches do not count."""
    cores, count = len(os.sched_getaffinity(0)), steps_per_epoch(source, config)
    rows = [("in the caller", {"num_threads": 0}, 0)]
    rows += [(f"{cores} threads | {cores} workers", {"num_threads": cores}, cores)]
    rows += [
        (
            f"{cores} workers | {cores} workers",
            {"num_threads": 1, "num_workers": cores},
            cores,
        )
    ]
    for name, settings, workers in rows:
        prefetch = 2
        changed = dataclasses.replace(config, prefetch=max(prefetch, workers), **settings)
        loader = train_loader(source, changed)
        skip = 2 * max(1, workers) * max(2, workers) + 1  # batches read ahead before the clock ran
        torch.ask(workers=workers, prefetch=prefetch, count=1)
        next(loader)
        ours, theirs = [], []
        for _ in range(repeat):
            ours.append(rate(loader, count, skip))
            answer = torch.ask(count=full, skip=skip)
            theirs.append(answer["images"] / answer["seconds"])
        loader.close()
        yield name, cores if workers else 1, max(ours), max(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--coco", required=True, metavar="IMAGES_DIR:INSTANCES_JSON")
    parser.add_argument("--torch-python", help="an interpreter with torch and OpenCV")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shorter", type=int, default=800)
    parser.add_argument("--longer", type=int, default=1333)
    parser.add_argument("--canvases", default="800x1344,1344x800", help="HEIGHTxWIDTH,...")
    parser.add_argument("--count", type=int, default=8, help="batches for the stages")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file as well")
    arguments = parser.parse_args()
    canvases = tuple(
        tuple(int(side) for side in item.split("x")) for item in arguments.canvases.split(",")
    )
    config = PipelineConfig(
        batch_size=arguments.batch,
        canvases=canvases,
        shorter=arguments.shorter,
        longer=arguments.longer,
        flip=0.0,
    )
    source = open_source(f"coco:{arguments.coco}")
    assert isinstance(source, CocoSource)
    print(
        f"{platform.processor() or platform.machine()} ({len(os.sched_getaffinity(0))} cores), "
        f"OpenCV {cv2.__version__}: {len(source)} images, canvases {arguments.canvases}, "
        f"{padding_share(source, config):.1%} padding, batches of {config.batch_size}"
    )
    count = min(arguments.count, steps_per_epoch(source, config))
    result: dict[str, Any] = {"stages": stages(source, config, count, arguments.repeat)}
    print("stage    images a second a core")
    for name, value in result["stages"].items():
        print(f"{name:8s} {value:10.1f}")
    if arguments.torch_python:
        planned = plan(source, config)
        full = [batch for batch in planned["batches"] if len(batch) == config.batch_size]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(planned | {"batches": full}, file)
            file.flush()
            torch = Torch(arguments.torch_python, file.name)
            same_work(source, config, torch, planned, full)
            print(
                f"loader, images a second a core (ours | torch {torch.versions['torch']})\n"
                f"{'':26s} {'ours':>8s} {'torch':>8s} {'ratio':>6s}"
            )
            result["loaders"] = []
            for name, cores, ours, theirs in compare(
                source, config, torch, len(full), arguments.repeat
            ):
                ours, theirs = ours / cores, theirs / cores
                print(f"{name:26s} {ours:8.1f} {theirs:8.1f} {ours / theirs:6.2f}", flush=True)
                result["loaders"].append({"name": name, "ours": ours, "torch": theirs})
            torch.close()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


def same_work(
    source: CocoSource, config: PipelineConfig, torch: Torch, planned: dict, full: list
) -> None:
    """Compares the sums of all pixels of one epoch's full batches on both sides."""
    loader = train_loader(source, dataclasses.replace(config, num_threads=0))
    total = 0
    for rows in planned["batches"]:
        batch = next(loader)
        if len(rows) == config.batch_size:
            total += int(np.asarray(batch.images).sum(dtype=np.int64))
    theirs = torch.ask(workers=0, prefetch=2, count=len(full), sum=True)["sum"]
    off = abs(total - theirs) / total
    print(f"the pixels of one epoch add up to {total} and {theirs}: {off:.1e} apart")
    if off > 1e-3:
        raise SystemExit("the two sides do not do the same work")


if __name__ == "__main__":
    main()
