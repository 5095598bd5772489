"""python -m crosscheck.reference FOLDER [CHECKOUT...]: answers the cases that `crosscheck` wrote.

Reads cases.json (a list of name, component, settings) and cases.npz ("CASE|KIND|NAME", with kinds
x, p, c, w), and writes answers.npz ("CASE|out|NAME", "CASE|dx|NAME", "CASE|dp|NAME").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosscheck.reference import authors, official
from crosscheck.reference.checkouts import OWN, recognised
from crosscheck.reference.components import COMPONENTS


def answer(
    component: Any, settings: dict[str, Any], arrays: dict[str, dict[str, torch.Tensor]]
) -> dict[str, np.ndarray]:
    """Outputs of one case, and the gradient of their sum weighted by the arrays "w"."""
    groups = {kind: arrays.get(kind, {}) for kind in "xpcw"}
    leaves = {
        f"d{kind}|{name}": value.requires_grad_()
        for kind in "xp"
        for name, value in groups[kind].items()
    }
    outputs = component(settings, groups["x"], groups["p"], groups["c"])
    found = {f"out|{name}": value.detach().numpy() for name, value in outputs.items()}
    if groups["w"]:
        total = sum((outputs[name] * weight).sum() for name, weight in groups["w"].items())
        pulled = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for (name, leaf), value in zip(leaves.items(), pulled, strict=True):
            found[name] = np.zeros(leaf.shape) if value is None else value.numpy()
    return found


def _widen(values: torch.Tensor) -> torch.Tensor:
    return values.double() if values.is_floating_point() else values


def main(argv: list[str]) -> None:
    """Answers all cases of a folder."""
    folder = Path(argv[0])
    components = dict(COMPONENTS)
    checkouts = recognised(argv[1:])
    if checkouts:
        components |= authors.components_of(checkouts)
    if OWN in checkouts:
        components |= official.components_of(checkouts[OWN])
    torch.set_num_threads(1)
    arrays: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    with np.load(folder / "cases.npz") as file:
        for key in file.files:
            case, kind, name = key.split("|")
            tensor = torch.from_numpy(np.array(file[key]))
            arrays.setdefault(case, {}).setdefault(kind, {})[name] = tensor
    answers: dict[str, Any] = {}
    for case in json.loads((folder / "cases.json").read_text()):
        name, given = case["name"], arrays.get(case["name"], {})
        if case["settings"].get("reference") == "float64":
            given = {
                kind: {k: _widen(v) for k, v in group.items()} for kind, group in given.items()
            }
        found = answer(components[case["component"]], case["settings"], given)
        answers |= {f"{name}|{key}": value for key, value in found.items()}
    np.savez(folder / "answers.npz", **answers)
    print(f"PyTorch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
