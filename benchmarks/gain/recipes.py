"""Recipes with overrides: as a config for comparisons, and as flags of `train.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drkd_jax.errors import UserError, faults_of
from drkd_jax.recipes.finding import load_recipe
from drkd_jax.renamed import refuse_old_key
from drkd_jax.step.settings import set_keys

ROOT = Path(__file__).resolve().parents[2]


def resolve(recipe: str, overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The complete config of a run, as a plain nested dict.

    Args:
        recipe: A recipe's name, or its file relative to the checkout; see `find_recipe`.
        overrides: Values by dotted key.
        where: The source of the overrides, for error messages.

    Raises:
        UserError: A key is unknown to the recipe, or a value has the wrong type; it is named.
    """
    config = load_recipe(recipe, ROOT)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        part: Any = config
        for name in parents:
            part = part.get(name) if isinstance(part, ConfigDict) else None
        if not isinstance(part, ConfigDict) or last not in part:
            with faults_of(where):
                refuse_old_key(key)
            known = f"; {'.'.join(parents)} has {', '.join(sorted(part))}" if part else ""
            raise UserError(f"{where}: {key} is no key of {recipe}{known}")
        try:
            new = _as_tuple(value)
            if part.get_type(last) is float and type(new) is int:
                new = float(new)
            part[last] = new
        except TypeError as error:
            raise UserError(f"{where}: {key} = {value!r}: {error}") from error
    found = config.to_dict()  # empty keys are equivalent to absent ones
    return found | {key: set_keys(found[key]) for key in ("student", "teacher") if found.get(key)}


def as_flags(overrides: Mapping[str, Any]) -> list[str]:
    """The overrides as arguments of `train.py`."""
    return [f"--config.{key}={_as_tuple(value)}" for key, value in overrides.items()]


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
