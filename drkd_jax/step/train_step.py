"""One training step (student forward, losses, distillation, gradient, update), jitted as one.

Letters: B images, T values reported by a step.

The teacher's arrays are an argument, never a constant of the compiled program. Random keys depend
on (seed, step, image), so the number of devices does not change them. All sums run over the
global batch: the batch is sharded, but the program is written as if it were not.

With the optional `jax.pmap` there is one program per device: the features of all devices are
gathered, and every device computes the same losses of the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int, Key

from drkd_jax.models.pixels import Pixels
from drkd_jax.ops.spread import spread_over
from drkd_jax.step.accumulation import Gradient, accumulate, split_batch
from drkd_jax.step.schedule import Schedule
from drkd_jax.step.sharding import each_device, replicated
from drkd_jax.step.state import (
    Arrays,
    Filter,
    SplitModule,
    TrainState,
    merge_module,
    split_module,
)
from drkd_jax.types import Array, Batch, Features, Responses

Tree = TypeVar("Tree")
_AXIS = "data"
_SMALL = 2**14  # elements


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything static about a step.

    Attributes:
        graphs: module graphs by name: "student"; when distilling, "distiller" and "teacher".
        is_trained: the filters that split "student" and "distiller".
        weights: weight of each distillation term in the total.
        tx: the optimiser.
        schedule: learning rate by step, for the report.
        pixels: the student's input format.
        seed: seed of the run's random choices.
        teacher_pixels: the teacher's input format; None: the student's.
        distill_factor: the factor on the weights by step; None: 1.
        adaptation_steps: number of first steps in which distillation does not reach the student.
        ema: decay of the moving average of the student's parameters; 0: there is none.
        accumulate: number of parts in which a batch is processed (`accumulation.py`).
    """

    graphs: Mapping[str, nnx.GraphDef]
    is_trained: Mapping[str, Filter]
    weights: Mapping[str, float]
    tx: optax.GradientTransformation
    schedule: Schedule
    pixels: Pixels
    seed: int
    teacher_pixels: Pixels | None = None
    distill_factor: Schedule | None = None
    adaptation_steps: int = 0
    ema: float = 0.0
    accumulate: int = 1

    def for_teacher(self, batch: Batch, student: Float[Array, "B H W 3"]) -> Any:
        """The teacher's input: the student's, or the same images in the teacher's own format."""
        if self.teacher_pixels in (None, self.pixels):
            return student
        return self.teacher_pixels.prepare(batch)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepValues:
    """A step's scalars in one array, so that reading them takes one transfer."""

    values: Float[Array, "T"]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def to_dict(self) -> dict[str, float]:
        """Waits for the step and reads its values."""
        return dict(zip(self.names, map(float, jax.device_get(self.values)), strict=True))


TrainStep = Callable[[TrainState, Arrays, Batch], tuple[TrainState, StepValues]]


