"""Loads parameters of the author's release into our distiller.

Source: names and layouts of mmdet/models/detectors/two_stage.py and GloRe.py of the release
(`nizhenliang/Dual-Relation-Knowledge-Distillation`). Only the release's two-stage path runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from drkd_jax.distill.distiller import Distiller
from drkd_jax.errors import UserError
from drkd_jax.types import Array

NO_FILTER = (
    "the author's weights hold no relation filter (it is drawn anew at each step there): "
    "the filters keep the numbers that they were made with"
)

Entry = tuple[str, tuple[Any, ...], str]  # name there, path here, layout


def _linear(there: str, here: tuple[Any, ...], kind: str = "matrix") -> Iterator[Entry]:
    yield f"{there}.weight", (*here, "kernel"), kind
    yield f"{there}.bias", (*here, "bias"), "vector"


def unit_entries(there: str, here: tuple[Any, ...]) -> Iterator[Entry]:
    """The parameters of one graph unit (GloRe_Unit_2D there)."""
    yield from _linear(f"{there}.conv_state", (*here, "state"))
    yield from _linear(f"{there}.conv_proj", (*here, "projection"))
    yield from _linear(f"{there}.gcn.conv1", (*here, "adjacency"))
    yield f"{there}.gcn.conv2.weight", (*here, "mix"), "matrix"
    yield f"{there}.conv_extend.weight", (*here, "extend", "kernel"), "matrix"
    for name, ours in (
        ("weight", "scale"),
        ("bias", "bias"),
        ("running_mean", "mean"),
        ("running_var", "variance"),
    ):
        yield f"{there}.blocker.{name}", (*here, "norm", ours), "vector"


def relation_entries(there: str, here: tuple[Any, ...]) -> Iterator[Entry]:
    """The parameters of one relation unit (ObjectRelation_1 there)."""
    for name, ours in (("theta", "first"), ("phi", "second"), ("g", "value")):
        yield from _linear(f"{there}.{name}.0", (*here, ours), "from regions")
    yield f"{there}.W.weight", (*here, "back", "kernel"), "to regions"
    yield f"{there}.W.bias", (*here, "back", "bias"), "region"


def _entries(distiller: Distiller) -> Iterator[Entry]:
    if distiller.pixel_relation is not None:
        here = ("pixel_relation",)
        for i in range(len(distiller.pairs)):
            yield from unit_entries(f"student_non_local.{i}", (*here, "student", i))
            yield from unit_entries(f"teacher_non_local.{i}", (*here, "teacher", i))
            yield from _linear(f"non_local_adaptation.{i}", (*here, "adaptation", i))
    near = range(len(distiller.pairs[: distiller.config.region_levels]))
    if distiller.instance_relation is not None:
        here = ("instance_relation",)
        for i in near:
            yield from relation_entries(f"student_relation.{i}", (*here, "student", i))
            yield from relation_entries(f"teacher_relation.{i}", (*here, "teacher", i))
            yield from _linear(f"relation_adaptation.{i}", (*here, "adaptation", i))
    if distiller.instance_feature is not None:
        for i in near:
            yield from _linear(f"for_adaptation.{i}", ("instance_feature", "adaptation", i))


def convert(value: Array, layout: str, size: int) -> Array:
    """One array from the author's layout to ours.

    Args:
        value: a convolution's or linear layer's weight (outputs first), or a vector.
        layout: "matrix" or "vector"; or, for flattened regions, which are channel-major there and
            bin-major here, "from regions", "to regions" or "region".
        size: bins along each side of a region.
    """
    if layout == "vector":
        return value
    if layout == "region":
        return value.reshape(-1, size * size).T.reshape(-1)
    value = value.reshape(value.shape[0], value.shape[1])
    if layout == "from regions":
        value = value.reshape(value.shape[0], -1, size * size).swapaxes(1, 2)
        return value.reshape(value.shape[0], -1).T
    if layout == "to regions":
        value = value.reshape(-1, size * size, value.shape[1]).swapaxes(0, 1)
        return value.reshape(-1, value.shape[2]).T
    return value.T


def load_official(distiller: Distiller, state_dict: Mapping[str, Any]) -> list[str]:
    """Loads the author's parameters into a distiller of the official form, in place.

    Args:
        distiller: for two-stage pyramids, with every term in the official form and separate
            modules for each side.
        state_dict: arrays (or tensors) by name; other parts of a detector's checkpoint are ignored.

    Returns:
        Notes for the user, as sentences: for instance that the weights hold no relation filter.

    Raises:
        UserError: a name is missing, a shape does not fit, or the distiller has another form.
    """
    for name, settings in distiller.config.terms.items():
        if name in distiller.map_terms:  # the author's release has no other distillers
            continue
        shared = getattr(settings, "teacher_modules", "trained") == "shared"
        if settings.form != "official" or shared:
            raise UserError(
                f"load_official needs distill.{name}.form = 'official' and teacher modules of "
                "their own."
            )
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    slots = dict(nnx.to_flat_state(nnx.state(distiller)))
    size = distiller.config.region_size
    for there, here, layout in _entries(distiller):
        if there not in given:
            raise UserError(
                f"the author's weights lack {there}: it needs a two-stage detector with its "
                "distillation modules, as the author's training saves it."
            )
        value = given[there]
        value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
        value = convert(jnp.asarray(value), layout, size)
        slot = slots[here]
        if value.shape != slot.shape:
            raise UserError(
                f"{there} comes to shape {value.shape} where this distiller has {slot.shape}: "
                "channels, nodes or embedding differ from the author's."
            )
        slots[here] = slot.replace(value)
    nnx.update(distiller, nnx.from_flat_state(slots))
    relation = distiller.instance_relation
    return [NO_FILTER] if relation is not None and relation.config.filter != "none" else []
