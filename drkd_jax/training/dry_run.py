"""What a run would be: its opening words, and memory and time of a step; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drkd_jax.training.describe import describe, findings, other_classes
from drkd_jax.training.measure import Cost, measure
from drkd_jax.training.setup import Run, build_run

STEPS = 3  # that are timed


def dry_run(config: Mapping[str, Any], say: Callable[[str], None] = print) -> Cost:
    """Builds a run, compiles its step for the first batch and times a few of them.

    Args:
        config: as of `loop.train`.
        say: takes one line at a time.

    Returns:
        What the step costs.

    Raises:
        UserError: whatever would keep the run from starting; or it is to run by pmap or in several
            processes, whose steps are not looked into.
    """
    run = build_run(config)
    for line in describe(run, 0):
        say(line)
    warnings = findings(run, say)
    differing = other_classes(run) if run.teacher is not None else None
    for warning in [*warnings, *filter(None, [differing])]:
        say(f"warning: {warning}")
    cost = measure(run, steps=STEPS, parts=False)
    for line in _lines(cost, run):
        say(line)
    return cost


def _lines(cost: Cost, run: Run) -> list[str]:
    memory = ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in cost.memory.items())
    low, high = cost.step_range
    length = run.steps * cost.step_seconds
    return [
        f"a step     {cost.step_seconds:.3f} s ({low:.3f} to {high:.3f}) at "
        f"{cost.canvas[0]}x{cost.canvas[1]}, {cost.pictures_per_second:.1f} pictures a second, "
        f"after {cost.trace_seconds + cost.compile_seconds:.0f} s of compiling",
        f"memory     {memory}",
        f"the run    about {_duration(length)} for {run.steps} steps, without evaluations and the "
        "reading of pictures; nothing was written",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
