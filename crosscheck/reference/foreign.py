"""Classes from the authors' checkouts, filled with our tensors."""

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
    """Definitions from a file.

    Args:
        path: a Python file.
        names: classes and functions at its top level.
        space: names in place of its imports, besides the usual ones of torch and functools.
    """
    known = {"nn": nn, "F": functional, "torch": torch, "functools": functools, **space}
    take(path, names, known)
    return [known[name] for name in names]


def fill(module: M, parameters: dict[str, Tensor]) -> M:
    """Replaces all parameters of a module by tensors (not copies: gradients must reach them).

    Args:
        module: the module, changed in place.
        parameters: tensors by the module's own names; further ones are ignored.

    Raises:
        ValueError: a tensor has a different shape than the module's own.
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
