"""The baseline distillers against their authors' own code: cases of `crosscheck --official`.

The other side is crosscheck/reference/authors.py. Images fill their canvas and the teacher's maps
are not standardised, since only our code handles padding and the teacher's scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np

from crosscheck import ours
from crosscheck.case import Case, Maker, maps
from crosscheck.crosskd import crosskd, crosskd_case
from crosscheck.map_terms import CONFIGS, image_keys, make_distiller, map_term
from drkd_jax.distill.baselines.mgd import kept_pixels

CROSSKD = "jbwang1997/CrossKD"
MAP_TERMS: dict[str, tuple[str, ...]] = {
    "open-mmlab/mmrazor": ("feature_imitation", "pkd", "cwd", "mgd"),
    "irfanICMLL/TorchDistiller": ("cwd",),
    "pppppM/mmdetection-distiller": ("cwd",),
    "yzd-v/MGD": ("mgd",),
    "yzd-v/FGD": ("fgd",),
    CROSSKD: ("pkd",),
}
# Powers of two, since the authors of FGD divide boxes by the canvas and we by the stride.
CANVAS, STRIDES, IMAGES = (64, 128), (8, 16), 3
# Within a cell, from cell border to cell border, up to the canvas' last corner, the whole canvas.
BOXES = ((3.5, 6.1, 5.9, 7.7), (16, 8, 48, 32), (90.3, 20.7, 128, 64), (0, 0, 128, 64))


def _targets(make: Maker) -> dict[str, Any]:
    """An image with random boxes, one with `BOXES`, and one without boxes."""
    boxes = make.boxes(CANVAS, IMAGES, len(BOXES))
    boxes[1] = BOXES
    valid = np.ones((IMAGES, len(BOXES)), bool)
    valid[0, 1] = False
    valid[2] = False
    return {
        "sizes": np.tile(np.asarray(CANVAS, np.int32), (IMAGES, 1)),
        "boxes": boxes,
        "valid": valid,
        "image_valid": np.ones(IMAGES, bool),
    }


def _map_term(make: Maker, repository: str, term: str, channels: tuple[int, int]) -> Case:
    settings: dict[str, Any] = {
        "repository": repository,
        "term": term,
        "canvas": CANVAS,
        "strides": STRIDES,
        "standardize": False,
        "config": CONFIGS[term],
    }
    c = _targets(make)
    c["positions"] = np.arange(IMAGES, dtype=np.int32)
    x = maps(make, CANVAS, STRIDES, IMAGES, *channels)
    for i in range(len(STRIDES)):
        c[f"bias{i}"] = make.normal(channels[1])  # for biases that cancel out
        if term == "mgd":
            shape, masked = x[f"t{i}"].shape[1:3], CONFIGS[term]["masked"]
            c[f"kept{i}"] = np.asarray(kept_pixels(image_keys(c["positions"]), i, shape, masked))
    p = make.parameters(partial(make_distiller, settings, channels, make.dtype))
    w = {term: np.ones((), make.dtype)}
    name = f"{term} of {repository}, {channels[0]} to {channels[1]} channels"
    return make.case(name, "authors_term", settings, {"x": x, "p": p, "c": c, "w": w})


def authors_cases(dtype: str, repositories: Collection[str]) -> Iterator[Case]:
    """The cases that run the authors' own losses.

    Args:
        dtype: "float32" or "float64".
        repositories: the repositories with a checkout, named as in reference/checkouts.py.
    """
    make = Maker(dtype)
    for repository, terms in MAP_TERMS.items():
        if repository in repositories:
            for term in terms:
                yield _map_term(make, repository, term, (8, 12))
                yield _map_term(make, repository, term, (6, 6))
    if CROSSKD in repositories:
        name = f"crosskd of {CROSSKD}, 6 channels"
        case = crosskd_case(make, name, "authors_crosskd", CANVAS, (6, 6), _targets(make))
        case.arrays["c"]["boxes.output.kernel"] *= 6  # some sides reach the box code's limits
        yield case


COMPONENTS: dict[str, ours.Component] = {"authors_term": map_term, "authors_crosskd": crosskd}
