"""The distillers of whole maps (distill/baselines/map_term.py): their cases, and our answers.

A new one needs an entry in `CONFIGS` here and a file in reference/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from crosscheck import ours
from crosscheck.case import Case, Maker, maps, targets
from drkd_jax.distill.baselines.mgd import kept_pixels
from drkd_jax.distill.config import TERMS, distill_config
from drkd_jax.distill.distiller import Distiller

CONFIGS: dict[str, dict[str, Any]] = {
    "feature_imitation": {},
    "pkd": {},
    "cwd": {"temperature": 0.7},
    "mgd": {"masked": 0.45},
    "fgd": {
        "background": 0.5,
        "attention": 0.8,
        "relation": 0.02,
        "temperature": 0.5,
    },
}


def make_distiller(settings: ours.Settings, channels: tuple[int, int], dtype: Any) -> Distiller:
    """A distiller with only the case's term."""
    values: dict[str, Any] = {
        **dict.fromkeys(TERMS),
        "standardize_teacher": settings["standardize"],
    }
    values[settings["term"]] = {**settings["config"], "weight": 1.0}
    both = ours.specs(settings, channels)
    return Distiller(distill_config(values), *both, rngs=nnx.Rngs(0), dtype=dtype)


def image_keys(positions: jax.Array | np.ndarray) -> jax.Array:
    """One random key per image."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), positions)


def map_term(
    settings: ours.Settings, x: ours.Arrays, p: ours.Arrays, c: ours.Arrays
) -> dict[str, jax.Array]:
    """The loss of one distiller of whole maps."""
    channels = x["s0"].shape[-1], x["t0"].shape[-1]
    module = ours.build(partial(make_distiller, settings, channels, x["s0"].dtype), p)
    sides = [tuple(x[f"{side}{i}"] for i in range(len(settings["strides"]))) for side in "st"]
    given = (c[name] for name in ("boxes", "valid", "sizes", "image_valid"))
    return module(*sides, *given, keys=image_keys(c["positions"])).losses


def _case(make: Maker, term: str, name: str, channels: tuple[int, int], **more: Any) -> Case:
    canvas, images, strides = (96, 128), 4, (8, 16)
    settings: dict[str, Any] = {
        "term": term,
        "strides": strides,
        "standardize": True,
        "config": CONFIGS[term],
    }
    settings |= more
    c = targets(make, canvas, images, 4)
    c["image_valid"][1] = False  # one that only fills up the batch
    c["valid"][2] = False  # one without boxes
    x = maps(make, canvas, strides, images, *channels)
    if term == "mgd":
        c["positions"] = np.arange(3, 3 + images, dtype=np.int32)
        for i in range(len(strides)):
            shape, masked = x[f"t{i}"].shape[1:3], settings["config"]["masked"]
            c[f"kept{i}"] = np.asarray(kept_pixels(image_keys(c["positions"]), i, shape, masked))
    else:
        c["positions"] = np.zeros(images, np.int32)
    build = partial(make_distiller, settings, channels, make.dtype)
    w = {term: np.ones((), make.dtype)}
    return make.case(
        name, "map_term", settings, {"x": x, "p": make.parameters(build), "c": c, "w": w}
    )


def map_term_cases(dtype: str) -> Iterator[Case]:
    """Each distiller of whole maps: with f, and without f in the teacher's own units.

    Args:
        dtype: "float32" or "float64".
    """
    make = Maker(dtype)
    for term in CONFIGS:
        yield _case(make, term, f"{term}, 8 to 12 channels", (8, 12))
        yield _case(make, term, f"{term}, equal channels, raw", (6, 6), standardize=False)


COMPONENTS: dict[str, ours.Component] = {"map_term": map_term}
