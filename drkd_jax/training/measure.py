"""Measures a training step on this machine: time, operations, memory, and the time of its parts.

The batch is already on the device: reading images is measured by `benchmarks/input.py`, and its
share of a real run is `data_wait` in `metrics.jsonl`. `dry_run` prints before a run what it would
do, and the memory and time of a step.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drkd_jax import distill
from drkd_jax.data.pipeline import train_loader
from drkd_jax.errors import UserError
from drkd_jax.step.accumulation import first_part, loop_length
from drkd_jax.step.sharding import put_everywhere
from drkd_jax.step.state import Arrays, split_module
from drkd_jax.step.train_step import Recipe, loss_terms
from drkd_jax.training.describe import describe, findings
from drkd_jax.training.setup import Run, build_distiller, build_run
from drkd_jax.types import Batch

PARTS_AT_LEAST = 3  # least number of calls for a median time
_DRY_STEPS = 3  # steps that a dry run times


@dataclasses.dataclass
class Cost:
    """The measured cost: seconds, bytes, and floating-point operations of one device.

    Attributes:
        trace_seconds: time to trace and lower the Python function.
        compile_seconds: XLA's own compile time.
        step_seconds: median of the timed steps.
        step_range: the shortest and the longest of them.
        images_per_second: over all devices.
        flops: operations of the compiled program per step on one device.
        flops_written: operations of the program before compiler optimisations, per device.
        memory: bytes by kind: "arguments", "temporary", "outputs" as compiled; "peak" and
            "limit" as reported by the device, if it does.
        parts: seconds by part of the step; those of the distillation's terms are differences.
        canvas: height and width in pixels.
        batch_size: images per step over all devices.
    """

    trace_seconds: float
    compile_seconds: float
    step_seconds: float
    step_range: tuple[float, float]
    images_per_second: float
    flops: float
    flops_written: float
    memory: dict[str, int]
    parts: dict[str, float]
    canvas: tuple[int, int]
    batch_size: int


def measure(run: Run, *, steps: int = 10, parts: bool = True) -> Cost:
    """Compiles the step and times it and its parts.

    Args:
        run: what was built; its state is consumed.
        steps: timed steps, after two for warm-up.
        parts: whether to time the parts as well, which needs a compilation for each.

    Raises:
        UserError: the run is not a single program that can be analysed.
    """
    if run.train.parallel != "jit" or jax.process_count() > 1:
        raise UserError("benchmark measures config.train.parallel = 'jit' in one process")
    loader = train_loader(run.train_source, run.pipeline)
    batch = run.put(next(loader))
    loader.close()
    teacher = run.teacher_arrays

    before = time.perf_counter()
    lowered = run.step.lower(run.state, teacher, batch)  # type: ignore[attr-defined]
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()

    state, times = run.state, []
    for _ in range(2 + steps):
        start = time.perf_counter()
        state, values = compiled(state, teacher, batch)
        jax.block_until_ready(values)
        times.append(time.perf_counter() - start)
    step_seconds, memory = statistics.median(times[2:]), _memory(compiled)
    found: dict[str, float] = {}
    if parts:
        found = _parts(dataclasses.replace(run, state=state), batch, compiled, steps)
    size = batch.images.shape[0]
    return Cost(
        trace_seconds=traced - before,
        compile_seconds=done - traced,
        step_seconds=step_seconds,
        step_range=(min(times[2:]), max(times[2:])),
        images_per_second=size / step_seconds,
        # XLA counts the body of a loop once.
        flops=loop_length(run.recipe.accumulate) * _flops(compiled),
        flops_written=loop_length(run.recipe.accumulate) * _flops(lowered) / run.mesh.size,
        memory=memory,
        parts=found,
        canvas=(int(batch.images.shape[1]), int(batch.images.shape[2])),
        batch_size=int(size),
    )


# A compiled function, and a function that makes its arguments; only the former is timed.
Program = tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]


def program(function: Callable[..., Any], *arguments: Any) -> Program:
    """A function, compiled for its arguments."""
    return jax.jit(function).lower(*arguments).compile(), lambda: arguments


def seconds(programs: Mapping[str, Program], calls: int) -> dict[str, float]:
    """Median time of a call of each program, after one for warm-up.

    The programs are called in turns, so that other load on the machine slows them all equally and
    the differences between them remain valid.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + calls):
        for name, (function, make) in programs.items():
            arguments = jax.block_until_ready(make())
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _parts(run: Run, batch: Batch, step: Callable[..., Any], steps: int) -> dict[str, float]:
    """Seconds of each part of a step; `step` is compiled and overwrites the state it is given.

    With gradient accumulation one part of the batch is timed and stands for all of them.
    """

    def loss(recipe: Recipe) -> Callable[..., Any]:
        def of(params: Any, model_state: Any, teacher: Arrays, batch: Batch) -> Any:
            return loss_terms(recipe, params, model_state, teacher, batch, jnp.int32(0))

        return of

    def gradient(recipe: Recipe) -> Callable[..., Any]:
        return jax.value_and_grad(loss(recipe), has_aux=True)

    recipe, state, teacher = run.recipe, run.state, run.teacher_arrays
    whole, pieces = batch, recipe.accumulate
    batch = jax.jit(lambda given: first_part(given, pieces, run.mesh))(batch)
    plain = dataclasses.replace(
        recipe, graphs=_only(recipe.graphs, "student", "teacher"), weights={}
    )
    own = (_only(state.params, "student"), _only(state.model_state, "student"), teacher, batch)
    programs: dict[str, Program] = {
        "step": (step, lambda: (jax.tree.map(jnp.copy, state), teacher, whole)),
        "forward": program(lambda *arguments: loss(plain)(*arguments)[0], *own),
        "both": program(gradient(plain), *own),
    }
    if run.teacher is not None:

        def features_of(teacher: Arrays, batch: Batch) -> Any:
            module = nnx.merge(recipe.graphs["teacher"], teacher, copy=True)
            images, _ = recipe.pixels.prepare(batch)
            return module.features(recipe.for_teacher(batch, images)).maps

        programs["teacher"] = program(features_of, teacher, batch)
        programs["whole"] = program(
            gradient(recipe), state.params, state.model_state, teacher, batch
        )
        if len(recipe.weights) > 1:
            for term in recipe.weights:
                smaller, params, model_state = _without(run, term)
                programs[term] = program(gradient(smaller), params, model_state, teacher, batch)
    times = seconds(programs, max(steps, PARTS_AT_LEAST))
    times = {name: time if name == "step" else pieces * time for name, time in times.items()}
    found = {
        "student forward": times["forward"],
        "student backward": times["both"] - times["forward"],
    }
    if run.teacher is None:
        return found | {"update": times["step"] - times["both"]}
    found["teacher forward"] = times["teacher"]
    # Without its only term there is no distillation, but the teacher's time remains.
    alone = times["both"] + times["teacher"]
    found |= {term: times["whole"] - times.get(term, alone) for term in recipe.weights}
    return found | {"update": times["step"] - times["whole"]}


