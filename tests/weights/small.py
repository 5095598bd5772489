"""Narrow models of all architectures, and their arrays with a library's names."""

from __future__ import annotations

import functools

import numpy as np

from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.understanding import library_table, model_shapes

NARROW = {"width": 8}  # 50 layers
SMALL = {**NARROW, "depth": 18}
TWO_STAGE = {"detector": "faster_rcnn", "channels": 16, "fc": 24}
ONE_STAGE = {"detector": "retinanet", "channels": 16, "head_convs": 2}
NECK = {"channels": 16, "extra": "conv_c5", "min_level": 3, "max_level": 7}

# name: (library, part, settings, classes, whether a backbone's keys have a prefix)
MODELS = {
    "mmdet faster_rcnn": ("mmdet", "detector", {**TWO_STAGE, "backbone": SMALL}, 3, True),
    "mmdet faster_rcnn agnostic": (
        *("mmdet", "detector"),
        {**TWO_STAGE, "backbone": SMALL, "class_agnostic": True},
        *(3, True),
    ),
    "mmdet retinanet": ("mmdet", "detector", {**ONE_STAGE, "backbone": SMALL}, 3, True),
    "mmdet retinanet 50": ("mmdet", "detector", {**ONE_STAGE, "backbone": NARROW}, 3, True),
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
    "mmdet cascade_rcnn": (
        *("mmdet", "detector"),
        {"detector": "cascade_rcnn", "channels": 16, "fc": 24, "backbone": NARROW},
        *(3, True),
    ),
    "mmdet group norm": (
        *("mmdet", "detector"),
        {**ONE_STAGE, "backbone": {**SMALL, "norm": "gn"}},
        *(3, True),
    ),
    "mmdet pyramid": ("mmdet", "pyramid", {**NECK, "backbone": NARROW}, 0, True),
    "mmdet backbone": ("mmdet", "backbone", {"backbone": {**NARROW, "depth": 34}}, 0, False),
    "torchvision faster_rcnn": (
        *("torchvision", "detector"),
        {**TWO_STAGE, "backbone": SMALL, "convention": "torchvision"},
        *(3, True),
    ),
    "torchvision retinanet": (
        *("torchvision", "detector"),
        {**ONE_STAGE, "backbone": SMALL, "convention": "torchvision"},
        *(3, True),
    ),
    "torchvision backbone": (
        *("torchvision", "backbone"),
        {"backbone": SMALL},
        *(0, False),
    ),
}


def random_arrays(part, settings, num_classes):
    """Random values for all arrays of a model, by our names."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in model_shapes(part, settings, num_classes).items():
        values = rng.standard_normal(shape)
        if name.endswith(".var"):
            values = np.abs(values) + 0.5
        elif len(shape) > 1:
            values /= np.sqrt(np.prod(shape[:-1]))
        arrays[name] = values.astype(np.float32)
    return arrays


@functools.cache
def foreign(name):
    """(our arrays, the same with the library's names) of one of `MODELS`."""
    library, part, settings, num_classes, prefixed = MODELS[name]
    arrays = random_arrays(part, settings, num_classes)
    return arrays, give(arrays, library_table(library, arrays, prefixed))
