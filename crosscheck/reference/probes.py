"""Tools for running another library's network and recording its outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GAP = 1e-4  # least distance between scores, and of overlaps from the threshold
TIES = 1e-6  # the same for the scores of two boxes of which one suppresses the other


def serve(
    argv: list[str], kind: type, answer: Callable[[Any], dict[str, Any]], library: str
) -> None:
    """Answers a folder's request.json model by model, and prints the versions.

    Args:
        argv: the folder, and the number of torch's threads (default 2).
        kind: the class for an entry of the request.
        answer: computes all tensors of a model by name, which are saved in MODEL.npz.
        library: the library's name and version.
    """
    folder = Path(argv[0])
    torch.set_num_threads(int(argv[1]) if len(argv) > 1 else 2)
    for values in json.loads((folder / "request.json").read_text()):
        model = kind(**values)
        np.savez_compressed(folder / f"{model.name}.npz", **answer(model))
    print(f"{library}, torch {torch.__version__}")


class Recorder:
    """Calls an object and records its arguments and results."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.given: list[tuple[Any, ...]] = []
        self.said: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The inner object's result."""
        answer = self.inner(*arguments, **named)
        self.given.append(arguments)
        self.said.append(answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextmanager
def recorded(owner: Any, name: str) -> Iterator[Recorder]:
    """Records the calls of an attribute."""
    recorder = Recorder(getattr(owner, name))
    setattr(owner, name, recorder)
    try:
        yield recorder
    finally:
        setattr(owner, name, recorder.inner)


@contextmanager
def replayed(owner: Any, name: str, said: Sequence[Any]) -> Iterator[None]:
    """Replaces the calls of an attribute by recorded results.

    Args:
        owner: object with the attribute.
        name: name of the attribute.
        said: the results, in order.
    """
    inner = getattr(owner, name)
    setattr(owner, name, Replayer(inner, said))
    try:
        yield
    finally:
        setattr(owner, name, inner)


class Replayer:
    """Acts like an object, but takes the results of calls from a list."""

    def __init__(self, inner: Any, said: Sequence[Any]):
        self.inner, self.left = inner, iter(said)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """The next result."""
        return next(self.left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def widened(value: Any) -> Any:
    """Converts float tensors in nested lists and tuples to float64; all else is unchanged."""
    if isinstance(value, (list, tuple)):
        return type(value)(widened(item) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def gradients(net: nn.Module, total: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradients of a sum of losses, computed in float64, by parameter name.

    In float32, rounding moves single gradients of a large network by a thousandth and more, which
    is more than two correct answers should differ.

    Args:
        net: float32 network; its parameters are float64 while ``total`` runs.
        total: computes the sum on float64 tensors.
    """
    net.zero_grad(set_to_none=True)
    net.double()
    total().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    net.float()
    return found


def spread(layer: nn.Module, outputs: Tensor, mean: float, std: float) -> None:
    """Scales a last layer so that each channel of its output has a given mean and deviation.

    Args:
        layer: a convolution or a linear layer.
        outputs: its outputs, channels last.
        mean: the new mean of each channel.
        std: the new standard deviation of each channel.
    """
    values = outputs.reshape(-1, outputs.shape[-1])
    gain = std / values.std(0).clamp(min=1e-3)
    layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - values.mean(0)) * gain + mean)
    layer.gain = gain


def outputs_of(layers: list[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """Outputs of layers during a run, channels last, concatenated over the calls of a layer."""
    found: list[list[Tensor]] = [[] for _ in layers]

    def keep(calls: list[Tensor]) -> Callable[..., None]:
        def hook(_module: Any, _given: Any, answer: Tensor) -> None:
            wide = answer.movedim(1, -1) if answer.dim() == 4 else answer
            calls.append(wide.reshape(-1, wide.shape[-1]))

        return hook

    hooks = [
        layer.register_forward_hook(keep(calls)) for layer, calls in zip(layers, found, strict=True)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return [torch.cat(calls) for calls in found]


def bisect(count: Callable[[], int], bias: Tensor, wanted: int, sign: int) -> None:
    """Shifts a bias by bisection until a count is near its target.

    Args:
        count: returns the count; called after each shift.
        bias: changed in place.
        wanted: the target.
        sign: 1 if a larger bias increases the count, -1 if it decreases it.
    """
    low, high, start = -12.0, 12.0, bias.clone()
    for _ in range(10):
        middle = (low + high) / 2
        bias.copy_(start + middle)
        if (count() > wanted) == (sign > 0):
            high = middle
        else:
            low = middle


def overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs of boxes."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    return both / (area[:, None] + area[None] - both).clamp(min=1e-9)


def nms_fault(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, gap: float) -> str:
    """Why rounding alone could change the result of an NMS; "" if it cannot.

    Both libraries compute the overlaps on boxes that are moved apart by group, which rounds them,
    so the overlaps of the moved boxes must not be near the threshold either.
    """
    same = (groups[:, None] == groups[None]) & ~torch.eye(len(boxes), dtype=torch.bool)
    exact = overlaps(boxes)
    moved = overlaps(boxes + groups.to(boxes)[:, None] * (boxes.max() + 1))
    for found in (exact, moved):
        if (same & ((found - threshold).abs() <= gap)).any():
            return "an overlap at the threshold"
    near = (scores[:, None] - scores[None]).abs() < TIES
    if (same & near & (exact > threshold)).any():
        return "two boxes of one score"
    return ""
