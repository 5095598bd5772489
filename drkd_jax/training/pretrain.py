"""`teacher_modules = "pretrained"`: trains the teacher's graph units inside the frozen teacher.

    images -> backbone, pyramid -> t_i -> sigma_i * phi_i(t_i / sigma_i) -> heads -> detection loss

Only the units are trained: they learn relations between pixels that help the teacher to detect.
Each starts as the identity (batch norm with scale 0), so that the teacher is unchanged at first.
sigma_i is the map's standard deviation if the distiller divides by it, else 1: a unit's input is
then the same as in the distillation. Relation units of boxes are not trained here, since no head of
the teacher reads a relation matrix.

Every eighth training image is held out to measure the effect. If the phase is interrupted, it
starts again; if it was finished, its result is read from the work folder. Batches are processed in
the same number of parts as the run's (`train.accumulate`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from drkd_jax.data.pipeline import TrainIterator, train_loader
from drkd_jax.data.plan import kept_indices, steps_per_epoch
from drkd_jax.data.sources import Part
from drkd_jax.data.sources.records import Source
from drkd_jax.distill import DistillConfig, Distiller
from drkd_jax.distill.layers import pixel_mask
from drkd_jax.distill.teacher_side import variance
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.processes import broadcast, from_all
from drkd_jax.models.arrays import flatten, unflatten
from drkd_jax.step import schedule
from drkd_jax.step.accumulation import Gradient, accumulate, split_batch
from drkd_jax.step.settings import TrainSettings
from drkd_jax.step.sharding import put_batch, put_everywhere, replicated
from drkd_jax.step.state import Arrays, SplitModule, TrainState, merge_module, split_module
from drkd_jax.step.train_step import image_keys
from drkd_jax.training.kept_units import UNITS_FILE, Pretrained, read_units, write_units
from drkd_jax.training.setup import Run
from drkd_jax.training.teacher import Teacher, for_data, load_teacher
from drkd_jax.types import Array, Batch, Features

# Keys of `config.data` that do not affect the training images.
_HARMLESS = ("val", "on_error", "num_threads", "num_workers", "prefetch")
_HELD_OUT = 8  # one image of this many is held out for measuring
_MEASURED = 16  # the most held-out batches to measure on


def with_pretrained_units(
    run: Run, state: TrainState, workdir: Path, say: Callable[[str], None], stop: Callable[[], bool]
) -> TrainState | None:
    """The state of step 0 with the teacher's graph units trained, or read from the work folder.

    Args:
        run: a distilled run; if its distiller has no pretrained units, nothing is done.
        state: the state of step 0.
        workdir: stores the units in `teacher_units.npz`.
        say: prints a line on the terminal.
        stop: whether to end early; every process calls it at the same steps.

    Returns:
        The state, or None if the phase was stopped.

    Raises:
        UserError: the teacher has no heads, or other classes, or its loss became non-finite.
    """
    distiller = _distiller(run, state)
    term = distiller.pixel_relation
    if term is None or term.config.teacher_modules != "pretrained":
        return state
    path, mark = workdir / UNITS_FILE, fingerprint(run)
    if broadcast(lambda: read_units(path, mark) is not None):
        found = read_units(path, mark)
        say(f"teacher    graph units as trained before, from {path}")
    else:
        config = distiller.config
        say(f"teacher    its graph units learn inside it for {config.pretrain_steps} steps ...")
        found = train_units(run, distiller, stop)
        if found is None:
            return None
        broadcast(lambda: write_units(path, mark, found))
    assert found is not None
    say(
        f"teacher    with its graph units its loss on {found.images} held-out images is "
        f"{found.after:.4f}; without them {found.before:.4f} "
        f"({found.after / found.before - 1:+.1%})"
    )
    if found.after > found.before:
        say(
            "teacher    its units made it worse: a lower distill.pretrain_rate or fewer "
            "distill.pretrain_steps may help"
        )
    units = nnx.as_pure(nnx.state(term.teacher))
    trained = unflatten(found.arrays, units)
    nnx.update(term.teacher, jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), trained, units))
    model_state = split_module(distiller, run.recipe.is_trained["distiller"]).model_state
    others = {**state.model_state, "distiller": put_everywhere(model_state, run.mesh)}
    return dataclasses.replace(state, model_state=others)


def _distiller(run: Run, state: TrainState) -> Any:
    arrays = state.params["distiller"], state.model_state["distiller"]
    return merge_module(SplitModule(run.recipe.graphs["distiller"], *arrays))


def _loss(
    run: Run, distiller: Distiller, teacher: nnx.GraphDef, units: nnx.GraphDef
) -> Callable[[Arrays, Arrays, Arrays, Batch, Array], tuple[Array, Arrays]]:
    """The teacher's detection loss with its units, and their updated statistics.

    Returns:
        A function of the units' weights and statistics, the teacher's arrays, a batch and the step.
    """
    standardized = distiller.teacher_scale is not None
    pixels = run.recipe.teacher_pixels or run.recipe.pixels

    def loss(
        weights: Arrays, statistics: Arrays, arrays: Arrays, batch: Batch, step: Array
    ) -> tuple[Array, Arrays]:
        detector = nnx.merge(teacher, arrays, copy=True)
        own = nnx.merge(units, weights, statistics, copy=True)
        images, targets = pixels.prepare(batch)
        features = jax.lax.stop_gradient(detector.features(images))
        maps = list(features.maps)
        for unit, pair in zip(own, distiller.pairs, strict=True):
            x = maps[pair.teacher]
            stride = features.spec.strides[pair.teacher]
            mask = pixel_mask(targets.sizes, targets.image_valid, stride, x.shape[1:3])
            spread = variance(x, mask) if standardized else jnp.ones(())
            sigma = jnp.where(spread > 0, jnp.sqrt(jnp.where(spread > 0, spread, 1)), 1)
            flat = (x / sigma).astype(distiller.dtype).reshape(x.shape[0], -1, x.shape[-1])
            phi = unit(flat, mask.reshape(mask.shape[0], -1), train=True)
            # Adds only the unit's branch, so that a zero branch leaves the map exactly unchanged.
            maps[pair.teacher] = x + ((phi - flat).reshape(x.shape) * sigma).astype(x.dtype)
        keys = image_keys(run.recipe.seed, step, batch.index)
        terms = detector.losses(Features(tuple(maps), features.spec), targets, keys)
        total = sum(terms.values(), jnp.zeros((), jnp.float32))
        return total, nnx.as_pure(nnx.state(own, nnx.BatchStat))

    return loss


def train_units(
    run: Run, distiller: Distiller, stop: Callable[[], bool] = lambda: False
) -> Pretrained | None:
    """Trains the graph units of the teacher's side by the teacher's own detection loss.

    Args:
        run: provides the teacher, the training images and the seed.
        distiller: has a pixel relation with separate units for the teacher; not changed.
        stop: called at every step.

    Returns:
        The trained units with their statistics, or None if it was stopped.

    Raises:
        UserError: the teacher cannot detect, or the loss became non-finite.
    """
    config, term = distiller.config, distiller.pixel_relation
    assert term is not None
    teacher = _whole_teacher(run)
    arrays, everywhere = put_everywhere(teacher.arrays, run.mesh), replicated(run.mesh)
    found: Any = nnx.split(term.teacher, _is_weight, ...)
    graph, weights, statistics = found
    loss_of = _loss(run, distiller, teacher.graph, graph)
    start = _as_identity(nnx.as_pure(weights)), nnx.as_pure(statistics)
    weights, statistics = put_everywhere(start, run.mesh)
    settings = _settings(run, config)
    tx = schedule.optimiser(settings, schedule.learning_rate(settings, (), settings.steps))

    in_parts = partial(_in_parts, loss_of, run)

    def update(weights: Arrays, statistics: Arrays, moments: Any, *given: Any) -> Any:
        parts, found = {"units": weights}, in_parts(weights, statistics, *given)
        change, moments = tx.update(found.gradient, moments, parts)
        after = optax.apply_updates(parts, change)["units"]
        return after, found.model_state["units"], moments

    step = jax.jit(update, donate_argnums=(0, 1, 2), out_shardings=everywhere)
    measure = jax.jit(lambda *given: in_parts(*given, learns=False).total, out_shardings=everywhere)
    held_out, trained = _split_source(run)
    with closing(_loader(run, held_out)) as loader:

        def score() -> tuple[float, int]:
            loader.set_state({"next_batch": 0})
            losses, images = [], 0
            for number in range(min(_MEASURED, steps_per_epoch(held_out, run.pipeline))):
                batch = next(loader)
                images += int(from_all(np.asarray(batch.image_valid)).sum())
                placed = put_batch(batch, run.mesh)
                losses.append(measure(weights, statistics, arrays, placed, jnp.int32(number)))
            return float(np.mean(jax.device_get(losses))), images

        before, images = score()
        moments = jax.jit(tx.init, out_shardings=everywhere)({"units": weights})
        with closing(_loader(run, trained)) as batches:
            for done in range(settings.steps):
                if stop():
                    return None
                placed = put_batch(next(batches), run.mesh)
                given = arrays, placed, jnp.int32(done)
                weights, statistics, moments = step(weights, statistics, moments, *given)
        after, _ = score()
    if not np.isfinite(after):
        raise UserError(
            f"the teacher's graph units: no finite loss after {settings.steps} steps; take a lower "
            f"distill.pretrain_rate than {config.pretrain_rate:g}"
        )
    flat = flatten(nnx.as_pure(nnx.state(nnx.merge(graph, weights, statistics))))
    return Pretrained({name: np.array(leaf) for name, leaf in flat.items()}, before, after, images)


def _in_parts(
    loss_of: Callable[..., tuple[Array, Arrays]],
    run: Run,
    weights: Arrays,
    statistics: Arrays,
    arrays: Arrays,
    batch: Batch,
    step: Array,
    *,
    learns: bool = True,
) -> Gradient:
    """Loss, gradient and statistics ("units") of a batch, in the run's number of parts.

    A run that accumulates gradients lacks the memory for a whole batch here, too.
    """

    def of(state: dict[str, Arrays], part: Batch) -> Gradient:
        given = state["units"], arrays, part, step
        if not learns:
            return Gradient(loss_of(weights, *given)[0], {}, state, {})
        (total, after), gradient = jax.value_and_grad(loss_of, has_aux=True)(weights, *given)
        return Gradient(total, {}, {"units": after}, {"units": gradient})

    parts, state = run.train.accumulate, {"units": statistics}
    if parts == 1:
        return of(state, batch)
    split = split_batch(batch, parts, run.mesh)
    return accumulate(of, {"units": weights} if learns else {}, state, split)


def fingerprint(run: Run) -> str:
    """A hash of all the units depend on: teacher, input, levels, data, the phase's settings."""
    assert run.teacher is not None
    assert run.distillation is not None
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(run.teacher.arrays).items()):
        if name.startswith(("backbone.", "neck.")):  # heads may be present or not
            digest.update(name.encode() + np.asarray(leaf).tobytes())
    phase, pixels = run.distillation, run.recipe.teacher_pixels or run.pixels
    settings = [
        *(repr(phase.pixel_relation), phase.pretrain_steps, phase.pretrain_rate),
        *(phase.standardize_teacher, [pair.stride for pair in _distiller(run, run.state).pairs]),
        {key: value for key, value in run.config["data"].items() if key not in _HARMLESS},
        *(repr(pixels), run.train.batch_size, run.config["seed"]),
        *([run.train.accumulate] if run.train.accumulate > 1 else []),
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _is_weight(path: tuple[Any, ...], variable: Any) -> bool:
    """Whether a variable is trained: all except running statistics, even if frozen later."""
    return not isinstance(variable, nnx.BatchStat)


def _as_identity(weights: Arrays) -> Arrays:
    """The units' weights with every batch norm's scale and bias at 0: phi(x) = x."""
    flat = flatten(weights)
    gates = {name for name in flat if name.endswith(("norm.scale", "norm.bias"))}
    return unflatten(
        {name: jnp.zeros_like(leaf) if name in gates else leaf for name, leaf in flat.items()},
        weights,
    )


def _settings(run: Run, config: DistillConfig) -> TrainSettings:
    return TrainSettings(
        batch_size=run.train.batch_size,
        steps=config.pretrain_steps,
        learning_rate=config.pretrain_rate,
        optimizer="adamw",
        b2=0.99,
        weight_decay=1e-3,
        weight_decay_mask="kernels",
        warmup_steps=min(30, config.pretrain_steps // 10),
        schedule="cosine",
        clip_norm=1.0,
    )


def _whole_teacher(run: Run) -> Teacher:
    """The teacher with its heads (needed only here), with the data's classes."""
    assert run.teacher is not None
    classes = run.train_source.categories
    names = tuple(category.name for category in classes)
    others = UserError(
        "distill.pixel_relation.teacher_modules = 'pretrained' trains by the teacher's own "
        f"detection loss, but it knows other classes than {run.train_source.spec}; take 'frozen' "
        "or 'shared'"
    )
    if run.teacher.categories and run.teacher.categories != names:
        raise others
    settings = {**run.config["teacher"], "evaluate": True}
    try:
        whole = for_data(load_teacher(settings, len(names), run.config["seed"]), classes)
    except UserError as error:
        words = "distill.pixel_relation.teacher_modules = 'pretrained' needs the teacher's heads"
        raise UserError(f"{error}; {words}") from error
    if whole.detector.num_classes != len(names):  # without names, but another number
        raise others
    return whole


def _split_source(run: Run) -> tuple[Source, Source]:
    """(images to measure on, images to train on): every eighth image, and the others.

    Raises:
        UserError: there are fewer than two images.
    """
    kept = kept_indices(run.train_source, run.pipeline)
    if len(kept) < 2:
        raise UserError(
            f"{run.train_source.spec}: one image alone cannot be split into images to pretrain "
            "the teacher's units on and images to measure them by"
        )
    held_out = np.arange(len(kept)) % min(_HELD_OUT, len(kept)) == 0
    source = run.train_source
    return Part(source, kept[held_out].tolist()), Part(source, kept[~held_out].tolist())


def _loader(run: Run, source: Source) -> TrainIterator:
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return train_loader(source, run.pipeline, **process)