def _without(run: Run, term: str) -> tuple[Recipe, Any, Any]:
    """The recipe, trained and other arrays of the run without one distillation term."""
    recipe, state = run.recipe, run.state
    assert run.teacher is not None
    student = nnx.merge(
        recipe.graphs["student"], state.params["student"], state.model_state["student"], copy=True
    )
    config = {**run.config, "distill": {**run.config["distill"], term: None}}
    distiller: distill.Distiller = build_distiller(
        config, student, run.teacher, recipe.pixels.dtype
    )
    parts = split_module(distiller, distiller.is_trained)
    smaller = dataclasses.replace(
        recipe,
        graphs={**recipe.graphs, "distiller": parts.graph},
        is_trained={**recipe.is_trained, "distiller": distiller.is_trained},
        weights={name: weight for name, weight in recipe.weights.items() if name != term},
    )
    params = {**state.params, "distiller": put_everywhere(parts.params, run.mesh)}
    model_state = {**state.model_state, "distiller": put_everywhere(parts.model_state, run.mesh)}
    return smaller, params, model_state


def _only(parts: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name in names}


def _flops(stage: Any) -> float:
    analysis = stage.cost_analysis() or {}
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0]
    return float(analysis.get("flops", 0.0))


def _memory(compiled: Any) -> dict[str, int]:
    memory: dict[str, int] = {}
    analysis = compiled.memory_analysis()
    if analysis is not None:
        memory = {
            "arguments": int(analysis.argument_size_in_bytes),
            "temporary": int(analysis.temp_size_in_bytes),
            "outputs": int(analysis.output_size_in_bytes),
        }
    stats = jax.local_devices()[0].memory_stats() or {}
    for name, key in (("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
        if key in stats:
            memory[name] = int(stats[key])
    return memory


def dry_run(config: Mapping[str, Any], say: Callable[[str], None] = print) -> Cost:
    """Builds a run, compiles its step for the first batch, and times a few steps.

    Args:
        config: see `loop.train`.
        say: called with one line at a time.

    Returns:
        What the step costs.

    Raises:
        UserError: anything that would keep the run from starting; or the run uses pmap or several
            processes, whose steps cannot be analysed.
    """
    run = build_run(config)
    for line in describe(run, 0):
        say(line)
    for warning in findings(run, say):
        say(f"warning: {warning}")
    cost = measure(run, steps=_DRY_STEPS, parts=False)
    for line in _lines(cost, run):
        say(line)
    return cost


def _lines(cost: Cost, run: Run) -> list[str]:
    memory = ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in cost.memory.items())
    low, high = cost.step_range
    length = run.steps * cost.step_seconds
    return [
        f"a step     {cost.step_seconds:.3f} s ({low:.3f} to {high:.3f}) at "
        f"{cost.canvas[0]}x{cost.canvas[1]}, {cost.images_per_second:.1f} images per second, "
        f"after {cost.trace_seconds + cost.compile_seconds:.0f} s of compiling",
        f"memory     {memory}",
        f"the run    about {_duration(length)} for {run.steps} steps, without evaluations and the "
        "reading of images; nothing was written",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
