"""A case of the cross-check, and the random numbers it consists of.

Letters: B images, h w a map, C channels, G boxes of an image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck import ours

Arrays = dict[str, dict[str, np.ndarray]]

FORWARD = {"float32": 1e-5, "float64": 1e-10}
GRADIENT = {"float32": 1e-4, "float64": 1e-10}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table, in one precision.

    Attributes:
        name: unique name, without "|".
        component: a name in COMPONENTS of ours.py (official.py) and of the reference.
        settings: plain values that fit in JSON.
        arrays: by kind ("x" inputs, "p" parameters, "c" constants, "w" weights of the outputs in
            the differentiated sum) and name.
        forward: tolerance of the outputs, as a relative norm.
        gradient: the same for the gradients.
    """

    name: str
    component: str
    settings: dict[str, Any]
    arrays: Arrays
    forward: float
    gradient: float


class Maker:
    """Draws random numbers of one precision."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.random = np.random.default_rng(0)

    def normal(self, *shape: int, scale: float | int = 1.0) -> np.ndarray:
        """Normally distributed numbers."""
        return (scale * self.random.standard_normal(shape)).astype(self.dtype)

    def parameters(self, build: Callable[[], Any]) -> dict[str, np.ndarray]:
        """Random parameters for one of our modules, of the usual initial size."""
        found = {}
        for name, shape in ours.shapes(build).items():
            found[name] = self.normal(*shape, scale=0.1 if len(shape) == 1 else shape[0] ** -0.5)
            if name.endswith("norm.scale"):
                found[name] += 1
        return found

    def boxes(self, canvas: tuple[int, int], *shape: int) -> np.ndarray:
        """Boxes of all sizes on the canvas, some thinner than a map pixel."""
        height, width = canvas
        low = self.random.uniform(0, 0.7, (*shape, 2))
        side = np.exp(self.random.uniform(math.log(0.02), math.log(0.9), (*shape, 2)))
        boxes = np.concatenate([low, np.minimum(low + side, 1)], -1)
        return (boxes * (width, height, width, height)).astype(np.float32)

    def case(self, name: str, component: str, settings: dict[str, Any], arrays: Arrays) -> Case:
        """A case with the tolerances of this precision."""
        tolerances = FORWARD[self.dtype], GRADIENT[self.dtype]
        if component == "optimiser_steps":
            tolerances = (GRADIENT[self.dtype],) * 2
        return Case(f"{name} {self.dtype}", component, settings, arrays, *tolerances)


def targets(make: Maker, canvas: tuple[int, int], images: int, boxes: int) -> dict[str, Any]:
    """Sizes and boxes of a batch; its very first box and a few of the last image are invalid."""
    valid = np.ones((images, boxes), bool)
    valid[-1, 2:] = False
    valid[0, 0] = False
    sizes = np.tile(np.asarray(canvas, np.int32), (images, 1))
    sizes[-1] = canvas[0] * 3 // 4, canvas[1] - 13
    return {
        "sizes": sizes,
        "boxes": make.boxes(canvas, images, boxes),
        "valid": valid,
        "image_valid": np.ones(images, bool),
    }


def maps(
    make: Maker, canvas: tuple[int, int], strides: tuple[int, ...], images: int, s: int, t: int
) -> dict[str, np.ndarray]:
    """Maps "s0", "t0" and so on of both sides, with s and t channels."""
    return {
        f"{side}{i}": make.normal(images, -(-canvas[0] // k), -(-canvas[1] // k), channels)
        for i, k in enumerate(strides)
        for side, channels in (("s", s), ("t", t))
    }
