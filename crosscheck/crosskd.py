"""CrossKD (drkd_jax/distill/baselines/crosskd.py): its cases, and our answers.

Letters: B images, h w a map, C channels, A anchors per pixel, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from crosscheck import ours
from crosscheck.case import Case, Maker, maps, targets
from crosscheck.map_terms import make_distiller
from drkd_jax.types import Responses

BRANCHES = ("classes", "boxes")
CLASSES, ANCHORS = 5, 3


def crosskd(
    settings: ours.Settings, x: ours.Arrays, p: ours.Arrays, c: ours.Arrays
) -> dict[str, jax.Array]:
    """CrossKD's loss on maps inside both heads, "s_classes0", "t_boxes1" and so on."""
    levels = range(len(settings["strides"]))
    student, teacher = (
        tuple((x[f"{side}_classes{i}"], x[f"{side}_boxes{i}"]) for i in levels) for side in "st"
    )
    channels = student[0][0].shape[-1], teacher[0][0].shape[-1]
    dtype = student[0][0].dtype
    module = ours.build(partial(make_distiller, settings, channels, dtype), p)
    given = (c[name] for name in ("boxes", "valid", "sizes", "image_valid"))
    pyramids = [tuple(pair[0] for pair in side) for side in (student, teacher)]
    head = partial(rest_of_head, c)
    return module(*pyramids, *given, responses=Responses(student, teacher, head)).losses


def rest_of_head(
    c: ours.Arrays, classes: jax.Array, boxes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Applies the teacher's last convolution and output layer, in both branches."""
    found = []
    for branch, x in zip(BRANCHES, (classes, boxes), strict=True):
        for layer in ("last", "output"):
            x = jax.lax.conv_general_dilated(
                jax.nn.relu(x),
                c[f"{branch}.{layer}.kernel"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=jax.lax.Precision.HIGHEST,
            )
            x = x + c[f"{branch}.{layer}.bias"]
        found.append(x.reshape(x.shape[0], -1, CLASSES if branch == "classes" else 4))
    return found[0], found[1]


def crosskd_case(
    make: Maker,
    name: str,
    component: str,
    canvas: tuple[int, int],
    channels: tuple[int, int],
    c: dict[str, Any],
) -> Case:
    """A case with maps inside both heads, the rest of the teacher's head, and f if it is needed.

    Args:
        make: draws the numbers.
        name: name of the case.
        component: as in `Case`.
        canvas: height and width, pixels.
        channels: channels of the student's and the teacher's head.
        c: the targets; the head's layers are added to it.
    """
    images, strides = len(c["sizes"]), (8, 16)
    settings: dict[str, Any] = {
        "term": "crosskd",
        "strides": strides,
        "standardize": True,
        "config": {"layers": 3, "box": 0.7},
    }
    x: dict[str, np.ndarray] = {}
    for branch, outputs, bias in zip(BRANCHES, (CLASSES, 4), (-2.0, 0.0), strict=True):
        drawn = maps(make, canvas, strides, images, *channels)
        x |= {f"{name[0]}_{branch}{name[1:]}": value for name, value in drawn.items()}
        wide = channels[1]
        for layer, width in (("last", wide), ("output", ANCHORS * outputs)):
            scale = (2 / (9 * wide)) ** 0.5 * (1.0 if layer == "last" else 0.5)
            c[f"{branch}.{layer}.kernel"] = make.normal(3, 3, wide, width, scale=scale)
            offset = bias if layer == "output" else 0.0
            drawn_bias = offset + make.normal(width, scale=0.1)
            c[f"{branch}.{layer}.bias"] = drawn_bias.astype(make.dtype)
    p = make.parameters(partial(make_distiller, settings, channels, make.dtype))
    w = {"crosskd": np.ones((), make.dtype)}
    return make.case(name, component, settings, {"x": x, "p": p, "c": c, "w": w})


def crosskd_cases(dtype: str) -> Iterator[Case]:
    """A case with f, and one with heads of equal width.

    Args:
        dtype: "float32" or "float64".
    """
    make = Maker(dtype)
    canvas = 96, 128
    for channels in ((8, 12), (6, 6)):
        c = targets(make, canvas, 4, 4)
        c["image_valid"][1] = False  # one that only fills up the batch
        name = f"crosskd, {channels[0]} to {channels[1]} channels"
        yield crosskd_case(make, name, "crosskd", canvas, channels, c)


COMPONENTS: dict[str, ours.Component] = {"crosskd": crosskd}