def image_keys(seed: int, step: Int[Array, ""], index: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key per image, from (seed, step, position in the source), whatever the device."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index))


def loss_terms(
    recipe: Recipe,
    params: Mapping[str, Arrays],
    model_state: Mapping[str, Arrays],
    teacher: Arrays,
    batch: Batch,
    step: Int[Array, ""],
    gather: Callable[[Any], Any] = lambda tree: tree,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict[str, Arrays]]]:
    """The total loss of a batch.

    Args:
        recipe: everything static.
        params: trained arrays of "student" and "distiller".
        model_state: their other arrays.
        teacher: the teacher's arrays, or None.
        batch: the global batch, or one device's part of it (then `gather` is needed).
        step: steps done so far.
        gather: gathers every device's part of a pytree into the whole.
        mesh: the mesh that the global batch is sharded over; None if `batch` is not sharded, or is
            one device's part.

    Returns:
        (total, (values by name, the other arrays after the forward pass)). The values are the
        detection terms under their own names, the unweighted distillation terms, the factor on
        their weights as "distill_factor", and diagnostics as "diag/NAME".
    """
    modules = {
        name: merge_module(SplitModule(recipe.graphs[name], params[name], model_state[name]))
        for name in params
    }
    images, targets = recipe.pixels.prepare(batch)
    student = modules["student"]
    spread = mesh is not None and mesh.size > 1
    if not spread or nnx.state(student, nnx.BatchStat):  # batch statistics are over all images
        features = gather(student.features(images, targets.image_valid))
    else:
        arrays = params["student"], model_state["student"]
        features = each_device(mesh, partial(_student_features, recipe))(
            arrays, images, targets.image_valid
        )
    targets, index = gather((targets, batch.index))
    keys = image_keys(recipe.seed, step, index)
    layers = modules["distiller"].head_layers if "distiller" in modules else None
    towers: Any = ()
    if layers is None:
        values = dict(student.losses(features, targets, keys))
    else:  # the distiller reads the student's head too, so the head is computed once for both
        towers = student.towers(features, layers)
        values = dict(student.losses_after(towers, layers, features, targets))
    total = sum(values.values(), jnp.zeros((), jnp.float32))
    if "distiller" in modules:
        of_teacher = each_device(mesh, partial(_teacher_features, recipe))
        teacher_features = gather(of_teacher(teacher, recipe.for_teacher(batch, images)))
        seen: Any = features.maps, towers
        more: dict[str, Responses] = {}
        if recipe.adaptation_steps:
            adapts = step < recipe.adaptation_steps
            # `where`, not a product with 0: the gradient of the other branch is exactly 0.
            seen = jax.tree.map(lambda x: jnp.where(adapts, jax.lax.stop_gradient(x), x), seen)
        if layers is not None:
            head = nnx.merge(recipe.graphs["teacher"], teacher, copy=True)
            known = head.towers(teacher_features, layers)
            onwards = partial(head.responses, layers=layers)
            more["responses"] = Responses(seen[1], known, onwards)
        output = modules["distiller"](
            seen[0],
            teacher_features.maps,
            targets.boxes,
            targets.valid,
            targets.sizes,
            targets.image_valid,
            keys=keys,
            **more,
        )
        factor = jnp.ones(()) if recipe.distill_factor is None else recipe.distill_factor(step)
        values |= output.losses
        values["distill_factor"] = factor
        total = total + (output.total if recipe.distill_factor is None else factor * output.total)
        values |= {f"diag/{name}": value for name, value in output.diagnostics.items()}
    after = {
        name: split_module(module, recipe.is_trained[name]).model_state
        for name, module in modules.items()
    }
    return total, (values, after)


def _student_features(
    recipe: Recipe, arrays: tuple[Arrays, Arrays], images: Any, valid: Any
) -> Features:
    student = merge_module(SplitModule(recipe.graphs["student"], *arrays))
    return student.features(images, valid)


def _teacher_features(recipe: Recipe, arrays: Arrays, images: Any) -> Features:
    return nnx.merge(recipe.graphs["teacher"], arrays, copy=True).features(images)


def train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """The jitted step `(state, teacher arrays, batch) -> (state, values)`; the state is donated.

    Besides the terms of `loss_terms` the values hold "total", "gradient_norm",
    "parameter_norm" (after the update, running statistics included), "learning_rate" and
    "finite": 1 if loss, gradient and the new state are all finite. It compiles once per canvas.
    """

    def step(state: TrainState, teacher: Arrays, batch: Batch) -> tuple[TrainState, StepValues]:
        with spread_over(mesh):
            found = _gradient(recipe, state, teacher, batch, mesh=mesh)
        return _update(recipe, state, found)

    # With output shardings given: the compiler might choose others, and the next call recompile.
    everywhere = replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(everywhere, everywhere))


