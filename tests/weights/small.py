"""Narrow models of every architecture, and their arrays under a library's names."""

from __future__ import annotations

import numpy as np

from drkd_jax.weights.account import give
from drkd_jax.weights.opening import library_table, model_shapes

NARROW = {"width": 8}
TWO_STAGE = {"detector": "faster_rcnn", "channels": 16, "fc": 24}
ONE_STAGE = {"detector": "retinanet", "channels": 16, "head_convs": 2}
NECK = {"channels": 16, "extra": "conv_c5", "min_level": 3, "max_level": 7}

# name: (library, part, settings, classes, whether a backbone's keys have a prefix)
MODELS = {
    "mmdet faster_rcnn": ("mmdet", "detector", {**TWO_STAGE, "backbone": NARROW}, 3, True),
    "mmdet faster_rcnn agnostic": (
        *("mmdet", "detector"),
        {**TWO_STAGE, "backbone": {**NARROW, "depth": 18}, "class_agnostic": True},
        *(3, True),
    ),
    "mmdet retinanet": ("mmdet", "detector", {**ONE_STAGE, "backbone": NARROW}, 3, True),
    "mmdet retinanet conv_p5": (
        *("mmdet", "detector"),
        {**ONE_STAGE, "backbone": {**NARROW, "depth": 34}, "extra": "conv_p5"},
        *(80, True),
    ),
    "mmdet resnext": (
        *("mmdet", "detector"),
        {**ONE_STAGE, "backbone": {"width": 16, "groups": 4, "group_width": 16}},
        *(5, True),
    ),
    "mmdet dcn v1": (
        *("mmdet", "detector"),
        {**TWO_STAGE, "backbone": {**NARROW, "dcn": "v1"}},
        *(3, True),
    ),
    "mmdet dcn v2": (
        *("mmdet", "pyramid"),
        {**NECK, "backbone": {**NARROW, "dcn": "v2"}},
        *(0, True),
    ),
    "mmdet group norm": (
        *("mmdet", "detector"),
        {**ONE_STAGE, "backbone": {**NARROW, "depth": 18, "norm": "gn"}},
        *(3, True),
    ),
    "mmdet pyramid": ("mmdet", "pyramid", {**NECK, "backbone": NARROW}, 0, True),
    "mmdet backbone": ("mmdet", "backbone", {"backbone": {**NARROW, "depth": 101}}, 0, False),
    "torchvision faster_rcnn": (
        *("torchvision", "detector"),
        {**TWO_STAGE, "backbone": NARROW, "convention": "torchvision"},
        *(3, True),
    ),
    "torchvision retinanet": (
        *("torchvision", "detector"),
        {**ONE_STAGE, "backbone": NARROW, "convention": "torchvision"},
        *(3, True),
    ),
    "torchvision backbone": (
        *("torchvision", "backbone"),
        {"backbone": {**NARROW, "depth": 152}},
        *(0, False),
    ),
}


def random_arrays(part, settings, num_classes, seed=0):
    """Random values for every array of a model, by our names."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in model_shapes(part, settings, num_classes).items()
    }


def foreign(name, seed=0):
    """(our arrays, the same under the library's names) of one of `MODELS`."""
    library, part, settings, num_classes, prefixed = MODELS[name]
    arrays = random_arrays(part, settings, num_classes, seed)
    return arrays, give(arrays, library_table(library, arrays, prefixed))
