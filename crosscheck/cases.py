"""The cases that `crosscheck` compares: their settings and numbers.

Letters: B images, h w a map, C channels, G boxes of an image, D numbers of a region.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from crosscheck import ours
from crosscheck.case import Case, Maker, maps, targets


def _unit_cases(make: Maker) -> Iterator[Case]:
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


def _relation_cases(make: Maker) -> Iterator[Case]:
    n, inputs = 7, 36
    ways: tuple[dict[str, Any], ...] = (
        {"similarity": "bilinear", "filter": "learned"},
        {"similarity": "bilinear", "filter": "random"},
        {"similarity": "bilinear", "filter": "none"},
        {"similarity": "cosine", "filter": "none", "diagonal": False},
        {"similarity": "cosine", "filter": "learned", "diagonal": True},
        {"similarity": "embedded", "filter": "none", "diagonal": False},
    )
    for way in ways:
        kind = way["filter"]
        settings = {"rank": 8, "temperature": 0.3, "embedding": 10, **way}
        x = {"x": make.normal(n, inputs)}
        if kind != "none" and way["similarity"] == "bilinear":
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
            f"relation matrix, {way['similarity']}, {kind} filter"
            f"{', without i = j' if way.get('diagonal') is False else ''}",
            "matrix",
            settings,
            {
                "x": x,
                "p": make.parameters(partial(ours.make_relation, settings, inputs)),
                "w": {"psi": make.normal(n, n)},
            },
        )


def _region_cases(make: Maker) -> Iterator[Case]:
    for samples, bins, aligned in ((0, 3, False), (0, 7, True), (2, 7, True), (2, 3, False)):
        if samples and make.dtype == "float64":
            continue  # the detectors' RoIAlign always computes its weights in float32
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


def _instances(form: str) -> dict[str, Any]:
    """How a form scales the teacher's maps and compares boxes, unless a case overrides it."""
    if form == "official":
        return {"standardize": False, "similarity": "bilinear", "filter": "random", "rank": 8}
    return {
        "standardize": True,
        "similarity": "cosine",
        "temperature": 0.3,
        "diagonal": False,
        "embedding": None,
        "filter": "none",
        "rank": 8,
    }


def _term_cases(make: Maker) -> Iterator[Case]:
    canvas, images = (128, 192), 4
    for form in ("paper", "official"):
        for names, arithmetic, compare in (
            (("pixel_relation",), "plain", "values"),
            (("pixel_relation",), "gram", "values"),
            (("pixel_relation",), "plain", "correlation"),
            (("pixel_relation",), "gram", "correlation"),
            (("instance_relation",), "plain", "values"),
            (("instance_feature",), "plain", "values"),
        ):
            if form == "official" and compare == "correlation":
                continue
            strides = (4, 8) if "pixel_relation" in names else (8, 16)
            settings = {
                "form": form,
                "terms": names,
                "strides": strides,
                "nodes": (4, 8),
                "compare": compare,
                "normalize": form == "paper",
                "arithmetic": arithmetic,
                **_instances(form),
                "groups": 1 if form == "paper" else images // 2,
            }
            build = partial(ours.make_distiller, settings, (8, 12), make.dtype)
            how = f", {compare}, {arithmetic} arithmetic" if "pixel_relation" in names else ""
            yield make.case(
                f"{names[0]}, {form} form{how}",
                "terms",
                settings,
                {
                    "x": maps(make, canvas, strides, images, 8, 12),
                    "p": make.parameters(build),
                    "c": targets(make, canvas, images, 4),
                    "w": {name: np.ones((), make.dtype) for name in names},
                },
            )