def pmap_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """The same step by `jax.pmap`, with the same values; its batch comes from `put_stacked`.

    Only backbones and pyramids are distributed: every device computes heads, losses and
    distillation of the whole batch, since their sums run over all of it.
    """

    def gather(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, _AXIS, tiled=True), tree)

    def step(state: TrainState, teacher: Arrays, batch: Batch) -> tuple[TrainState, StepValues]:
        found = _gradient(recipe, state, teacher, batch, gather=gather)
        # Each device has the full gradient of the heads. Of the layers before the gather it has
        # its own images' share, multiplied by the number of devices. The mean over the devices
        # is right for both.
        gradient = jax.lax.pmean(found.gradient, _AXIS)
        return _update(recipe, state, found._replace(gradient=gradient))

    mapped = jax.pmap(
        step,
        _AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=tuple(mesh.devices.flat),
        donate_argnums=0,
    )
    if jax.process_count() == 1:
        return mapped

    def local(*arguments: Any) -> Any:
        return multihost_utils.global_array_to_host_local_array(arguments, mesh, PartitionSpec())

    def step_of_many(state: TrainState, teacher: Arrays, batch: Batch) -> Any:
        after = mapped(*local(state, teacher), batch)
        return multihost_utils.host_local_array_to_global_array(after, mesh, PartitionSpec())

    return step_of_many


def moved_average(average: Arrays, params: Arrays, decay: float, step: Int[Array, ""]) -> Arrays:
    """The moving average after a step: d * average + (1 - d) * parameters.

    d = min(decay, (1 + step) / (10 + step)): at first the average follows quickly, so the random
    initial values are soon forgotten.

    Args:
        average: the average after the previous step.
        params: the parameters after this step, in the same structure.
        decay: the decay in the long run.
        step: steps done before this one.

    Source: `tf.train.ExponentialMovingAverage`, its `num_updates`.
    """
    done = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(
        lambda old, new: (old + (1.0 - kept) * (new - old)).astype(old.dtype), average, params
    )


def norm(tree: Any) -> Float[Array, ""]:
    """The Euclidean norm of all elements of a pytree, as one vector.

    Small arrays, which are most of them, are concatenated first: separate sums made up an eighth of
    the equations of a small distilled step.
    """
    small: list[Array] = []
    large: list[Array] = []
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        (small if leaf.size <= _SMALL else large).append(leaf)
    if small:
        large.append(jnp.concatenate([leaf.reshape(-1) for leaf in small]))
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in large), jnp.zeros((), jnp.float32)))


def _gradient(
    recipe: Recipe,
    state: TrainState,
    teacher: Arrays,
    batch: Batch,
    gather: Callable[[Any], Any] = lambda tree: tree,
    mesh: Mesh | None = None,
) -> Gradient:
    def of(model_state: dict[str, Arrays], batch: Batch) -> Gradient:
        def loss(params: dict[str, Arrays]) -> tuple[Float[Array, ""], Any]:
            return loss_terms(recipe, params, model_state, teacher, batch, state.step, gather, mesh)

        (total, (terms, after)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return Gradient(total, terms, after, gradient)

    if recipe.accumulate == 1:
        return of(state.model_state, batch)
    parts = split_batch(batch, recipe.accumulate, mesh)
    return accumulate(of, state.params, state.model_state, parts, gather)


def _update(recipe: Recipe, state: TrainState, found: Gradient) -> tuple[TrainState, StepValues]:
    total, terms, model_state, gradient = found
    updates, opt_state = recipe.tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    gradient_norm = norm(gradient)
    parameter_norm = norm((params, model_state))
    finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm) & jnp.isfinite(parameter_norm)
    values = {
        **terms,
        "total": total,
        "gradient_norm": gradient_norm,
        "parameter_norm": parameter_norm,
        "learning_rate": recipe.schedule(state.step),
        "finite": finite,
    }
    stacked = jnp.stack([jnp.asarray(value, jnp.float32) for value in values.values()])
    average = state.average
    if recipe.ema:
        average = moved_average(average, params["student"], recipe.ema, state.step)
    after = TrainState(state.step + 1, params, model_state, opt_state, average)
    return after, StepValues(stacked, tuple(values))
