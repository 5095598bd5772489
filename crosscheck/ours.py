"""Our side of `crosscheck`: the same components as crosscheck/reference/components.py.

Each takes plain settings and arrays (differentiable inputs `x`, parameters `p`, constants `c`) and
returns named outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from drkd_jax import anchors as anchor_grid
from drkd_jax import boxes as coding
from drkd_jax import losses
from drkd_jax.distill.config import DistillConfig, InstanceRelationConfig, distill_config
from drkd_jax.distill.distiller import Distiller
from drkd_jax.distill.graph_unit import GraphUnit
from drkd_jax.distill.instance_relation import LearnedFilter, RandomFilter, RelationUnit
from drkd_jax.frozen import Frozen
from drkd_jax.ops.roi_align import roi_align
from drkd_jax.types import FeatureSpec

Arrays = Mapping[str, jax.Array]
Settings = Mapping[str, Any]
Component = Callable[[Settings, Arrays, Arrays, Arrays], dict[str, jax.Array]]
M = TypeVar("M", bound=nnx.Module)

# Each compiled case runs once, so compiling takes longer than computing.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
NUMBERS = nnx.Any(nnx.Param, Frozen)  # passed to the reference as parameters


def shapes(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a module by flat name, "student.0.state.kernel"."""
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(make), NUMBERS))
    named = {_name(path): tuple(slot.shape) for path, slot in flat}
    for name in ("teacher_scale.variance", "map_terms.mgd.calls"):  # from the batch; a count
        named.pop(name, None)
    return named


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def build(make: Callable[[], M], values: Arrays) -> M:
    """A module filled by flat name, also with traced values; all else is 0, variances 1."""
    graph, state = nnx.split(nnx.eval_shape(make))
    filled = []
    for path, slot in nnx.to_flat_state(state):
        rest = jnp.ones if path[-2:] == ("norm", "variance") else jnp.zeros
        name = _name(path)
        value = values[name] if name in values else rest(slot.shape, slot.dtype)
        filled.append((path, slot.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def make_unit(settings: Settings, channels: int) -> GraphUnit:
    """The graph unit of a case."""
    return GraphUnit(channels, settings["nodes"], normalize=settings["normalize"], rngs=nnx.Rngs(0))


def unit(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The graph unit with batch or running statistics."""
    running = {"norm.mean": c["running_mean"], "norm.variance": c["running_variance"]}
    module = build(partial(make_unit, settings, x["x"].shape[-1]), {**p, **running})
    maps = x["x"]
    pixels = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    mask = c["mask"].reshape(maps.shape[0], -1)
    phi = module(pixels, mask, groups=settings["groups"], train=settings["train"])
    return {
        "phi": jnp.where(mask[..., None], phi, 0),
        "running_mean": module.norm.mean[...],
        "running_variance": module.norm.variance[...],
    }


def make_filter(settings: Settings, inputs: int) -> LearnedFilter | RandomFilter:
    """The relation filter of a case."""
    if settings["filter"] == "random":
        return RandomFilter(inputs, 16, rngs=nnx.Rngs(0))
    return LearnedFilter(inputs, settings["rank"], rngs=nnx.Rngs(0))


def filter_(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The relation filter of one image's boxes."""
    boxes = x["x"]
    module = build(partial(make_filter, settings, boxes.shape[1]), p)
    return {"w": module(boxes[None], jnp.ones((1, len(boxes)), bool))[0]}


def similarity(settings: Settings) -> dict[str, Any]:
    """How the boxes of a case are compared."""
    if settings["similarity"] == "bilinear":
        return {"similarity": "bilinear"}
    return {key: settings[key] for key in ("similarity", "temperature", "diagonal", "embedding")}


def make_relation(settings: Settings, inputs: int) -> RelationUnit:
    """The relation unit of a case."""
    config = InstanceRelationConfig(
        filter=settings["filter"], filter_rank=settings["rank"], **similarity(settings)
    )
    return RelationUnit(inputs, config, rngs=nnx.Rngs(0))


def matrix(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The relation matrix of one image's boxes."""
    boxes = x["x"]
    module = build(partial(make_relation, settings, boxes.shape[1]), p)
    return {"psi": module.relation(boxes[None], jnp.ones((1, len(boxes)), bool))[0]}


def regions(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The regions of boxes, cut out of a map."""
    maps, boxes = x["x"], c["boxes"]
    how = settings["bins"], settings["samples"], settings["aligned"]
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    return {"regions": roi_align((maps,), boxes, levels, (settings["stride"],), *how)}


def config_of(settings: Settings) -> DistillConfig:
    """Distiller settings of a case, with trained teacher modules."""
    form = settings["form"]
    common = {"form": form, "teacher_modules": "trained"}
    values: dict[str, Any] = dict.fromkeys(
        ("pixel_relation", "instance_relation", "instance_feature")
    )
    if "pixel_relation" in settings["terms"]:
        values["pixel_relation"] = {
            **common,
            "compare": settings["compare"],
            "nodes": settings["nodes"],
            "normalize": settings["normalize"],
            "arithmetic": settings["arithmetic"],
        }
    if "instance_relation" in settings["terms"]:
        values["instance_relation"] = {
            **common,
            "filter": settings["filter"],
            "filter_rank": settings["rank"],
            **similarity(settings),
        }
    if "instance_feature" in settings["terms"]:
        values["instance_feature"] = {"form": form}
    return distill_config({**values, "standardize_teacher": settings["standardize"]})


def specs(settings: Settings, channels: tuple[int, int]) -> tuple[FeatureSpec, FeatureSpec]:
    """Both pyramids of a case."""
    strides = tuple(settings["strides"])
    kinds = ("lateral",) * len(strides)
    student, teacher = (FeatureSpec((n,) * len(strides), strides, kinds) for n in channels)
    return student, teacher


def make_distiller(settings: Settings, channels: tuple[int, int], dtype: Any) -> Distiller:
    """The distiller of a case."""
    both = specs(settings, channels)
    return Distiller(config_of(settings), *both, rngs=nnx.Rngs(0), dtype=dtype)


def compare_maps(distiller: Distiller, settings: Settings, x: Arrays, c: Arrays) -> dict[str, Any]:
    """The losses of a distiller on the maps "s0", "t0" and so on of a case."""
    count = len(settings["strides"])
    maps = [tuple(x[f"{side}{i}"] for i in range(count)) for side in "st"]
    targets = (c[name] for name in ("boxes", "valid", "sizes", "image_valid"))
    return distiller(*maps, *targets).losses


def terms(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The losses of a distiller that the settings select."""
    channels = x["s0"].shape[-1], x["t0"].shape[-1]
    distiller = build(partial(make_distiller, settings, channels, x["s0"].dtype), p)
    return compare_maps(distiller, settings, x, c)


def detection_losses(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """Focal loss, cross-entropies, L1 and smooth L1."""
    hot = jax.nn.one_hot(c["labels"], x["logits"].shape[1], dtype=bool)
    return {
        "focal": losses.focal(x["logits"], hot),
        "binary_cross_entropy": losses.binary_cross_entropy(x["logits"], hot),
        "cross_entropy": losses.cross_entropy(x["logits"], c["labels"]),
        "l1": losses.smooth_l1(x["boxes"], c["boxes"], 0),
        **{
            f"smooth_l1_{i}": losses.smooth_l1(x["boxes"], c["boxes"], beta)
            for i, beta in enumerate(settings["betas"])
        },
    }


def box_coding(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """Boxes encoded as deltas, and deltas decoded to boxes."""
    stds = tuple(settings["stds"])
    limits = settings["max_log"], settings["clamp_below"]
    return {
        "encode": coding.encode(c["anchors"], x["boxes"], stds),
        "decode": coding.decode(c["anchors"], x["deltas"], stds, *limits),
    }


def anchors(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """All anchors of a map."""
    base = anchor_grid.base_anchors(settings["size"], settings["ratios"], settings["scales"])
    grid = anchor_grid.grid(base, tuple(settings["shape"]), settings["stride"])
    return {"anchors": jnp.asarray(grid)}


def student_maps(p: Arrays, images: jax.Array) -> list[jax.Array]:
    """Maps of strides 4 and 8 by three convolutions, as in reference/steps.py."""
    x, maps = images, []
    for i in range(3):
        x = jax.lax.conv_general_dilated(
            x,
            p[f"student.conv{i}.kernel"],
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = x + p[f"student.conv{i}.bias"]
        maps.append(x)
        x = jax.nn.relu(x)
    return maps[1:]


def optimiser_steps(settings: Settings, x: Arrays, p: Arrays, c: Arrays) -> dict[str, jax.Array]:
    """The total loss at each step, and all parameters after the last."""
    channels = p["student.head"].shape[0], c["t0"].shape[-1]
    make = partial(make_distiller, settings, channels, c["images"].dtype)
    optimiser = optax.chain(
        optax.add_decayed_weights(settings["weight_decay"]),
        optax.trace(settings["momentum"]),
        optax.scale_by_learning_rate(settings["learning_rate"]),
    )

    def total(p: Arrays, step: jax.Array) -> jax.Array:
        module = build(make, {name.removeprefix("distiller."): value for name, value in p.items()})
        maps = student_maps(p, c["images"][step])
        given = {f"s{i}": value for i, value in enumerate(maps)}
        given |= {f"t{i}": c[f"t{i}"][step] for i in range(2)}
        found = compare_maps(module, settings, given, c)
        logits = jnp.matmul(maps[0], p["student.head"], precision=jax.lax.Precision.HIGHEST)
        loss = ((jax.nn.sigmoid(logits) - c["positive"]) ** 2).mean()
        return loss + sum(w * found[name] for name, w in settings["weights"].items())

    def one(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        p, moments = carry
        loss, gradient = jax.value_and_grad(total)(p, step)
        updates, moments = optimiser.update(gradient, moments, p)
        return (optax.apply_updates(p, updates), moments), loss

    steps = jnp.arange(settings["steps"])
    (p, _), found = jax.lax.scan(one, (dict(p), optimiser.init(dict(p))), steps)
    out = {f"loss {i + 1}": found[i] for i in range(settings["steps"])}
    return out | {f"after {name}": value for name, value in p.items()}


COMPONENTS: dict[str, Component] = {
    "unit": unit,
    "filter": filter_,
    "matrix": matrix,
    "regions": regions,
    "terms": terms,
    "detection_losses": detection_losses,
    "box_coding": box_coding,
    "anchors": anchors,
    "optimiser_steps": optimiser_steps,
}


def answer(
    function: Component, settings: Settings, arrays: Mapping[str, Arrays]
) -> dict[str, np.ndarray]:
    """Outputs of one case, and the gradient of their sum weighted by the arrays "w"."""
    x, p, c, w = (dict(arrays.get(kind, {})) for kind in "xpcw")

    def total(leaves: tuple[Arrays, Arrays]) -> tuple[jax.Array, Any]:
        outputs = function(settings, *leaves, c)
        weighted = [(outputs[name] * weight).sum() for name, weight in w.items()]
        return jnp.stack(weighted).sum(), outputs

    if w:
        gradient = jax.value_and_grad(total, has_aux=True)
        (_, outputs), (dx, dp) = jax.jit(gradient, compiler_options=FAST_COMPILE)((x, p))
    else:
        call = partial(function, settings, x, p, c)
        outputs = jax.jit(call, compiler_options=FAST_COMPILE)()
        dx, dp = {}, {}
    found = {f"out|{name}": value for name, value in outputs.items()}
    found |= {f"dx|{name}": value for name, value in dx.items()}
    found |= {f"dp|{name}": value for name, value in dp.items()}
    return {name: np.asarray(value) for name, value in found.items()}
