"""Our side of `crosscheck --official`: our modules with the author's weight names.

The other side is crosscheck/reference/official.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crosscheck.official_weights import convert, load_official, relation_entries, unit_entries
from crosscheck.ours import (
    Arrays,
    Component,
    Settings,
    build,
    compare_maps,
    make_distiller,
    make_unit,
)
from drkd_jax.distill.config import InstanceRelationConfig
from drkd_jax.distill.instance_relation import RANDOM_FILTER_ROWS, RelationUnit


def _convert_all(entries: Any, p: Arrays) -> dict[str, jax.Array]:
    """Converts the author's parameters to our flat names (without running statistics)."""
    return {
        ".".join(map(str, here)): convert(p[there], layout, 3)
        for there, here, layout in entries
        if there in p
    }


def official_unit(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The author's GloRe unit."""
    values = _convert_all(unit_entries("unit", ()), p)
    module = build(partial(make_unit, settings, x["x"].shape[-1]), values)
    maps = x["x"]
    pixels = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    phi = module(pixels, jnp.ones(pixels.shape[:2], bool), train=settings["train"])
    return {"phi": phi.reshape(maps.shape)}


def _padded_filter(weight: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The author's filter layer in the shape of our fixed one; unused outputs are 0."""
    rest = RANDOM_FILTER_ROWS - len(weight)
    kernel = convert(weight, "from regions", 3)
    return jnp.pad(kernel, ((0, 0), (0, rest))), jnp.pad(bias, (0, rest))


def official_relation(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The author's relation class with a given filter."""
    flat = x["x"].reshape(len(x["x"]), -1)
    config = InstanceRelationConfig(form="official")
    values = _convert_all(relation_entries("relation", ()), p)
    layer = c["relation.filter.weight"], c["relation.filter.bias"]
    values["filter.kernel"], values["filter.bias"] = _padded_filter(*layer)
    inputs = flat.shape[1]
    module = build(lambda: RelationUnit(inputs, config, rngs=nnx.Rngs(0)), values)
    psi = module.relation(flat[None], jnp.ones((1, len(flat)), bool))
    z = module.enhance(flat[None], psi)
    return {"z": z[0].reshape(x["x"].shape), "psi": psi[0]}


def official_losses(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The author's three losses, from our distiller filled by `load_official`."""
    channels = x["s0"].shape[-1], x["t0"].shape[-1]
    values = {}
    for side in ("student", "teacher"):
        for i in range(2):
            name = f"{side}_relation.{i}.filter"
            layer = c[f"{name}.weight"], c[f"{name}.bias"]
            ours = f"instance_relation.{side}.{i}.filter"
            values[f"{ours}.kernel"], values[f"{ours}.bias"] = _padded_filter(*layer)
    distiller = build(partial(make_distiller, settings, channels, x["s0"].dtype), values)
    load_official(distiller, {**p, **c})
    return compare_maps(distiller, settings, x, c)


COMPONENTS: dict[str, Component] = {
    "official_unit": official_unit,
    "official_relation": official_relation,
    "official_losses": official_losses,
}
