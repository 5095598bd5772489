"""The counterpart of the filters in distill/instance_relation.py, for the n boxes of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from crosscheck.reference.layers import Parameters, linear, sub


def relation_filter(parameters: Parameters, x: Tensor, kind: str) -> Tensor:
    """Filter w [n, n] of boxes x [n, D]; rows sum to 1."""
    n = len(x)
    if kind == "random":
        logits = x @ parameters["kernel"][:, :n] + parameters["bias"][:n]
    else:
        u, v = linear(sub(parameters, "query"), x), linear(sub(parameters, "key"), x)
        logits = u @ v.T / u.shape[1] ** 0.5 + linear(sub(parameters, "offset"), x).T
    return torch.softmax(logits, dim=-1)
