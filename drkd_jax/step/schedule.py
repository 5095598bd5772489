"""The schedules of the learning rate and the distillation weight, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drkd_jax.distill import DistillConfig
from drkd_jax.errors import UserError
from drkd_jax.step.settings import TrainSettings

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def run_steps(settings: TrainSettings, steps_per_epoch: int) -> int:
    """The length of the run in steps."""
    return settings.steps or max(1, round(settings.epochs * steps_per_epoch))


def decay_steps(settings: TrainSettings, steps_per_epoch: int) -> tuple[int, ...]:
    """The steps at which the rate falls, in ascending order: each is the first at the lower rate.

    A cosine schedule has none.
    """
    if settings.schedule == "cosine":
        return ()
    steps = run_steps(settings, steps_per_epoch)
    unit = steps_per_epoch if settings.epochs else 1
    return tuple(
        sorted(round(at * steps) if at < 1 else round(at * unit) for at in settings.decay_at)
    )


def learning_rate(settings: TrainSettings, decays: Sequence[int], steps: int) -> Schedule:
    """Linear warm-up, then step or cosine decay, as a traceable function of the step.

    At step s (from 0): rate * (factor + (1 - factor) * min(s / warm-up steps, 1)) * fallen(s),
    where fallen is decay^(number of falls up to s), or for the cosine
    final + (1 - final) * (1 + cos(pi * p)) / 2, with p the share of the steps after the warm-up
    that are done.

    Args:
        settings: rate, warm-up and form of the decay.
        decays: `decay_steps`.
        steps: length of the run.

    Source: mmdetection 2.3, `warmup='linear'` of its step schedule; Loshchilov and Hutter 2017,
    equation 5, without restarts.
    """
    falls = np.asarray(decays, np.int32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        position = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(position / max(settings.warmup_steps, 1), 1.0)
        if settings.warmup_steps == 0:
            warm = jnp.ones_like(warm)
        factor = settings.warmup_factor + (1.0 - settings.warmup_factor) * warm
        if settings.schedule == "cosine":
            left = max(steps - settings.warmup_steps, 1)
            share = jnp.clip((position - settings.warmup_steps) / left, 0.0, 1.0)
            wave = 0.5 * (1.0 + jnp.cos(jnp.pi * share))
            decay = settings.final_factor + (1.0 - settings.final_factor) * wave
            return settings.rate * factor * decay
        fallen = jnp.sum(jnp.asarray(step, jnp.int32)[..., None] >= falls, axis=-1)
        return settings.rate * factor * settings.decay_factor**fallen

    return schedule


def distill_factor(config: DistillConfig, steps: int) -> Schedule | None:
    """The factor on every distillation weight, as a traceable function of the step (from 0).

    It is 1 during the adaptation steps, then rise * fall: rise = min(s / warm-up steps, 1), with s
    counted from the end of the adaptation; fall = 1 - p (linear), (1 + cos(pi * p)) / 2 (cosine)
    or 0 (stop), from `fall_from` on, with p the share of the remaining steps that are done.

    Args:
        config: the distillation settings.
        steps: length of the run.

    Returns:
        The factor by step; None if it is 1 at every step.
    """
    if config.schedule == "constant" and not config.warmup_steps:
        return None
    start = config.fall_from * steps

    def factor(step: jax.typing.ArrayLike) -> jax.Array:
        position = jnp.asarray(step, jnp.float32)
        done = position - config.adaptation_steps
        rise = jnp.minimum(done / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        share = jnp.clip((position - start) / (steps - start), 0.0, 1.0)
        fall: jax.typing.ArrayLike = 1.0
        if config.schedule == "linear":
            fall = 1.0 - share
        elif config.schedule == "cosine":
            fall = 0.5 * (1.0 + jnp.cos(jnp.pi * share))
        elif config.schedule == "stop":
            fall = jnp.where(position < start, 1.0, 0.0)
        return jnp.where(done < 0, 1.0, rise * fall)

    return factor


def check_distillation(config: DistillConfig, steps: int) -> list[str]:
    """Checks that the phases of the schedule leave steps in which the student is taught.

    Returns:
        warnings, each one sentence.

    Raises:
        UserError: there is no step in which the student is taught.
    """
    if not config.terms:
        return ["config.distill: no term has a weight, so the teacher teaches nothing"]
    factor = distill_factor(config, steps)
    factors = np.ones(steps) if factor is None else np.asarray(factor(np.arange(steps)))
    taught = (np.arange(steps) >= config.adaptation_steps) & (factors > 0)
    if not taught.any():
        raise UserError(
            f"config.distill: of the {steps} steps none teaches the student; look at "
            "adaptation_steps, warmup_steps, schedule and fall_from"
        )
    begun = config.adaptation_steps + config.warmup_steps
    if begun >= steps or (config.schedule != "constant" and begun > config.fall_from * steps > 0):
        return [
            f"the distillation's adaptation and warm-up take {begun} steps of {steps}: its "
            f"weights reach {factors[taught].max():.0%} of what they are set to"
        ]
    return []


def check(settings: TrainSettings, steps: int, decays: Sequence[int]) -> list[str]:
    """Checks for a learning rate schedule with which a run learns nothing.

    Returns:
        warnings, each one sentence.

    Raises:
        UserError: the rate is 0 at every step.
    """
    rates = np.asarray(learning_rate(settings, decays, steps)(np.arange(steps)))
    if not np.any(rates > 0):
        raise UserError(
            "config.train: the learning rate is 0 at every step; look at learning_rate, "
            "warmup_factor, decay_at and decay_factor"
        )
    warnings = []
    if settings.warmup_steps >= steps:
        warnings.append(
            f"the warm-up of {settings.warmup_steps} steps does not end within the run of "
            f"{steps}: the rate reaches {rates.max():.3g} of {settings.rate:.3g}"
        )
    late = [step for step in decays if step >= steps]
    if late:
        warnings.append(f"the learning rate never falls at steps {late}: the run has {steps}")
    return warnings


def optimiser(settings: TrainSettings, schedule: Schedule) -> optax.GradientTransformation:
    """SGD with momentum, or AdamW, after clipping.

    SGD: buffer = momentum * buffer + (clipped gradient + decay * parameter);
    parameter = parameter - rate * buffer: the order of `torch.optim.SGD`, in which a change of the
    rate takes effect at once, not through the buffer.

    AdamW: parameter = parameter - rate * (mean / (sqrt(square) + 1e-8) + decay * parameter), with
    bias-corrected running means of the clipped gradient and its square.

    Parameters are a dict with "student" and "distiller"; each is clipped by its own norm.

    Source: `torch.optim.SGD` and `torch.optim.AdamW`.
    """
    parts: list[optax.GradientTransformation] = []
    if settings.clip_norm:
        parts.append(_clip_parts(settings.clip_norm))
    mask = None if settings.weight_decay_mask == "all" else _kernels
    decay = optax.add_decayed_weights(settings.weight_decay, mask=mask)
    if settings.optimizer == "adamw":
        parts.append(optax.scale_by_adam(settings.b1, settings.b2))
        parts += [decay] if settings.weight_decay else []
    else:
        parts += [decay] if settings.weight_decay else []
        parts += [optax.trace(settings.momentum)] if settings.momentum else []
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def _clip_parts(largest: float) -> optax.GradientTransformation:
    """Clips the gradients of student and distiller separately, each by its own norm.

    With a joint norm, a large gradient of the distiller would shorten the student's step and slow
    down its learning of detection.
    """
    clip = optax.clip_by_global_norm(largest)

    def update(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return {name: clip.update(part, clip.init(part))[0] for name, part in updates.items()}

    return optax.stateless(update)


def _kernels(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
