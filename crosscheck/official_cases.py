"""The cases of `crosscheck --official`: weight sets with the author's names and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from crosscheck.case import Case, Maker, maps, targets


def _official_parameters(make: Maker, settings: dict[str, Any], width: int) -> dict[str, Any]:
    """A weight set with the author's names and layouts."""
    found: dict[str, np.ndarray] = {}

    def layer(name: str, outputs: int, inputs: int, *rest: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = make.normal(outputs, inputs, *rest, scale=inputs**-0.5)
        if bias:
            found[f"{name}.bias"] = make.normal(outputs, scale=0.1)

    def unit(name: str, nodes: int) -> None:
        layer(f"{name}.conv_state", 2 * nodes, width, 1, 1)
        layer(f"{name}.conv_proj", nodes, width, 1, 1)
        layer(f"{name}.gcn.conv1", nodes, nodes, 1)
        layer(f"{name}.gcn.conv2", 2 * nodes, 2 * nodes, 1, bias=False)
        layer(f"{name}.conv_extend", width, 2 * nodes, 1, 1, bias=False)
        found[f"{name}.blocker.weight"] = 1 + make.normal(width, scale=0.1)
        found[f"{name}.blocker.bias"] = make.normal(width, scale=0.1)

    def relation(name: str) -> None:
        inputs = 9 * width
        for part in ("theta.0", "phi.0", "g.0"):
            layer(f"{name}.{part}", inputs // 2, inputs)
        layer(f"{name}.W", inputs, inputs // 2)

    if "unit" in settings:
        unit("unit", settings["nodes"])
    elif "relation" in settings:
        relation("relation")
    else:
        for i, nodes in enumerate(settings["nodes"]):
            for side in ("student", "teacher"):
                unit(f"{side}_non_local.{i}", nodes)
            layer(f"non_local_adaptation.{i}", width, width, 1, 1)
        for i in range(2):
            for side in ("student", "teacher"):
                relation(f"{side}_relation.{i}")
            layer(f"relation_adaptation.{i}", width, width, 1, 1)
            layer(f"for_adaptation.{i}", width, width, 1, 1)
    return found


def _filter_layer(make: Maker, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.filter.weight": make.normal(outputs, inputs, scale=inputs**-0.5),
        f"{name}.filter.bias": make.normal(outputs, scale=0.1),
    }


def official_cases(dtype: str) -> Iterator[Case]:
    """The cases that run the author's own modules."""
    make = Maker(dtype)
    width, n = 8, 5
    settings: dict[str, Any] = {"unit": True, "nodes": 6, "normalize": False, "train": True}
    yield make.case(
        "author's GloRe unit",
        "official_unit",
        settings,
        {
            "x": {"x": make.normal(2, 16, 24, width)},
            "p": _official_parameters(make, settings, width),
            "w": {"phi": make.normal(2, 16, 24, width)},
        },
    )
    settings = {"relation": True}
    yield make.case(
        "author's relation class",
        "official_relation",
        settings,
        {
            "x": {"x": make.normal(n, 3, 3, width)},
            "p": _official_parameters(make, settings, width),
            "c": _filter_layer(make, "relation", 9 * width, n),
            "w": {"z": make.normal(n, 3, 3, width), "psi": make.normal(n, n)},
        },
    )
    canvas, strides = (64, 96), (4, 8, 16)
    settings = {
        "form": "official",
        "terms": ("pixel_relation", "instance_relation", "instance_feature"),
        "strides": strides,
        "nodes": (4, 4, 8),
        "compare": "values",
        "normalize": False,
        "arithmetic": "plain",
        "standardize": False,
        "similarity": "bilinear",
        "filter": "random",
        "rank": 8,
        "groups": 1,
    }
    c = targets(make, canvas, 2, 4)
    for side in ("student", "teacher"):
        for i in range(2):
            c |= _filter_layer(make, f"{side}_relation.{i}", 9 * width, 4)
        for i in range(3):
            for name, value in (("mean", np.zeros(width)), ("var", np.ones(width))):
                c[f"{side}_non_local.{i}.blocker.running_{name}"] = value.astype(dtype)
    yield make.case(
        "author's three losses",
        "official_losses",
        settings,
        {
            "x": maps(make, canvas, strides, 2, width, width),
            "p": _official_parameters(make, settings, width),
            "c": c,
            "w": {name: np.ones((), dtype) for name in settings["terms"]},
        },
    )
