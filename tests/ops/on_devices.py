"""RoIAlign, matching and proposals on several devices: rounds, results and traffic, as JSON.

Called by test_roi_align.py with 4 devices.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drkd_jax.models.conventions import MMDET
from drkd_jax.models.rpn import propose
from drkd_jax.ops import roi_tiles
from drkd_jax.ops.matching import match_boxes
from drkd_jax.ops.platform import tracing_for
from drkd_jax.ops.roi_align import roi_align
from drkd_jax.ops.roi_plan import How, Plan
from drkd_jax.ops.spread import spread_over
from drkd_jax.step.sharding import data_mesh, split
from tests.training.gathered import gathered

B, SIDE, C, R = 8, 64, 8, 12


def read(maps: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Regions, and the gradient of half their sum of squares."""

    def half(maps: jax.Array) -> tuple[jax.Array, jax.Array]:
        levels = jnp.zeros(boxes.shape[:2], jnp.int32)
        found = roi_align((maps,), boxes, levels, (4,), 5, 0)
        return 0.5 * (found**2).sum(), found

    (_, found), gradient = jax.value_and_grad(half, has_aux=True)(maps)
    return found, gradient


def rounds(maps: jax.Array, boxes: jax.Array) -> int:
    """Trips of the gradient's loop for these images."""
    with plans() as found:
        roi_align((maps,), boxes, jnp.zeros(boxes.shape[:2], jnp.int32), (4,), 5, 0)
    return int(roi_tiles.num_rounds(found[0], roi_tiles._form(len(boxes), How(5, 0), C)))


def crossing(given: tuple[np.ndarray, np.ndarray], mesh: Mesh | None) -> int:
    """Number of collectives in proposing, matching and reading regions, image by image."""

    def both(maps: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = boxes.sum(-1)
        found = propose(
            *((x,) for x in (scores, jnp.zeros_like(boxes), np.ones(boxes.shape[1:]))),
            jnp.full((B, 2), 2 * SIDE, jnp.int32),
            pre_nms=R,
            max_out=R,
            nms_threshold=0.5,
            convention=MMDET,
        )
        levels = jnp.zeros(boxes.shape[:2], jnp.int32)
        there = boxes[..., 0] < SIDE
        matches = match_boxes(given[1][0], boxes, there, 0.5, 0.4, 0.0, there)
        regions = roi_align((maps,), boxes, levels, (4,), 5, 0)
        return found.boxes, regions, matches

    with spread_over(mesh):
        placed = jax.device_put(given, split(data_mesh()))
        text = jax.jit(both).lower(*placed).compile().as_text()
    return len(re.findall(r" (?:all-reduce|all-gather|collective-permute)\(", text))


@contextlib.contextmanager
def plans() -> Iterator[list[Plan]]:
    """Records the plans for reading regions, without reading any."""
    found = []

    def read(flats: tuple[jax.Array, ...], plan: Plan, how: How) -> tuple[jax.Array, ...]:
        found.append(plan)
        shape = (*plan.base.shape, how.bins, how.bins)
        return tuple(jnp.zeros((*shape, x.shape[-1]), x.dtype) for x in flats)

    with mock.patch.object(roi_tiles, "read", read):
        yield found


if __name__ == "__main__":
    rng, mesh = np.random.default_rng(0), data_mesh()
    maps = rng.normal(size=(B, SIDE, SIDE, C)).astype(np.float32)
    corner = rng.uniform(0, 2 * SIDE, (B, R, 2))
    sides = rng.uniform(8, 2 * SIDE, (B, R, 2))
    given = maps, np.concatenate([corner, corner + sides], -1).astype(np.float32)
    with tracing_for("gpu"), mock.patch.object(roi_tiles, "ROUND", 16):
        everywhere = jax.jit(read)
        spread = everywhere.lower(*jax.device_put(given, split(mesh))).compile()
        found = spread(*jax.device_put(given, split(mesh)))
        alone = everywhere(*given)
        number = rounds(*given)
        most = max(rounds(*(x[i : i + 2] for x in given)) for i in range(0, B, 2))
    off = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, alone, strict=True)]
    result = {"devices": mesh.size, "rounds": number, "alone": most, "off": off}
    text = spread.as_text()
    result |= {"gathered": max(gathered(text), default=0), "map": maps.nbytes // B}
    result |= {"left to itself": crossing(given, None), "by device": crossing(given, mesh)}
    print(json.dumps(result))
