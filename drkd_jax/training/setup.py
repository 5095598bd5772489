"""Builds from a plain config all that a run needs: sources, modules, optimiser, functions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from drkd_jax import distill, models
from drkd_jax.data.checking.findings import require_readable, require_usable
from drkd_jax.data.config import PipelineConfig, read_pipeline
from drkd_jax.data.plan import kept_indices, steps_per_epoch
from drkd_jax.data.sources import Source, open_source
from drkd_jax.data.sources.classes import with_classes
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import as_user_error
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.pixels import Pixels, read_pixels
from drkd_jax.paths import expand_config
from drkd_jax.step import schedule
from drkd_jax.step.gradients import GradientReport, gradient_report
from drkd_jax.step.settings import (
    EvalSettings,
    TrainSettings,
    eval_settings,
    set_keys,
    train_settings,
)
from drkd_jax.step.sharding import (
    check_batch_size,
    data_mesh,
    put_batch,
    put_everywhere,
    put_stacked,
)
from drkd_jax.step.state import Arrays, TrainState, new_state, split_module
from drkd_jax.step.train_step import Recipe, TrainStep, pmap_step, train_step
from drkd_jax.training.checks import check_canvases, check_parts, check_student
from drkd_jax.training.evaluate import Predict, predictor
from drkd_jax.training.starting import build_student, check_files
from drkd_jax.training.teacher import Teacher, check_head, check_heads, for_data, load_teacher
from drkd_jax.types import Batch
from drkd_jax.values import section

SECTIONS = ("seed", "data", "student", "teacher", "distill", "train", "eval")


@dataclasses.dataclass
class Run:
    """Everything built, nothing started."""

    config: dict[str, Any]
    train: TrainSettings
    eval: EvalSettings
    mesh: Mesh
    train_source: Source
    val_source: Source
    pipeline: PipelineConfig
    pixels: Pixels
    student_origin: str
    teacher: Teacher | None
    teacher_arrays: Arrays  # on the devices; None without a teacher
    distillation: distill.DistillConfig | None  # None without a teacher
    weights: dict[str, float]  # of the distillation terms
    strides: tuple[int, ...]  # of the compared levels, finest first
    steps: int
    steps_per_epoch: int
    decays: tuple[int, ...]
    recipe: Recipe
    state: TrainState
    step: TrainStep
    gradients: GradientReport | None  # if `train.log_gradients` is set
    predict: Predict
    warnings: list[str]
    of_length: list[str]  # those of them that depend on the length of the run

    def put(self, batch: Batch) -> Batch:
        """This process's rows of a batch, as `step` takes them."""
        place = put_stacked if self.train.parallel == "pmap" else put_batch
        return place(batch, self.mesh)

    @property
    def categories(self) -> list[list[Any]]:
        """[id, name] of each class, by label."""
        return [list(category) for category in self.train_source.categories]


class Teaching(NamedTuple):
    """The teacher, and the distiller between it and the student."""

    teacher: Teacher
    pixels: Pixels  # the teacher's input format
    distiller: distill.Distiller


def build_run(values: Mapping[str, Any]) -> Run:
    """Builds a run from its config (the keys of `recipes/common.py`, as plain nested dicts).

    Raises:
        UserError: something in the config, the data or the teacher cannot be used.
    """
    config = read_sections(values)
    settings, evaluation = train_settings(config["train"]), eval_settings(config.get("eval") or {})
    check_files(config)
    mesh = data_mesh()
    check_batch_size(settings.batch_size, mesh.size, jax.process_count())
    check_parts(settings, mesh.size)

    pixels = read_pixels(config["data"], settings.precision)
    pipeline = read_pipeline(config, settings.batch_size)
    train_source, val_source, warnings = open_sources(config, pipeline)
    per_epoch = steps_per_epoch(train_source, pipeline)

    steps = schedule.run_steps(settings, per_epoch)
    decays = schedule.decay_steps(settings, per_epoch)
    of_length = schedule.check(settings, steps, decays)
    rate = schedule.learning_rate(settings, decays, steps)
    tx = schedule.optimiser(settings, rate)

    names = [category.name for category in train_source.categories]
    student, origin = build_student(config, len(names), pixels.dtype, names)
    check_student(student, settings, pipeline)
    modules: dict[str, models.Detector | distill.Distiller] = {"student": student}
    teaching = build_teaching(config, student, train_source, pixels, pipeline)
    weights, phases = {}, distill.DistillConfig()
    strides: tuple[int, ...] = ()
    if teaching:
        modules["distiller"] = teaching.distiller
        weights = {name: float(weight) for name, weight in teaching.distiller.weights.items()}
        phases = teaching.distiller.config
        strides = tuple(pair.stride for pair in teaching.distiller.pairs)
        of_length += schedule.check_distillation(phases, steps)

    parts = {name: split_module(module, module.is_trained) for name, module in modules.items()}
    graphs = {name: part.graph for name, part in parts.items()}
    recipe = Recipe(
        graphs | ({"teacher": teaching.teacher.graph} if teaching else {}),
        {name: module.is_trained for name, module in modules.items()},
        weights,
        tx,
        rate,
        pixels,
        config["seed"],
        teaching.pixels if teaching else pixels,
        distill_factor=schedule.distill_factor(phases, steps),
        adaptation_steps=phases.adaptation_steps,
        ema=settings.ema,
        accumulate=settings.accumulate,
    )
    return Run(
        config=config,
        train=settings,
        eval=evaluation,
        mesh=mesh,
        train_source=train_source,
        val_source=val_source,
        pipeline=pipeline,
        pixels=pixels,
        student_origin=origin,
        teacher=teaching.teacher if teaching else None,
        teacher_arrays=put_everywhere(teaching.teacher.arrays, mesh) if teaching else None,
        distillation=phases if teaching else None,
        weights=weights,
        strides=strides,
        steps=steps,
        steps_per_epoch=per_epoch,
        decays=decays,
        recipe=recipe,
        state=put_everywhere(new_state(parts, tx, average=settings.ema > 0), mesh),
        step=(pmap_step if settings.parallel == "pmap" else train_step)(recipe, mesh),
        gradients=gradient_report(recipe, mesh) if settings.log_gradients else None,
        predict=predictor(parts["student"].graph, pixels, mesh, evaluation.least_limit),
        warnings=[*of_length, *machine_warnings(), *warnings],
        of_length=of_length,
    )


