"""Finds a kernel's part of the program by the functions that it comes from.

XLA fuses across parts: a fused kernel counts for the part that its last operation comes from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.h100.hlo import Frame

#: The parts in the order of a table.
PARTS = (
    "images",
    "student backbone",
    "student pyramid",
    "teacher",
    "heads",
    "matching",
    "proposals",
    "NMS",
    "sampling",
    "RoIAlign",
    "detection losses",
    "pixel relation",
    "instance relation",
    "instance feature",
    "distillation RoIAlign",
    "other distillation",
    "optimiser",
    "between GPUs",
    "rest",
)
BETWEEN = "between GPUs"
REST = "rest"

_TERMS = {
    **dict.fromkeys(
        ("pixel_relation", "gram", "gram_distance", "gram_embedding", "graph_unit"),
        "pixel relation",
    ),
    "instance_relation": "instance relation",
    "instance_feature": "instance feature",
}
# Rules for file and function: the innermost line with a matching rule decides, by the first one.
_RULES = (
    ("step/train_step", "_update|norm|moved_average", "optimiser"),
    ("step/schedule", "", "optimiser"),
    ("models/pixels|ops/images", "", "images"),
    ("ops/nms", "", "NMS"),
    ("ops/matching|anchors", "", "matching"),
    ("models/dense", "assign|level_anchors", "matching"),
    ("models/rpn", "_?propose", "proposals"),
    ("models/rpn", "sample_anchors", "sampling"),
    ("ops/sampling", "", "sampling"),
    ("models/roi_head", "sample_regions", "sampling"),
    ("ops/roi_.*", "", "RoIAlign"),
    ("models/roi_head", "pool", "RoIAlign"),
    ("losses", "", "detection losses"),
    ("models/.*", ".*_losses|losses|losses_at|losses_after", "detection losses"),
    ("models/(retina_head|rpn|roi_head)", "", "heads"),
    ("models/fpn", "", "student pyramid"),
    ("models/(resnet|norm)", "", "student backbone"),
)


def own_frames(stack: Sequence[Frame]) -> list[tuple[str, str, int]]:
    """This package's lines, innermost first: file without folder and ending, function, line."""
    found = ((re.search(r"/drkd_jax/(.+)\.py$", one.file), one) for one in stack)
    return [(file[1], one.function, one.line) for file, one in found if file]


def part_of(stack: Sequence[Frame]) -> str:
    """One of `PARTS`; "rest" if no line of the package is known.

    Args:
        stack: the lines, innermost first.
    """
    frames = [(file, function.split(".")[-1]) for file, function, _ in own_frames(stack)]
    files = [file.removeprefix("distill/") for file, _ in frames if file.startswith("distill/")]
    if files:
        return _distillation(files, [file for file, _ in frames])
    if any(name in ("_teacher_features", "for_teacher") for _, name in frames):
        return "teacher"
    for own, name in frames:
        for file, function, part in _RULES:
            if re.fullmatch(file, own) and (not function or re.fullmatch(function, name)):
                return part
    return REST


def is_backward(op_name: str) -> bool:
    """Whether an operation belongs to the gradient."""
    return "transpose(" in op_name


def _distillation(files: list[str], all_files: list[str]) -> str:
    if any(file.startswith("ops/roi_") for file in all_files):
        return "distillation RoIAlign"
    # Outermost first: a term's own file comes before those that it uses.
    return next((_TERMS[file] for file in reversed(files) if file in _TERMS), "other distillation")