def _large_cases(make: Maker) -> Iterator[Case]:
    """A map of full size; PyTorch answers in float64, as its float32 sums are inexact there."""
    if make.dtype == "float64":
        return
    canvas, images, strides = (800, 1344), 1, (4,)
    for form, compare, arithmetic in (
        ("paper", "values", "gram"),
        ("paper", "correlation", "gram"),
        ("official", "values", "plain"),
    ):
        settings = {
            "form": form,
            "terms": ("pixel_relation",),
            "strides": strides,
            "nodes": (8,),
            "compare": compare,
            "normalize": form == "paper",
            "arithmetic": arithmetic,
            **_instances(form),
            "groups": 1,
            "reference": "float64",
        }
        build = partial(ours.make_distiller, settings, (8, 12), make.dtype)
        c = targets(make, canvas, images, 3)
        c["sizes"] = np.asarray([[750, 1333]], np.int32)
        yield make.case(
            f"pixel relation, {form} form, {compare}, 200x336 map,",
            "terms",
            settings,
            {
                "x": maps(make, canvas, strides, images, 8, 12),
                "p": make.parameters(build),
                "c": c,
                "w": {"pixel_relation": np.ones((), make.dtype)},
            },
        )


def _detection_cases(make: Maker) -> Iterator[Case]:
    n, classes = 60, 8
    if make.dtype == "float32":  # the detectors' losses are always computed in float32
        yield make.case(
            "focal, cross-entropy, L1, smooth L1",
            "detection_losses",
            {"betas": (1 / 9, 1.0)},
            {
                "x": {"logits": make.normal(n, classes, scale=3), "boxes": make.normal(n, 4)},
                "c": {"labels": make.random.integers(0, classes, n), "boxes": make.normal(n, 4)},
                "w": {
                    "focal": make.normal(n, classes),
                    "binary_cross_entropy": make.normal(n, classes),
                    "cross_entropy": make.normal(n),
                    "l1": make.normal(n),
                    "smooth_l1_0": make.normal(n),
                    "smooth_l1_1": make.normal(n),
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


def _step_cases(make: Maker) -> Iterator[Case]:
    canvas, images, steps = (32, 48), 2, 5
    for form in ("paper", "official"):
        settings = {
            "form": form,
            "terms": ("pixel_relation", "instance_relation", "instance_feature"),
            "strides": (4, 8),
            "nodes": (4, 4),
            "compare": "correlation" if form == "paper" else "values",
            "normalize": form == "paper",
            "arithmetic": "gram" if form == "paper" else "plain",
            **_instances(form),
            "filter": "learned" if form == "paper" else "none",
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
        channels = 4, 6
        build = partial(ours.make_distiller, settings, channels, make.dtype)
        p = {f"distiller.{name}": value for name, value in make.parameters(build).items()}
        for i, inputs in enumerate((3, 4, 4)):
            scale = (2 / (9 * inputs)) ** 0.5
            p[f"student.conv{i}.kernel"] = make.normal(3, 3, inputs, 4, scale=scale)
            p[f"student.conv{i}.bias"] = make.normal(4, scale=0.1)
        p["student.head"] = make.normal(4, 5, scale=0.3)
        drawn = maps(make, canvas, (4, 8), steps * images, *channels)
        c = targets(make, canvas, images, 6)  # enough for a choice in a row without i = j
        for name in ("t0", "t1"):
            c[name] = drawn[name].reshape(steps, images, *drawn[name].shape[1:])
        c["images"] = make.normal(steps, images, *canvas, 3)
        c["positive"] = make.random.uniform(size=(images, 8, 12, 5)) < 0.1
        yield make.case(
            f"{steps} optimiser steps, {form} form",
            "optimiser_steps",
            settings,
            {"p": p, "c": c},
        )


def all_cases(dtype: str) -> Iterator[Case]:
    """All cases that need no checkout of the author's repository.

    Args:
        dtype: "float32" or "float64".
    """
    for cases in (
        _unit_cases,
        _relation_cases,
        _region_cases,
        _term_cases,
        _large_cases,
        _detection_cases,
        _step_cases,
    ):
        yield from cases(Maker(dtype))
