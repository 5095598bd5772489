"""Small tools for running another library's network and writing down what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GAP = 1e-4  # between scores, and between overlaps and the threshold
TIES = 1e-6  # between the scores of two boxes of which one suppresses the other


def serve(
    argv: list[str], kind: type, answer: Callable[[Any], dict[str, Any]], library: str
) -> None:
    """Answers the models of a folder's request.json; prints the versions.

    Args:
        argv: the folder, and how many threads torch may use (2).
        kind: what an entry of the request is made into.
        answer: all tensors of a model by name; they go into MODEL.npz.
        library: its name and version.
    """
    folder = Path(argv[0])
    torch.set_num_threads(int(argv[1]) if len(argv) > 1 else 2)
    for values in json.loads((folder / "request.json").read_text()):
        model = kind(**values)
        np.savez_compressed(folder / f"{model.name}.npz", **answer(model))
    print(f"{library}, torch {torch.__version__}")


class Recorder:
    """Calls something and keeps what it was given and what it said."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.given: list[tuple[Any, ...]] = []
        self.said: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The inner object's answer."""
        answer = self.inner(*arguments, **named)
        self.given.append(arguments)
        self.said.append(answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextmanager
def recorded(owner: Any, name: str) -> Iterator[Recorder]:
    """An attribute that is called, with its answers written down."""
    recorder = Recorder(getattr(owner, name))
    setattr(owner, name, recorder)
    try:
        yield recorder
    finally:
        setattr(owner, name, recorder.inner)


@contextmanager
def replayed(owner: Any, name: str, said: Sequence[Any]) -> Iterator[None]:
    """An attribute that is called, answering what it said another time.

    Args:
        owner: whose attribute.
        name: of it.
        said: the answers to give, one after another.
    """
    inner = getattr(owner, name)
    setattr(owner, name, Replayer(inner, said))
    try:
        yield
    finally:
        setattr(owner, name, inner)


class Replayer:
    """Looks like something, and answers calls from a list."""

    def __init__(self, inner: Any, said: Sequence[Any]):
        self.inner, self.left = inner, iter(said)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """The next answer."""
        return next(self.left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def widened(value: Any) -> Any:
    """Float tensors in nested lists and tuples as float64, anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(widened(item) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def gradients(net: nn.Module, total: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradients of a sum of losses that is computed in float64, by name of the parameter.

    In float32 rounding moves single gradients of a large network by a thousandth and more, more
    than two right answers should differ by.

    Args:
        net: float32; its parameters are float64 while ``total`` runs.
        total: runs the network on float64 tensors.
    """
    net.zero_grad(set_to_none=True)
    net.double()
    total().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    net.float()
    return found


def spread(layer: nn.Module, outputs: Tensor, mean: float, std: float) -> None:
    """Scales a last layer so that its outputs have this mean and spread, channel by channel.

    Args:
        layer: a convolution or a linear layer.
        outputs: what it gave, channels last.
        mean: to get, of each channel.
        std: to get.
    """
    values = outputs.reshape(-1, outputs.shape[-1])
    gain = std / values.std(0).clamp(min=1e-3)
    layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - values.mean(0)) * gain + mean)
    layer.gain = gain


def outputs_of(layers: list[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """What some layers gave during a run, channels last, all calls of a layer in a row."""
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
    """Shifts a bias until something is counted about as often as wanted.

    Args:
        count: to be called after each shift.
        bias: changed in place.
        wanted: the count to aim at.
        sign: 1 where a larger bias counts more, -1 where it counts less.
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
    """Intersection over union of every pair of boxes."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    return both / (area[:, None] + area[None] - both).clamp(min=1e-9)


def nms_fault(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, gap: float) -> str:
    """Why an NMS could come out differently by rounding alone; "" if it cannot.

    Both libraries suppress by overlaps of boxes that are moved apart group by group, which
    rounds them: the moved ones have to be clear of the threshold too.
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
