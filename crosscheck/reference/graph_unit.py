"""The counterpart of distill/graph_unit.py, image by image, one formula per line."""

from __future__ import annotations

import torch
from torch import Tensor

from crosscheck.reference.layers import Parameters, linear, sub

BN_EPS = 1e-4


def branch(parameters: Parameters, x: Tensor, mask: Tensor, *, normalize: bool) -> Tensor:
    """The unit's branch before its normalisation, for maps x [B, P, C] and a mask [B, P]."""
    answers = []
    for pixels, inside in zip(x, mask, strict=True):
        S = linear(sub(parameters, "state"), pixels)  # P, C1
        B = linear(sub(parameters, "projection"), pixels)  # P, C2
        V = S[inside].T @ B[inside]  # C1, C2
        if normalize:
            V = V / max(int(inside.sum()), 1)
        A, a = parameters["adjacency.kernel"].T, parameters["adjacency.bias"]
        talked = torch.relu(V + V @ A.T + a)
        F = B @ (parameters["mix"].T @ talked).T  # P, C1
        answers.append(linear(sub(parameters, "extend"), F))
    return torch.stack(answers)


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean, biased variance and count over all valid pixels."""
    inside = values[mask]
    if not len(inside):
        zero = values.new_zeros(values.shape[-1])
        return zero, zero, 0
    return inside.mean(0), inside.var(0, unbiased=False), len(inside)


def graph_unit(
    parameters: Parameters,
    x: Tensor,
    mask: Tensor,
    *,
    normalize: bool,
    train: bool,
    groups: int = 1,
    running: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """phi(x) = x + BN(branch), and the running statistics after it."""
    y = branch(parameters, x, mask, normalize=normalize)
    scale, bias = parameters["norm.scale"], parameters["norm.bias"]
    if not train:
        assert running is not None
        mean, variance = running
        return x + (y - mean) / torch.sqrt(variance + BN_EPS) * scale + bias, running
    each = len(x) // groups
    out, seen = [], []
    for first in range(0, len(x), each):
        part = slice(first, first + each)
        mean, variance, count = moments(y[part], mask[part])
        out.append(x[part] + (y[part] - mean) / torch.sqrt(variance + BN_EPS) * scale + bias)
        if count:
            seen.append((mean.detach(), variance.detach() * count / max(count - 1, 1)))
    moved = running
    if running is not None and seen:
        fresh = [torch.stack(values).mean(0) for values in zip(*seen, strict=True)]
        moved = (0.9 * running[0] + 0.1 * fresh[0], 0.9 * running[1] + 0.1 * fresh[1])
    return torch.cat(out), moved
