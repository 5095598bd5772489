"""The other side of benchmarks/input.py: a PyTorch DataLoader over the same planned batches.

Runs in an interpreter with torch and OpenCV, without this package. The plan is a json file;
commands arrive on stdin, one json object per line, and answers leave on stdout likewise.
"""

import json
import sys
import time

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

cv2.setNumThreads(1)


class Images(Dataset):
    """Reads, decodes, resizes and pads, like drkd_jax.data.pipeline for a row of a batch."""

    def __init__(self, plan):
        self.rows = plan["rows"]
        self.max_boxes = plan["max_boxes"]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        row = self.rows[number]
        (height, width), (h, w) = row["canvas"], row["size"]
        with open(row["path"], "rb") as file:
            data = np.frombuffer(file.read(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        scale = np.array([w / image.shape[1], h / image.shape[0]], np.float32)
        if image.shape[:2] != (h, w):
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[:h, :w] = image
        boxes = np.zeros((self.max_boxes, 4), np.float32)
        labels = np.zeros(self.max_boxes, np.int32)
        n = len(row["labels"])
        boxes[:n] = np.asarray(row["boxes"], np.float32).reshape(-1, 4) * np.tile(scale, 2)
        labels[:n] = row["labels"]
        return {
            "images": canvas,
            "sizes": np.array([h, w], np.int32),
            "boxes": boxes,
            "labels": labels,
            "valid": np.arange(self.max_boxes) < n,
            "scale": scale,
        }


class Endless:
    """Repeats the planned batches endlessly."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


def stream(plan, workers, prefetch):
    more = {"prefetch_factor": prefetch} if workers else {}
    loader = DataLoader(
        Images(plan), batch_sampler=Endless(plan["batches"]), num_workers=workers, **more
    )
    return iter(loader)


def main():
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    print(json.dumps({"torch": torch.__version__, "cv2": cv2.__version__}), flush=True)
    batches = None
    for line in sys.stdin:
        command = json.loads(line)
        if "workers" in command:
            batches = stream(plan, command["workers"], command["prefetch"])
        for _ in range(command["skip"]):
            next(batches)
        images = total = 0
        before = time.perf_counter()
        for _ in range(command["count"]):
            batch = next(batches)
            images += len(batch["images"])
            if command["sum"]:
                total += int(batch["images"].sum(dtype=torch.int64))
        seconds = time.perf_counter() - before
        print(json.dumps({"seconds": seconds, "images": images, "sum": total}), flush=True)


if __name__ == "__main__":
    main()
