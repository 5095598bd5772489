import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drkd_jax.errors import UserError
from drkd_jax.step import schedule
from drkd_jax.step.settings import TrainSettings, train_settings

BASE = TrainSettings(batch_size=2, learning_rate=0.02, steps=100, warmup_steps=10)


def replace(**values):
    return train_settings({**vars(BASE), **values})


def test_the_rate_follows_its_closed_form():
    settings = replace(warmup_factor=0.001, decay_at=(0.5, 80.0), decay_factor=0.1)
    decays = schedule.decay_steps(settings, 7)
    assert decays == (50, 80)
    rate = jax.jit(schedule.learning_rate(settings, decays, 100))
    for step in (0, 1, 5, 9, 10, 49, 50, 79, 80, 99):
        warm = 1.0 if step >= 10 else 0.001 + 0.999 * step / 10
        wanted = 0.02 * warm * 0.1 ** ((step >= 50) + (step >= 80))
        np.testing.assert_allclose(rate(step), wanted, rtol=1e-6)


def test_the_paper_s_schedule_in_epochs():
    settings = replace(steps=0, epochs=24.0, decay_at=(16.0, 22.0), warmup_steps=500)
    assert schedule.run_steps(settings, 7330) == 24 * 7330
    assert schedule.decay_steps(settings, 7330) == (16 * 7330, 22 * 7330)
    mixed = replace(steps=0, epochs=3.0, decay_at=(0.9, 1.0))  # of the run, and an epoch
    assert schedule.decay_steps(mixed, 10) == (10, 27)


def test_the_cosine_follows_its_closed_form():
    settings = replace(schedule="cosine", decay_at=(0.5,), final_factor=0.1, warmup_factor=0.0)
    assert schedule.decay_steps(settings, 7) == ()
    rate = schedule.learning_rate(settings, (), 110)
    for step, wanted in ((0, 0.0), (5, 0.01), (10, 0.02), (60, 0.011), (110, 0.002), (200, 0.002)):
        np.testing.assert_allclose(rate(step), wanted, rtol=1e-5)
    rates = np.asarray(rate(np.arange(10, 110)))
    assert np.all(np.diff(rates) < 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer", "adam"), ("schedule", "linear"), ("b2", 1.0), ("final_factor", 1.5)],
)
def test_a_value_that_cannot_be_is_named(key, value):
    with pytest.raises(UserError, match=rf"config\.train\.{key} = "):
        replace(**{key: value})


def test_no_warm_up_starts_at_the_full_rate():
    settings = replace(warmup_steps=0)
    np.testing.assert_allclose(schedule.learning_rate(settings, (), 100)(0), 0.02, rtol=1e-6)


def test_a_warm_up_that_does_not_end_is_told():
    (warning,) = schedule.check(replace(warmup_steps=100), 100, ())
    assert "warm-up of 100 steps" in warning
    assert schedule.check(BASE, 100, (50,)) == []
    assert "never falls at steps [100]" in schedule.check(BASE, 100, (50, 100))[0]


def test_a_rate_that_stays_0_is_refused():
    with pytest.raises(UserError, match="0 at every step"):
        schedule.check(replace(decay_factor=0.0), 100, (0,))


@pytest.mark.parametrize("mask", ["all", "kernels"])
def test_the_optimiser_is_torch_s_sgd(mask):
    settings = replace(
        weight_decay=0.1, weight_decay_mask=mask, momentum=0.9, decay_at=(3.0,), warmup_steps=2
    )
    rate = schedule.learning_rate(settings, (3,), 100)
    tx = schedule.optimiser(settings, rate)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    mine = jax.tree.map(jnp.float32, params)
    state = tx.init(mine)
    buffer = {name: np.zeros_like(value) for name, value in params.items()}
    for step in range(6):
        gradient = {name: rng.normal(size=value.shape) for name, value in params.items()}
        updates, state = tx.update(jax.tree.map(jnp.float32, gradient), state, mine)
        mine = optax.apply_updates(mine, updates)
        for name in params:  # torch.optim.SGD, written out
            decay = 0.1 if mask == "all" or params[name].ndim > 1 else 0.0
            buffer[name] = 0.9 * buffer[name] + gradient[name] + decay * params[name]
            params[name] = params[name] - float(rate(step)) * buffer[name]
        for name in params:
            np.testing.assert_allclose(mine[name], params[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("mask", ["all", "kernels"])
def test_adamw_is_the_update_written_out(mask):
    settings = replace(
        optimizer="adamw",
        learning_rate=0.1,
        b1=0.8,
        b2=0.95,
        weight_decay=0.1,
        weight_decay_mask=mask,
        clip_norm=1.0,
        warmup_steps=2,
    )
    rate = schedule.learning_rate(settings, (), 100)
    tx = schedule.optimiser(settings, rate)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    mine = {"student": jax.tree.map(jnp.float32, params)}
    state = tx.init(mine)
    mean, square = ({name: np.zeros_like(value) for name, value in params.items()} for _ in "ab")
    for step in range(6):
        gradient = {name: rng.normal(size=value.shape) for name, value in params.items()}
        given = {"student": jax.tree.map(jnp.float32, gradient)}
        updates, state = tx.update(given, state, mine)
        mine = optax.apply_updates(mine, updates)
        norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
        for name, value in gradient.items():
            clipped = value / max(norm, 1.0)
            mean[name] = 0.8 * mean[name] + 0.2 * clipped
            square[name] = 0.95 * square[name] + 0.05 * clipped**2
            unbiased = mean[name] / (1 - 0.8 ** (step + 1))
            root = np.sqrt(square[name] / (1 - 0.95 ** (step + 1)))
            decay = 0.1 if mask == "all" or value.ndim > 1 else 0.0
            change = unbiased / (root + 1e-8) + decay * params[name]
            params[name] = params[name] - float(rate(step)) * change
            np.testing.assert_allclose(mine["student"][name], params[name], rtol=5e-6, atol=5e-7)


def test_clipping_limits_the_norm_of_student_and_distiller_each():
    settings = replace(clip_norm=1.0, weight_decay=0.0, momentum=0.0, warmup_steps=0)
    tx = schedule.optimiser(settings, lambda _: 1.0)
    gradient = {
        "student": {"a": jnp.full(3, 30.0), "b": jnp.full(2, -40.0)},
        "distiller": {"c": jnp.full(2, 1e6)},
    }
    params = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = tx.update(gradient, tx.init(params), params)
    for part in updates.values():
        np.testing.assert_allclose(optax.tree.norm(part), 1.0, rtol=1e-6)
    student = updates["student"]
    np.testing.assert_allclose(student["a"] / student["b"][0], -0.75, rtol=1e-6)


def test_sgd_clips_the_gradient_alone_and_not_what_decay_adds():
    settings = replace(clip_norm=1.0, weight_decay=0.1, momentum=0.0, warmup_steps=0)
    tx = schedule.optimiser(settings, lambda _: 1.0)
    params, gradient = {"student": jnp.full(4, 5.0)}, {"student": jnp.full(4, 1.0)}
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["student"], -(0.5 + 0.1 * 5), rtol=2e-7)


def test_a_gradient_under_the_limit_stays_as_it_is():
    settings = replace(clip_norm=1.0, weight_decay=0.0, momentum=0.0, warmup_steps=0)
    tx = schedule.optimiser(settings, lambda _: 1.0)
    gradient = {"student": {"a": jnp.full(3, 0.1)}, "distiller": {"c": jnp.full(2, 5.0)}}
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(updates["student"]["a"], -0.1, rtol=1e-6)
