"""Whether a config continues a checkpoint or would make it another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.training.settings import as_tuples

# What may differ between a checkpoint and the run that continues it.
FREE_TO_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.log_gradients",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep",
    "train.parallel",
    "train.silence_steps",
    "train.silence_share",
    "eval",
    "data.val",
    "data.on_error",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "student.init",
    "teacher.checkpoint",
    "teacher.evaluate",
)
_LONG = 40  # characters of a value that a message shows


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys under which two configs differ, as "train.momentum"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            found += differing_keys(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return [] if as_tuples(old) == as_tuples(new) else [prefix[:-1]]


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Path) -> None:
    """Refuses to continue a checkpoint under a config that would make it another run.

    Raises:
        UserError: every differing key is named, with both values.
    """
    wrong = [
        key
        for key in differing_keys(old, new)
        if not any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)
    ]
    if wrong:
        listed = ", ".join(
            f"{key} ({_value(old, key)} there, {_value(new, key)} here)" for key in wrong
        )
        raise UserError(
            f"{workdir} holds a run of another config; these keys differ: {listed}. "
            "Use another --workdir, or set them back"
        )


def _value(config: Any, key: str) -> str:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    text = str(as_tuples(config))
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."
