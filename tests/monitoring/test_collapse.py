"""The collapse monitor, also when training on noise, where nothing can be learnt."""

from __future__ import annotations

import jax
import optax
import pytest

from drkd_jax.monitoring.collapse import CollapseMonitor
from tests.distill.common import Runner, pyramid, targets

NAME = "diag/pixel_relation/P3/teacher_norm"


def feed(monitor: CollapseMonitor, values, name: str = NAME) -> list[str]:
    return [warning for value in values for warning in monitor.observe({name: value})]


def test_names_what_fell_once():
    warnings = feed(CollapseMonitor(warmup=2, patience=2), [1.4, 1.4, 1.2, 0.5, 0.4, 0.3, 0.2])
    assert len(warnings) == 1
    assert NAME in warnings[0]
    assert "1.4" in warnings[0]


def test_a_short_dip_is_no_collapse_and_a_second_fall_is_named_again():
    monitor = CollapseMonitor(warmup=1, patience=2)
    assert feed(monitor, [1.0, 0.4, 1.0, 0.4, 0.9]) == []
    assert len(feed(monitor, [0.4, 0.4, 0.9, 0.4, 0.4])) == 2


@pytest.mark.parametrize(("last", "what"), [(0.2, "teacher_entropy"), (0.9999, "information")])
def test_relations_collapse_to_one_box_or_to_all_alike(last, what):
    name = "instance_relation/P3/teacher_entropy"
    warnings = feed(CollapseMonitor(warmup=1, patience=2), [0.9, 0.9, last, last, last], name)
    assert len(warnings) == 1
    assert what in warnings[0]


def test_other_numbers_are_passed_over():
    monitor = CollapseMonitor(warmup=1, patience=1)
    assert monitor.observe({"total": 5.0, NAME: float("nan")}) == []
    assert feed(monitor, [0.0, 0.0, 0.0], "instance_relation/P3/teacher_entropy") == []


def on_noise(form: str, weight: float, steps: int) -> tuple[float, float, list[str]]:
    """Trains a distiller on noise, new at each step; returns first and last loss, warnings."""
    sides = pyramid(0, 8), pyramid(1, 8)
    values = {
        "pixel_relation": {"form": form, "nodes": (8,), "weight": weight},
        "instance_relation": None,
        "instance_feature": None,
    }
    runner = Runner(values, *sides)
    optimiser = optax.sgd(0.05 * weight, momentum=0.9)

    @jax.jit
    def step(carry, key):
        params, rest, moments = carry
        keys = jax.random.split(key, 4)
        student, teacher = (
            jax.tree.map(lambda x, k=k: jax.random.normal(k, x.shape), side)
            for side, k in zip(sides, (keys[0], keys[1]), strict=True)
        )
        (_, (output, rest)), (gradient, _) = runner._differentiate(
            params, rest, student, teacher, targets()
        )
        updates, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(params, updates), rest, moments), output

    carry = runner.params, runner.rest, optimiser.init(runner.params)
    carry, outputs = jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), steps))
    monitor, warnings = CollapseMonitor(), []
    for i in range(0, steps, 10):
        values = {name: float(value[i]) for name, value in outputs.diagnostics.items()}
        warnings += monitor.observe(values)
    losses = outputs.losses["pixel_relation"]
    return float(losses[:10].mean()), float(losses[-10:].mean()), warnings


def test_the_official_form_collapses_on_noise_and_says_so():
    first, last, warnings = on_noise("official", 0.05, 600)
    assert last < 0.5 * first
    assert any("teacher_variance" in warning for warning in warnings)


def test_the_default_form_does_not():
    first, last, warnings = on_noise("paper", 1.0, 600)
    assert last > 0.5 * first
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("instance_relation/P3/teacher_entropy", 0.98, "all but uniform"),
        ("instance_relation/P3/teacher_entropy", 0.05, "one box alone"),
        ("pixel_relation/P3/teacher_variance", 3.0, "67% of what the student is shown"),
    ],
)
def test_a_target_that_is_empty_from_the_start_is_named_once(name, value, what):
    warnings = feed(CollapseMonitor(warmup=2), [value] * 8, f"diag/{name}")
    assert len(warnings) == 1
    assert what in warnings[0]
    assert warnings[0].startswith(f"empty target: diag/{name}")


def test_a_branch_that_is_trained_may_be_large():
    name = "pixel_relation/P3/teacher_variance"
    assert feed(CollapseMonitor(warmup=2, untrained=1.0), [9.0] * 8, name) == []
