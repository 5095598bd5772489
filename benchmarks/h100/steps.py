"""A recipe's training step with abstract arrays: no images are read, no weights are made.

It is what `training.setup.build_run` builds from a recipe, without data and values; the tests
compare the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from drkd_jax import distill, models
from drkd_jax.errors import UserError
from drkd_jax.models.build import fill_settings
from drkd_jax.models.detector import Detector
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.pixels import read_pixels
from drkd_jax.ops import roi_tiles
from drkd_jax.recipes.finding import load_recipe
from drkd_jax.step import schedule
from drkd_jax.step.settings import TrainSettings, set_keys, train_settings
from drkd_jax.step.sharding import check_batch_size, replicated, split
from drkd_jax.step.state import SplitModule, TrainState, new_state, split_module
from drkd_jax.step.train_step import Recipe, train_step
from drkd_jax.training.checks import check_parts
from drkd_jax.training.setup import build_distiller
from drkd_jax.training.teacher import Teacher
from drkd_jax.types import Batch

CLASSES = 80  # in COCO
IMAGES = 117266  # images with a box in COCO 2017: the schedule's epoch

# The models of the files that recipes name as teachers, as they would be read from the files.
TEACHERS: dict[str, dict[str, Any]] = {
    "retinanet_x101_64x4d": {
        "detector": "retinanet",
        "backbone": {"depth": 101, "groups": 64, "group_width": 4, "norm": "frozen_bn"},
        "extra": "conv_c5",
    },
    "faster_rcnn_x101_64x4d": {
        "detector": "faster_rcnn",
        "backbone": {"depth": 101, "groups": 64, "group_width": 4, "norm": "frozen_bn"},
        "extra": "pool",
    },
    "cascade_mask_rcnn_x101_32x4d_fpn_dconv": {
        "detector": "cascade_rcnn",
        "backbone": {
            "depth": 101,
            "groups": 32,
            "group_width": 4,
            "dcn": "v1",
            "norm": "frozen_bn",
        },
        "extra": "pool",
    },
}


class Step(NamedTuple):
    """The inputs of the compilation, without values."""

    recipe: Recipe
    state: TrainState
    teacher: Any  # arrays, or None
    batch: Batch
    student: Detector


def read_config(recipe: str, *, plain: bool, precision: str, batch_size: int) -> dict[str, Any]:
    """A recipe's config as plain values.

    Args:
        recipe: name or file, as for ``--config``.
        plain: leave teacher and distillation out.
        precision: "bfloat16" or "float32", of student and teacher.
        batch_size: images per step, over all devices.

    Raises:
        UserError: there is no such recipe.
    """
    config: dict[str, Any] = as_tuples(load_recipe(recipe).to_dict())
    config["train"] |= {"precision": precision, "batch_size": batch_size}
    if plain:
        config |= {"teacher": None, "distill": None}
    if config["teacher"] is not None:
        config["teacher"] |= {"dtype": precision}
    return config


def abstract_step(
    config: Mapping[str, Any], *, classes: int = CLASSES, images: int = IMAGES, devices: int = 1
) -> Step:
    """The step of a config without data and values.

    Args:
        config: plain values, as from `read_config`.
        classes: number of classes in the data.
        images: number of images per epoch.
        devices: number of devices that share the batch.

    Raises:
        UserError: a setting cannot be used, or the teacher's model is not known here.
    """
    config = dict(config)
    config |= {key: set_keys(config[key]) for key in ("student", "teacher") if config[key]}
    settings = train_settings(config["train"])
    check_batch_size(settings.batch_size, devices)
    check_parts(settings, devices)
    pixels = read_pixels(config["data"], settings.precision)
    per_epoch = -(-images // settings.batch_size)
    steps = schedule.run_steps(settings, per_epoch)
    rate = schedule.learning_rate(settings, schedule.decay_steps(settings, per_epoch), steps)
    tx = schedule.optimiser(settings, rate)
    of_student = {key: value for key, value in config["student"].items() if key != "init"}
    student = models.abstract_detector(of_student, classes, dtype=pixels.dtype)
    parts = {"student": split_module(student, student.is_trained)}
    filters: dict[str, Any] = {"student": student.is_trained}
    graphs = {"student": parts["student"].graph}
    teacher, weights, phases = None, {}, distill.DistillConfig()
    if config["distill"] is not None:
        teacher = abstract_teacher(config["teacher"])
        distiller = nnx.eval_shape(lambda: build_distiller(config, student, teacher, pixels.dtype))
        parts["distiller"] = split_module(distiller, distiller.is_trained)
        filters["distiller"] = distiller.is_trained
        graphs |= {"distiller": parts["distiller"].graph, "teacher": teacher.graph}
        weights = {name: float(weight) for name, weight in distiller.weights.items()}
        phases = distiller.config
    recipe = Recipe(
        graphs,
        filters,
        weights,
        tx,
        rate,
        pixels,
        config["seed"],
        pixels,
        distill_factor=schedule.distill_factor(phases, steps),
        adaptation_steps=phases.adaptation_steps,
        ema=settings.ema,
        accumulate=settings.accumulate,
    )
    state = _abstract_state(parts, recipe, settings)
    arrays = teacher.arrays if teacher else None
    return Step(recipe, state, arrays, _abstract_batch(config, settings), student)


def abstract_teacher(settings: Mapping[str, Any]) -> Teacher:
    """The frozen teacher as `training.teacher.load_teacher` returns it: no heads, norms folded.

    Args:
        settings: `config.teacher`, with either a model or a checkpoint of `TEACHERS`.

    Raises:
        UserError: it has neither.
    """
    own = ("checkpoint", "init", "evaluate", "dtype", "data", "prefix")
    model = {key: value for key, value in settings.items() if key not in own}
    if "detector" not in model:
        file = str(settings.get("checkpoint", ""))
        found = [model for name, model in TEACHERS.items() if name in file]
        if not found:
            raise UserError(
                f"config.teacher.checkpoint = {file}: no weights are read here, and the models "
                f"that are known by their file names are {', '.join(TEACHERS)}; give the model by "
                "config.teacher.detector and config.teacher.backbone"
            )
        model = found[0]
    filled = fill_settings(model)[1]
    backbone = filled.backbone
    if backbone.norm in ("frozen_bn", "bn"):
        frozen = backbone.num_frozen
        backbone = dataclasses.replace(backbone, norm="folded", norm_batch=0, frozen_stages=frozen)
        filled = dataclasses.replace(filled, backbone=backbone)
    dtype = jnp.dtype(settings.get("dtype", "bfloat16"))
    detector = nnx.eval_shape(lambda: FeatureExtractor(filled, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(detector)

    def kept(leaf: Any) -> jax.ShapeDtypeStruct:
        narrow = len(leaf.shape) > 1 and leaf.dtype == jnp.float32
        return jax.ShapeDtypeStruct(leaf.shape, dtype if narrow else leaf.dtype)

    arrays = jax.tree.map(kept, nnx.as_pure(state))
    return Teacher(detector, graph, arrays, "abstract", (), {})


def least_trips(step: Step) -> dict[str, int]:
    """The least trips of loops by part of the program, as far as the settings determine them.

    RoIAlign reads every sampled region by at least one tile, a fixed number per image and round.
    """
    sampler = getattr(step.student.settings, "sampler", None)
    if sampler is None:
        return {}
    return {"RoIAlign": -(-sampler.roi // roi_tiles.ROUND)}


def lower(step: Step, mesh: Mesh) -> Any:
    """Lowers the product's jitted step for CUDA, as it would be called on a mesh."""
    everywhere, spread = replicated(mesh), split(mesh)

    def on(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    traced = train_step(step.recipe, mesh).trace(
        on(step.state, everywhere), on(step.teacher, everywhere), on(step.batch, spread)
    )
    return traced.lower(lowering_platforms=("cuda",))


def _abstract_state(
    parts: Mapping[str, SplitModule], recipe: Recipe, settings: TrainSettings
) -> TrainState:
    def made(params: Any, rest: Any) -> TrainState:
        whole = {
            name: SplitModule(part.graph, params[name], rest[name]) for name, part in parts.items()
        }
        return new_state(whole, recipe.tx, average=settings.ema > 0)

    params = {name: part.params for name, part in parts.items()}
    rest = {name: part.model_state for name, part in parts.items()}
    return jax.eval_shape(made, params, rest)


def _abstract_batch(config: Mapping[str, Any], settings: TrainSettings) -> Batch:
    """A batch of the first canvas, with all rows for ground truth."""
    (height, width), B = config["data"]["canvases"][0], settings.batch_size
    G, S = config["data"]["max_boxes"], jax.ShapeDtypeStruct
    return Batch(
        images=S((B, height, width, 3), jnp.uint8),
        sizes=S((B, 2), jnp.int32),
        flip=S((B,), jnp.bool_),
        boxes=S((B, G, 4), jnp.float32),
        labels=S((B, G), jnp.int32),
        valid=S((B, G), jnp.bool_),
        image_valid=S((B,), jnp.bool_),
        index=S((B,), jnp.int32),
        scale=S((B, 2), jnp.float32),
    )
