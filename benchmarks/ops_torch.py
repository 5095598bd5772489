"""The torchvision side of benchmarks/ops.py: reads the inputs, writes times and outputs.

    python benchmarks/ops_torch.py INPUTS.npz OUTPUTS.npz

It runs in its own interpreter, which needs only torch, torchvision and NumPy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.ops import MultiScaleRoIAlign, batched_nms, deform_conv2d


def main(inputs: str, outputs: str) -> None:
    file = np.load(inputs)
    settings = json.loads(str(file["settings"]))
    device = torch.device("cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu")
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["dtype"])
    times: dict[str, float] = {}
    found: dict[str, np.ndarray] = {}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(file[name]).to(device)

    def measure(name: str, function: Callable[[], Any]) -> Any:
        result, durations = None, []
        for _ in range(settings["repeat"] + 1):  # the first call warms up
            start = time.perf_counter()
            result = function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        times[name] = 1e3 * min(durations[1:])
        return result

    for case, threshold in settings["nms"].items():
        boxes, scores, groups = tensor(f"{case}_boxes"), tensor(f"{case}_scores"), None
        groups = tensor(f"{case}_groups").long()

        def suppress(boxes=boxes, scores=scores, groups=groups, threshold=threshold):
            # One image after the other, as in its detectors.
            return [batched_nms(*one, threshold) for one in zip(boxes, scores, groups, strict=True)]

        kept = measure(case, suppress)
        mask = np.zeros(scores.shape, bool)
        for row, rows in zip(mask, kept, strict=True):
            row[rows.cpu().numpy()] = True
        found[case] = mask

    maps = {}
    for i in range(len(settings["strides"])):
        plane = tensor(f"map{i}").permute(0, 3, 1, 2).contiguous().to(dtype)
        maps[str(i)] = plane.requires_grad_()
    boxes = list(tensor("regions").unbind())
    cotangent = tensor("cotangent").permute(0, 3, 1, 2).contiguous().to(dtype)
    canvas = [tuple(settings["canvas"])] * len(boxes)
    for case, samples in settings["roi_align"].items():
        pool = MultiScaleRoIAlign(list(maps), settings["bins"], samples)
        try:
            with torch.no_grad():
                value = measure(f"{case} forward", lambda pool=pool: pool(maps, boxes, canvas))
            rows = [i for i in range(len(value)) if i % settings["every"] == 0]
            found[case] = value[rows].permute(0, 2, 3, 1).float().cpu().numpy()

            def both(pool=pool):
                for plane in maps.values():
                    plane.grad = None
                pool(maps, boxes, canvas).backward(cotangent)

            measure(f"{case} forward+backward", both)
        except RuntimeError as error:  # no kernel for this dtype
            print(f"torchvision, {case}: {error}", file=sys.stderr)
            continue
        second = maps["1"].grad
        found[f"{case} gradient"] = second.permute(0, 2, 3, 1).float().cpu().numpy()
    name = settings["deform"]
    x, offsets, kernel = (
        tensor(f"deform_{part}").permute(*axes).contiguous().to(dtype).requires_grad_()
        for part, axes in (
            ("map", (0, 3, 1, 2)),
            ("offsets", (0, 3, 1, 2)),
            ("kernel", (3, 2, 0, 1)),
        )
    )
    try:
        with torch.no_grad():
            value = measure(f"{name} forward", lambda: deform_conv2d(x, offsets, kernel, padding=1))
            plain = partial(torch.nn.functional.conv2d, x, kernel, padding=1, groups=32)
            measure("the same, not deformable, forward", plain)

        def back() -> None:
            for leaf in (x, offsets, kernel):
                leaf.grad = None
            deform_conv2d(x, offsets, kernel, padding=1).backward(x.detach())

        measure(f"{name} forward+backward", back)
        found[name] = value.permute(0, 2, 3, 1).float().cpu().numpy()
        found[f"{name} gradient"] = x.grad.permute(0, 2, 3, 1).float().cpu().numpy()
    except RuntimeError as error:  # no kernel for this dtype
        print(f"torchvision, {name}: {error}", file=sys.stderr)
    about = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "times": times,
    }
    np.savez(outputs, about=json.dumps(about), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
