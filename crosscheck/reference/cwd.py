"""The counterpart of distill/baselines/cwd.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def cwd(images: list[Any], config: dict[str, Any], p: Any, level: int) -> Tensor:
    """KL divergence of each channel's distribution over pixels; mean over channels and images."""
    tau = config["temperature"]
    parts = []
    for one in images:
        s, t = (functional.log_softmax(x.flatten(0, 1).T / tau, 1) for x in (one.s, one.t))
        divergence = functional.kl_div(s, t, reduction="sum", log_target=True)
        parts.append(tau**2 * divergence / len(s))
    return torch.stack(parts).mean()
