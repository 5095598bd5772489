"""The torchvision side of benchmarks/detectors.py: times its own detectors.

    python benchmarks/detectors_torch.py SETTINGS.json TIMES.json

It runs in its own interpreter, which needs only torch, torchvision and NumPy.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7


def build(name: str, canvas: tuple[int, int]) -> torch.nn.Module:
    """The detector with random weights, but with norms and stages frozen as if pretrained."""
    options: dict[str, Any] = {"weights": None, "norm_layer": FrozenBatchNorm2d}
    if name == "retinanet":
        options |= {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name="resnet50", trainable_layers=3, **options)
    for module in backbone.modules():
        if hasattr(module, "bn3"):
            module.bn3.weight.zero_()  # as in a new network of the other side
    make = {"faster_rcnn": FasterRCNN, "retinanet": RetinaNet}[name]
    # With images as large as the canvas, its transform only normalises.
    return make(backbone, num_classes=91, min_size=min(canvas), max_size=max(canvas))


def main(source: str, sink: str) -> None:
    settings = json.loads(Path(source).read_text())
    device = torch.device("cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu")
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    torch.backends.cudnn.benchmark = True
    height, width = settings["canvas"]
    random = np.random.default_rng(0)
    noise = random.uniform(0, 1, (settings["batch"], 3, height, width)).astype(np.float32)
    images = torch.from_numpy(noise).to(device)
    boxes = torch.tensor(settings["boxes"], device=device)
    labels = torch.ones(boxes.shape[:2], dtype=torch.int64, device=device)
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    half = settings["dtype"] == "bfloat16"
    autocast = contextlib.nullcontext
    if half:
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    times: dict[str, float] = {}
    losses: dict[str, float] = {}

    def measure(name: str, function: Callable[[], Any]) -> Any:
        durations = []
        for _ in range(settings["repeat"] + settings["warm"]):
            start = time.perf_counter()
            result = function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        times[name] = 1e3 * min(durations[settings["warm"] :])
        return result

    for name in settings["detectors"]:
        model = build(name, (height, width)).to(device)
        if device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
            images = images.to(memory_format=torch.channels_last)
        model.eval()

        def teacher(model=model, images=images):
            with torch.inference_mode(), autocast():
                return model.backbone(images)

        measure(f"{name} teacher", teacher)
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, 1e-5, momentum=0.9, weight_decay=1e-4)

        def step(model=model, images=images, optimiser=optimiser):
            with autocast():
                loss = sum(model(list(images), targets).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.detach()

        losses[name] = float(measure(f"{name} train step", step))
        del model, optimiser, trained
    about = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "losses": losses,
        "times": times,
    }
    Path(sink).write_text(json.dumps(about))


if __name__ == "__main__":
    main(*sys.argv[1:])
