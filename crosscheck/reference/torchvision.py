"""The answers of torchvision's own detectors: all stages, losses, gradients, detections.

    python -m crosscheck.reference.torchvision FOLDER [THREADS]

reads FOLDER/request.json (a list of `Model` as plain values) and writes FOLDER/MODEL.npz. Needs
torch and torchvision (0.14 was used), NumPy, and nothing else. Both sides draw weights, images
and ground truths by `seeded.py`. Only the last layers are scaled until there are detections to
compare; the answer contains their scales.

Every model runs from the padded tensor on, by the library's own ``forward``: its transform is
replaced by one that returns a given tensor, and the values between its parts are recorded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops

from crosscheck.reference.probes import (
    GAP,
    TIES,
    gradients,
    recorded,
    replayed,
    serve,
    widened,
)
from crosscheck.reference.seeded import FOLDED, Drawn, Model, draw_batch, thin
from crosscheck.reference.torchvision_build import build, draw_weights, liven

SEEDS = 400  # batches to try


def faults(
    calls: list[Any], detections: list[dict[str, Tensor]], probabilities: Tensor
) -> tuple[str, float]:
    """Why rounding alone could change the detections, and the nearest overlap.

    Args:
        calls: boxes, scores, classes and threshold of the last NMS of each image.
        detections: the detections of each image.
        probabilities: all scores of all images, before the score limit.

    Returns:
        The reason, or "", and the least distance from the threshold of the overlap of two
        candidates of one class.
    """
    nearest = 1.0
    if ((probabilities - 0.05).abs() < TIES).any():
        return "a score at the limit", nearest
    for (boxes, scores, groups, threshold), found in zip(calls, detections, strict=True):
        kept = found["scores"]
        if len(kept) < 20:
            return f"{len(kept)} detections", nearest
        if (kept[:-1] - kept[1:]).min() <= GAP or (kept[-1] - 0.05) <= GAP:
            return "scores too near to each other", nearest
        overlaps = box_ops.box_iou(boxes, boxes)
        same = (groups[:, None] == groups[None]) & ~torch.eye(len(boxes), dtype=torch.bool)
        nearest = min(nearest, float((overlaps - threshold).abs()[same].min()))
        if nearest <= GAP:
            return "an overlap at the threshold", nearest
        near = (scores[:, None] - scores[None]).abs() < TIES
        if (same & near & (overlaps > threshold)).any():
            return "two boxes of one score", nearest
    return "", nearest


@contextmanager
def suppressions() -> Iterator[list[Any]]:
    """Records the arguments of all NMS calls inside the context."""
    calls: list[Any] = []
    original = box_ops.batched_nms

    def nms(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    box_ops.batched_nms = nms
    try:
        yield calls
    finally:
        box_ops.batched_nms = original


def answer(model: Model) -> dict[str, Any]:
    """All tensors of a model: "weights|...", and "BATCH|TENSOR" for each batch.

    Draws images until each one of a batch has 20 detections that rounding alone cannot change.
    """
    net = build(model)
    with torch.no_grad():
        draw_weights(net, model.seed)
    net.eval()
    tensors: dict[str, Any] = {}
    floats = {k: list(v.shape) for k, v in net.state_dict().items() if v.is_floating_point()}
    tensors["weights|shapes"] = np.array(json.dumps(floats))
    for i, (canvas, sizes) in enumerate(model.batches):
        # First the seed that served before; the last layers are scaled on seed 0 of batch 0.
        for seed in (*([0] if i == 0 else []), *model.first[i : i + 1], *range(1, SEEDS)):
            drawn = draw_batch(seed, canvas, sizes, model.num_classes)
            net.transform.tensor = torch.from_numpy(drawn.images)
            net.transform.sizes = [tuple(size) for size in sizes]
            singles = [net.transform.tensor[b, :, :h, :w] for b, (h, w) in enumerate(sizes)]
            with torch.no_grad():
                if seed == 0:
                    names = liven(net, model, drawn, partial(net, singles))
                    for name in names:
                        layer = net.get_submodule(name)
                        tensors[f"weights|gain|{name}"] = layer.gain.numpy()
                        tensors[f"weights|bias|{name}"] = layer.bias.detach().numpy().copy()
                found, fault = inference(net, model, partial(net, singles))
            if not fault:
                break
            print(f"{model.name}, batch {i}, seed {seed}: {fault}", file=sys.stderr, flush=True)
        else:
            raise SystemExit(f"{model.name}, batch {i}: no detections that are clear of each other")
        found |= training(net, model, drawn, singles, with_gradients=i == 0)
        tensors |= {f"{i}|{name}": value for name, value in found.items()}
        tensors[f"{i}|seed"] = np.int64(seed)
    return tensors


def inference(net: nn.Module, model: Model, run: Callable[[], Any]) -> tuple[dict[str, Any], str]:
    """All stages of one batch in evaluation, and what is wrong with its detections."""
    faster = model.detector == "faster_rcnn"
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _given, said: seen.__setitem__(name, said)

    parts = {"body": net.backbone.body, "pyramid": net.backbone}
    if faster:
        parts |= {
            "rpn": net.rpn.head,
            "proposals": net.rpn,
            "regions": net.roi_heads.box_roi_pool,
            "second": net.roi_heads.box_predictor,
        }
    else:
        parts |= {"head": net.head}
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    with suppressions() as suppressed:
        detections = run()
    for hook in hooks:
        hook.remove()
    tensors: dict[str, Any] = {}
    for name in ("body", "pyramid"):
        for level, value in enumerate(seen[name].values()):
            tensors[f"{name}.{level}"] = value
    if faster:
        for level, (logits, deltas) in enumerate(zip(*seen["rpn"], strict=True)):
            tensors[f"rpn logits.{level}"], tensors[f"rpn deltas.{level}"] = logits, deltas
        tensors["regions"] = seen["regions"]
        logits, deltas = seen["second"]
        tensors["class logits"] = logits
        tensors["class deltas"] = deltas.reshape(*logits.shape, 4)[:, 1:]  # not the background's
        probabilities = seen["second"][0].softmax(-1)[:, 1:]
    else:
        tensors["class logits"] = seen["head"]["cls_logits"]
        tensors["class deltas"] = seen["head"]["bbox_regression"]
        probabilities = seen["head"]["cls_logits"].sigmoid()
    answers = {name: thin(name, value.numpy(), model.keep) for name, value in tensors.items()}
    if faster:
        for b, proposed in enumerate(seen["proposals"][0]):
            answers[f"proposals.{b}"] = proposed.numpy()
    for b, found in enumerate(detections):
        for key, value in found.items():
            answers[f"detections.{key}.{b}"] = value.numpy()
    fault, nearest = faults(suppressed[-len(detections) :], detections, probabilities)
    return {**answers, "nearest overlap": np.float32(nearest)}, fault


def training(
    net: nn.Module, model: Model, drawn: Drawn, singles: list[Tensor], with_gradients: bool
) -> dict[str, np.ndarray]:
    """The matches and samples, the losses, and the gradient of their sum in float64."""
    faster = model.detector == "faster_rcnn"
    targets = [
        {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(k).long() + faster}
        for b, k in zip(drawn.boxes, drawn.labels, strict=True)
    ]
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # statistics are kept; scale and bias are trained
    torch.manual_seed(model.seed)
    asked: list[tuple[Any, str]] = [(net.rpn if faster else net, "proposal_matcher")]
    if faster:
        asked += [(net.rpn, "fg_bg_sampler"), (net.roi_heads, "select_training_samples")]
    with ExitStack() as stack:
        matcher, *draws = [stack.enter_context(recorded(*place)) for place in asked]
        losses = net(singles, targets)
    found: dict[str, Any] = {}
    if faster:
        positive, negative = draws[0].said[0]
        regions, truths, labels, _ = draws[1].said[0]
        for b in range(len(singles)):
            found[f"anchors.positive.{b}"] = torch.where(positive[b])[0].int()
            found[f"anchors.negative.{b}"] = torch.where(negative[b])[0].int()
            found[f"sampled.boxes.{b}"] = regions[b]
            found[f"sampled.labels.{b}"] = labels[b].int()
            found[f"sampled.truths.{b}"] = truths[b].int()
    for b, said in enumerate(matcher.said):
        found[f"matched.{b}"] = said.to(torch.int16)
    found |= {f"losses.{name}": value for name, value in losses.items()}
    answers = {name: value.detach().numpy() for name, value in found.items()}
    if with_gradients:

        def total() -> Tensor:
            """The losses again, with the same samples."""
            given = [{**target, "boxes": target["boxes"].double()} for target in targets]
            with ExitStack() as stack:
                for place, recorder in zip(asked, (matcher, *draws), strict=True):
                    stack.enter_context(replayed(*place, widened(recorder.said)))
                return sum(net(widened(singles), given).values())

        net.transform.tensor = net.transform.tensor.double()
        pulled = gradients(net, total)
        for name, _ in net.named_parameters():
            assert name in pulled, f"{name} has no gradient"
            if faster and model.version == 2 and name.startswith(FOLDED):
                continue
            values = pulled[name].numpy().astype(np.float32)
            answers[f"gradients.{name}"] = thin(name, values, model.keep)
            answers[f"norms.{name}"] = np.float32(pulled[name].norm())
    net.eval()
    return answers


if __name__ == "__main__":
    serve(sys.argv[1:], Model, answer, f"torchvision {torchvision.__version__}")
