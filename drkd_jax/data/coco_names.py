"""COCO 2017's 80 classes: their ids (1..90, with gaps) and names, in the annotation files' order.

TFDS keeps labels 0..79 and names; the ids that results are handed in with are only here.
"""

from __future__ import annotations

from drkd_jax.data.records import Category

_NAMES = {
    1: "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant",
    13: "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe",
    27: "backpack, umbrella",
    31: "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle",
    46: "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed",
    67: "dining table",
    70: "toilet",
    72: "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator",
    84: "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}

# Each row of _NAMES counts on from its first id.
COCO_CATEGORIES = tuple(
    Category(first + offset, name)
    for first, names in _NAMES.items()
    for offset, name in enumerate(names.split(", "))
)
