"""What `crosscheck` compares: the cases, their settings and their numbers.

Letters: B pictures, h w a map, C channels, G boxes of a picture, D numbers of a region.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from drkd_jax.cli import crosscheck_ours as ours

Arrays = dict[str, dict[str, np.ndarray]]

FORWARD = {"float32": 1e-5, "float64": 1e-10}
GRADIENT = {"float32": 1e-4, "float64": 1e-10}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table, in one precision.

    Attributes:
        name: unique, without "|".
        component: a function of `crosscheck_ours` and of the reference.
        settings: plain values, for JSON.
        arrays: by kind ("x" inputs, "p" parameters, "c" constants, "w" weights of the outputs in
            the sum that is differentiated) and name.
        forward: tolerance of the outputs, relative norm.
        gradient: tolerance of the gradients.
    """

    name: str
    component: str
    settings: dict[str, Any]
    arrays: Arrays
    forward: float
    gradient: float


class _Maker:
    """Draws the numbers of one precision."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.random = np.random.default_rng(0)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * self.random.standard_normal(shape)).astype(self.dtype)

    def parameters(self, build: Callable[[], Any]) -> dict[str, np.ndarray]:
        """Numbers for a module of ours, of the size that it starts with."""
        found = {}
        for name, shape in ours.shapes(build).items():
            found[name] = self.normal(*shape, scale=0.1 if len(shape) == 1 else shape[0] ** -0.5)
            if name.endswith("norm.scale"):
                found[name] += 1
        return found

    def boxes(self, canvas: tuple[int, int], *shape: int) -> np.ndarray:
        """Boxes of every size on the canvas, some thinner than a map pixel."""
        height, width = canvas
        low = self.random.uniform(0, 0.7, (*shape, 2))
        side = np.exp(self.random.uniform(math.log(0.02), math.log(0.9), (*shape, 2)))
        boxes = np.concatenate([low, np.minimum(low + side, 1)], -1)
        return (boxes * (width, height, width, height)).astype(np.float32)

    def case(self, name: str, component: str, settings: dict[str, Any], arrays: Arrays) -> Case:
        tolerances = FORWARD[self.dtype], GRADIENT[self.dtype]
        if component == "optimiser_steps":
            tolerances = (GRADIENT[self.dtype],) * 2
        return Case(f"{name} {self.dtype}", component, settings, arrays, *tolerances)


def _unit_cases(make: _Maker) -> Iterator[Case]:
    for train, normalize in ((True, False), (True, True), (False, True)):
        channels = 12
        settings = {"nodes": 6, "normalize": normalize, "train": train, "groups": 1}
        mask = np.ones((2, 32, 48), bool)
        mask[0, :, 40:] = mask[1, 20:] = False
        yield make.case(
            f"graph unit, {'batch' if train else 'running'} statistics"
            f"{', normalised nodes' if normalize else ''}",
            "unit",
            settings,
            {
                "x": {"x": make.normal(2, 32, 48, channels)},
                "p": make.parameters(partial(ours.make_unit, settings, channels)),
                "c": {
                    "mask": mask,
                    "running_mean": make.normal(channels),
                    "running_variance": 1 + make.normal(channels) ** 2,
                },
                "w": {"phi": make.normal(2, 32 * 48, channels)},
            },
        )


def _relation_cases(make: _Maker) -> Iterator[Case]:
    n, inputs = 7, 36
    for kind in ("learned", "random", "none"):
        settings = {"filter": kind, "rank": 8}
        x = {"x": make.normal(n, inputs)}
        if kind != "none":
            yield make.case(
                f"relation filter, {kind}",
                "filter",
                settings,
                {
                    "x": x,
                    "p": make.parameters(partial(ours.make_filter, settings, inputs)),
                    "w": {"w": make.normal(n, n)},
                },
            )
        yield make.case(
            f"relation matrix, {kind} filter",
            "matrix",
            settings,
            {
                "x": x,
                "p": make.parameters(partial(ours.make_relation, settings, inputs)),
                "w": {"psi": make.normal(n, n)},
            },
        )


def _region_cases(make: _Maker) -> Iterator[Case]:
    for samples, bins, aligned in ((0, 3, False), (0, 7, True), (2, 7, True), (2, 3, False)):
        if samples and make.dtype == "float64":
            continue  # the detectors' own RoIAlign weighs in float32 whatever comes in
        settings = {"stride": 4, "bins": bins, "samples": samples, "aligned": aligned}
        yield make.case(
            f"RoIAlign {bins}x{bins}, {samples or 'adaptive'} samples"
            f"{', aligned' if aligned else ''}",
            "regions",
            settings,
            {
                "x": {"x": make.normal(2, 12, 18, 3)},
                "c": {"boxes": make.boxes((48, 72), 2, 4).astype(make.dtype)},
                "w": {"regions": make.normal(2, 4, bins, bins, 3)},
            },
        )


def _targets(make: _Maker, canvas: tuple[int, int], pictures: int, boxes: int) -> dict[str, Any]:
    valid = np.ones((pictures, boxes), bool)
    valid[-1, 2:] = False
    valid[0, 0] = False
    sizes = np.tile(np.asarray(canvas, np.int32), (pictures, 1))
    sizes[-1] = canvas[0] * 3 // 4, canvas[1] - 13
    return {
        "sizes": sizes,
        "boxes": make.boxes(canvas, pictures, boxes),
        "valid": valid,
        "picture_valid": np.ones(pictures, bool),
    }


def _maps(
    make: _Maker, canvas: tuple[int, int], strides: tuple[int, ...], pictures: int, s: int, t: int
) -> dict[str, np.ndarray]:
    return {
        f"{side}{i}": make.normal(pictures, -(-canvas[0] // k), -(-canvas[1] // k), channels)
        for i, k in enumerate(strides)
        for side, channels in (("s", s), ("t", t))
    }


def _term_cases(make: _Maker) -> Iterator[Case]:
    canvas, pictures = (128, 192), 4
    for form in ("paper", "official"):
        for names, arithmetic in (
            (("pixel_relation",), "plain"),
            (("pixel_relation",), "gram"),
            (("instance_relation",), "plain"),
            (("instance_feature",), "plain"),
        ):
            strides = (4, 8) if "pixel_relation" in names else (8, 16)
            settings = {
                "form": form,
                "terms": names,
                "strides": strides,
                "nodes": (4, 8),
                "normalize": form == "paper",
                "arithmetic": arithmetic,
                "filter": "learned" if form == "paper" else "random",
                "rank": 8,
                "groups": 1 if form == "paper" else pictures // 2,
            }
            build = partial(ours.make_distiller, settings, (8, 12), make.dtype)
            how = f", {arithmetic} arithmetic" if "pixel_relation" in names else ""
            yield make.case(
                f"{names[0]}, {form} form{how}",
                "terms",
                settings,
                {
                    "x": _maps(make, canvas, strides, pictures, 8, 12),
                    "p": make.parameters(build),
                    "c": _targets(make, canvas, pictures, 4),
                    "w": {name: np.ones((), make.dtype) for name in names},
                },
            )


def _detection_cases(make: _Maker) -> Iterator[Case]:
    n, classes = 60, 8
    if make.dtype == "float32":  # the detectors' losses are in float32 whatever comes in
        yield make.case(
            "focal, cross-entropy, L1",
            "detection_losses",
            {},
            {
                "x": {"logits": make.normal(n, classes, scale=3), "boxes": make.normal(n, 4)},
                "c": {"labels": make.random.integers(0, classes, n), "boxes": make.normal(n, 4)},
                "w": {
                    "focal": make.normal(n, classes),
                    "binary_cross_entropy": make.normal(n, classes),
                    "cross_entropy": make.normal(n),
                    "l1": make.normal(n),
                },
            },
        )
        settings = {"size": 32.0, "ratios": [0.5, 1.0, 2.0], "scales": [1.0, 2 ** (1 / 3)]}
        settings |= {"shape": (3, 5), "stride": 8}
        yield make.case("anchors", "anchors", settings, {})
    for below in (True, False):
        yield make.case(
            f"box coding, {'both sides' if below else 'upper side'} limited",
            "box_coding",
            {
                "stds": (0.1, 0.1, 0.2, 0.2),
                "max_log": math.log(1000 / 16),
                "clamp_below": below,
            },
            {
                "x": {
                    "boxes": make.boxes((480, 640), n).astype(make.dtype),
                    "deltas": make.normal(n, 4, scale=10),
                },
                "c": {"anchors": make.boxes((480, 640), n).astype(make.dtype)},
                "w": {"encode": make.normal(n, 4), "decode": make.normal(n, 4)},
            },
        )


def _step_cases(make: _Maker) -> Iterator[Case]:
    canvas, pictures, steps = (32, 48), 2, 5
    for form in ("paper", "official"):
        settings = {
            "form": form,
            "terms": ("pixel_relation", "instance_relation", "instance_feature"),
            "strides": (4, 8),
            "nodes": (4, 4),
            "normalize": form == "paper",
            "arithmetic": "gram" if form == "paper" else "plain",
            "filter": "learned" if form == "paper" else "none",
            "rank": 8,
            "groups": 1,
            "steps": steps,
            "learning_rate": 0.02,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "weights": {
                "pixel_relation": 1.0 if form == "paper" else 4e-3,
                "instance_relation": 1.0 if form == "paper" else 4e-3,
                "instance_feature": 1.0 if form == "paper" else 2.4e-3,
            },
        }
        channels = 8, 12
        build = partial(ours.make_distiller, settings, channels, make.dtype)
        p = {f"distiller.{name}": value for name, value in make.parameters(build).items()}
        for i, inputs in enumerate((3, 8, 8)):
            scale = (2 / (9 * inputs)) ** 0.5
            p[f"student.conv{i}.kernel"] = make.normal(3, 3, inputs, 8, scale=scale)
            p[f"student.conv{i}.bias"] = make.normal(8, scale=0.1)
        p["student.head"] = make.normal(8, 5, scale=0.3)
        maps = _maps(make, canvas, (4, 8), steps * pictures, *channels)
        c = _targets(make, canvas, pictures, 3)
        c |= {
            f"t{i}": maps[f"t{i}"].reshape(steps, pictures, *maps[f"t{i}"].shape[1:])
            for i in (0, 1)
        }
        c["images"] = make.normal(steps, pictures, *canvas, 3)
        c["positive"] = make.random.uniform(size=(pictures, 8, 12, 5)) < 0.1
        yield make.case(
            f"{steps} optimiser steps, {form} form",
            "optimiser_steps",
            settings,
            {"p": p, "c": c},
        )


def _official_parameters(make: _Maker, settings: dict[str, Any], width: int) -> dict[str, Any]:
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


def _filter_layer(make: _Maker, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.filter.weight": make.normal(outputs, inputs, scale=inputs**-0.5),
        f"{name}.filter.bias": make.normal(outputs, scale=0.1),
    }


def official_cases(dtype: str) -> Iterator[Case]:
    """The cases that run the author's own modules."""
    make = _Maker(dtype)
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
        "normalize": False,
        "arithmetic": "plain",
        "filter": "random",
        "rank": 8,
        "groups": 1,
    }
    c = _targets(make, canvas, 2, 4)
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
            "x": _maps(make, canvas, strides, 2, width, width),
            "p": _official_parameters(make, settings, width),
            "c": c,
            "w": {name: np.ones((), dtype) for name in settings["terms"]},
        },
    )


def all_cases(dtype: str) -> Iterator[Case]:
    """Every case that needs no checkout of the author's repository.

    Args:
        dtype: "float32" or "float64".
    """
    make = _Maker(dtype)
    for cases in (
        _unit_cases,
        _relation_cases,
        _region_cases,
        _term_cases,
        _detection_cases,
        _step_cases,
    ):
        yield from cases(make)