def build_teaching(
    config: Mapping[str, Any],
    student: models.Detector,
    source: Source,
    pixels: Pixels,
    pipeline: PipelineConfig,
) -> Teaching | None:
    """The frozen teacher and the distiller between it and the student; None for plain training.

    Args:
        config: config of the run.
        student: the student.
        source: the training data, to whose classes the teacher's are mapped by name.
        pixels: the student's input format.
        pipeline: settings of the loader.

    Raises:
        UserError: there is no teacher, it cannot be used, or it does not fit the student.
    """
    if config.get("distill") is None:
        return None
    if config.get("teacher") is None:
        raise UserError("config.distill is set and config.teacher is not: there is no teacher")
    crosskd = distill.distill_config(config["distill"]).terms.get("crosskd")
    if crosskd:
        check_head(crosskd, student, "student")
    classes = source.categories
    teacher = load_teacher(config["teacher"], len(classes), config["seed"], heads=bool(crosskd))
    teacher = for_data(teacher, classes)
    if crosskd:
        check_heads(crosskd, student, teacher, [name for _, name in classes])
    check_canvases(pipeline, teacher.detector.stride, "teacher")
    own = {**config["data"], **teacher.pixels}
    teacher_pixels = read_pixels(own, pixels.dtype, "config.teacher.data")
    if teacher_pixels != pixels:
        own_rule = f"it reads {teacher_pixels}, the student {pixels}"
        teacher = teacher._replace(origin=f"{teacher.origin}; {own_rule}")
    distiller = build_distiller(config, student, teacher, pixels.dtype)
    return Teaching(teacher, teacher_pixels, distiller)


def read_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config with paths expanded, JSON's lists as tuples, and no sections but `SECTIONS`.

    Raises:
        UserError: a section is unknown, or one that a run needs is missing.
    """
    config: dict[str, Any] = expand_config(as_tuples(dict(values)))
    for key, part in config.items():
        if key not in SECTIONS:
            raise UserError(f"config.{key}: no such part; there are {', '.join(SECTIONS)}")
        if key != "seed":
            section(f"config.{key}", part)
    for key in ("seed", "data", "student", "train"):
        if config.get(key) is None:
            raise UserError(
                f"config.{key} is missing: drkd_jax.recipes.common.base() has every key"
            )
    return config | {
        key: set_keys(config[key]) for key in ("student", "teacher") if config.get(key)
    }


def open_sources(
    config: Mapping[str, Any], pipeline: PipelineConfig
) -> tuple[Source, Source, list[str]]:
    """The data sets of a run; the second's classes are mapped to the first's by name.

    Returns:
        (`data.train`, `data.val`, lines about the classes).

    Raises:
        UserError: a set cannot be opened, has no usable box, or has files that would stop a run, or
            classes have no counterpart.
    """
    for key in ("train", "val"):
        if not config["data"].get(key):
            raise UserError(f"config.data.{key} is empty: name a set, as docs/data.md has them")
    train, val = (
        open_source(
            config["data"][key], pipeline.on_error, exif=pipeline.exif, depth=pipeline.depth
        )
        for key in ("train", "val")
    )
    val, notes = with_classes(val, train.categories, "config.data.val", "config.data.train")
    require_usable(val)
    most = (config.get("eval") or {}).get("max_images", 0) or len(val)
    read = kept_indices(train, pipeline), np.arange(min(most, len(val)))
    for key, source, which in zip(("train", "val"), (train, val), read, strict=True):
        require_readable(source, f"config.data.{key}", pipeline.on_error, which)
    return train, val, notes


def keep_programs(folder: str | Path) -> None:
    """Makes JAX cache compiled programs in a folder.

    Raises:
        UserError: the folder cannot be created.
    """
    path = Path(folder)
    with as_user_error(path):
        path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path.absolute()))
    # Small programs too: a start compiles hundreds of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def machine_warnings() -> list[str]:
    """Warnings about known problems of this machine's software."""
    version = tuple(map(int, re.findall(r"\d+", jax.lib.__version__)[:3]))
    if jax.default_backend() == "gpu" and (0, 10, 2) <= version <= (0, 11, 0):
        return [
            f"jaxlib {jax.lib.__version__} compiles RoIAlign's backward pass (float32 scatter-add) "
            "to a slow loop on GPUs; take Python 3.12 and jaxlib 0.11.1 or newer"
        ]
    return []


def build_distiller(
    config: Mapping[str, Any], student: models.Detector, teacher: Teacher, dtype: Any
) -> distill.Distiller:
    """The distiller of `config.distill` between two detectors, computing in `dtype`.

    Raises:
        UserError: wrong settings, or two pyramids without a common level.
    """
    settings = distill.distill_config(config["distill"])
    # A separate key, so that the student's initial values do not depend on the distiller.
    key = jax.random.fold_in(jax.random.key(config["seed"]), 1)
    # Not under jit: compiling its many small draws takes longer than executing them.
    return distill.Distiller(
        settings, student.spec, teacher.detector.spec, rngs=nnx.Rngs(key), dtype=dtype
    )
