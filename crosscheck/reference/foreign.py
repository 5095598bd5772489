"""Classes out of someone else's checkout, with our tensors in their slots."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from crosscheck.reference.checkouts import take

M = TypeVar("M", bound=nn.Module)


def classes(path: Path, *names: str, **space: Any) -> list[Any]:
    """Definitions of a file.

    Args:
        path: a Python file.
        names: of classes and functions at its top level.
        space: what stands in for its imports, beside torch's usual names and functools.
    """
    known = {"nn": nn, "F": functional, "torch": torch, "functools": functools, **space}
    take(path, names, known)
    return [known[name] for name in names]


def fill(module: M, parameters: dict[str, Tensor]) -> M:
    """Puts tensors (not copies: gradients must reach them) into all of a module's slots.

    Args:
        module: is changed.
        parameters: by the module's own names; there may be others.

    Raises:
        ValueError: a tensor is of another shape than the module's own.
    """
    for name, made in list(module.named_parameters()):
        owner: nn.Module = module
        *path, last = name.split(".")
        for step in path:
            owner = getattr(owner, step)
        given = parameters[name]
        if given.shape != made.shape:
            raise ValueError(f"{name} is {tuple(made.shape)}, given is {tuple(given.shape)}")
        del owner._parameters[last]
        setattr(owner, last, given)
        module.to(given.dtype)
    return module
