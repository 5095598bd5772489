"""The PyTorch side of benchmarks/gpu.py: torchvision's detectors, plain and with DRKD.

    python benchmarks/gpu/torch_side.py SETTINGS.json TIMES.json

It runs in its own interpreter, which needs torch, torchvision and NumPy. On a GPU: channels last,
bfloat16 by autocast, cuDNN's own search. Teachers have random weights and the recipes'
shapes: X101-64x4d for RetinaNet; for Faster R-CNN X101-32x4d, deformable in C3 to C5.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import (
    BackboneWithFPN,
    LastLevelMaxPool,
    resnet_fpn_backbone,
)
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.gpu.torch_drkd import DRKD

STRIDES = {"retinanet": (8, 16, 32, 64, 128), "faster_rcnn": (4, 8, 16, 32, 64)}


class Deformable(nn.Module):
    """A 3x3 deformable convolution, with offsets from a plain one."""

    def __init__(self, old: nn.Conv2d):
        super().__init__()
        self.offset = nn.Conv2d(old.in_channels, 18, 3, old.stride, old.padding)
        self.conv = DeformConv2d(
            old.in_channels,
            old.out_channels,
            3,
            old.stride,
            old.padding,
            groups=old.groups,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolves at the offset places."""
        return self.conv(x, self.offset(x))


def student(name: str, canvas: tuple[int, int], depth: int) -> nn.Module:
    """A detector with random weights, but with norms and stages frozen as if pretrained."""
    options: dict[str, Any] = {"weights": None, "norm_layer": FrozenBatchNorm2d}
    if name == "retinanet":
        options |= {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name=f"resnet{depth}", trainable_layers=3, **options)
    for module in backbone.modules():
        if hasattr(module, "bn3"):
            module.bn3.weight.zero_()  # as in a new network of the other side
    make = {"faster_rcnn": FasterRCNN, "retinanet": RetinaNet}[name]
    # With images as large as the canvas, its transform only normalises.
    return make(backbone, num_classes=91, min_size=min(canvas), max_size=max(canvas))


def teacher(name: str, layers: list[int]) -> nn.Module:
    """Backbone and pyramid of the recipe's teacher."""
    groups = {"retinanet": 64, "faster_rcnn": 32}[name]
    body = resnet.ResNet(
        resnet.Bottleneck, layers, groups=groups, width_per_group=4, norm_layer=FrozenBatchNorm2d
    )
    if name == "faster_rcnn":
        for stage in (body.layer2, body.layer3, body.layer4):
            for block in stage:
                block.conv2 = Deformable(block.conv2)
    levels = [2, 3, 4] if name == "retinanet" else [1, 2, 3, 4]
    extra = LastLevelP6P7(2048, 256) if name == "retinanet" else LastLevelMaxPool()
    return BackboneWithFPN(
        body,
        {f"layer{level}": str(place) for place, level in enumerate(levels)},
        [256 * 2 ** (level - 1) for level in levels],
        256,
        extra,
    )


def clock(function: Callable[[], Any], repeat: int, warm: int, cuda: bool) -> list[float]:
    """Milliseconds of each call after warming up."""
    times = []
    for _ in range(warm + repeat):
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[warm:]


def main(source: str, sink: str) -> None:
    settings = json.loads(Path(source).read_text())
    cuda = settings["gpu"] and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.benchmark = True
    height, width = settings["canvas"]
    half = settings["precision"] == "bfloat16"
    cast: Callable[[], Any] = (
        partial(torch.autocast, device.type, torch.bfloat16) if half else contextlib.nullcontext
    )
    images = torch.rand(settings["batch"], 3, height, width, device=device)
    images = images.to(memory_format=torch.channels_last)
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "cases": {},
    }

    def report(name: str, times: list[float], **more: Any) -> None:
        about["cases"][name] = {"ms": statistics.median(times), "least_ms": min(times), **more}
        if cuda:
            about["cases"][name]["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        Path(sink).write_text(json.dumps(about, indent=1))
        print(f"PyTorch {name}: {statistics.median(times):.1f} ms", flush=True)

    measure = partial(clock, repeat=settings["repeat"], warm=settings["warm"], cuda=cuda)
    for name in settings["detectors"]:
        model = student(name, (height, width), settings["depth"]).to(device)
        model = model.to(memory_format=torch.channels_last).train()
        boxes = torch.tensor(settings["boxes"], device=device)
        labels = torch.ones(boxes.shape[:2], dtype=torch.int64, device=device)
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        seen: dict[str, list[Tensor]] = {}
        model.backbone.register_forward_hook(
            lambda _, __, out, seen=seen: seen.update(maps=list(out.values()))
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, 1e-5, momentum=0.9, weight_decay=1e-4)

        def step(
            model=model, targets=targets, optimiser=optimiser, seen=seen, extra=None, guide=None
        ):
            with cast():
                loss = sum(model(list(images), targets).values())
                if extra is not None:
                    with torch.no_grad():
                        known = list(guide(images).values())
                    maps = seen["maps"]
                    loss = loss + sum(extra(maps, known, [t["boxes"] for t in targets]).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.detach()

        report(f"{name} plain", measure(step), loss=float(step()))
        guide = teacher(name, settings["teacher_layers"]).to(device).eval().requires_grad_(False)
        guide = guide.to(memory_format=torch.channels_last)

        def forward(guide=guide):
            with torch.no_grad(), cast():
                return guide(images)

        report(f"{name} teacher", measure(forward))
        extra = DRKD(STRIDES[name]).to(device)
        trained = [*trained, *extra.parameters()]
        optimiser = torch.optim.SGD(trained, 1e-5, momentum=0.9, weight_decay=1e-4)
        distilled = partial(step, extra=extra, guide=guide, optimiser=optimiser)
        report(f"{name} drkd", measure(distilled), loss=float(distilled()))
        del model, guide, extra, optimiser, trained, step, forward, distilled, seen
        if cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])
