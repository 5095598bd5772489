"""Fills a settings dataclass from a plain nested dict and refuses unknown keys by name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from drkd_jax.errors import UserError
from drkd_jax.values import typed

T = TypeVar("T")


def from_dict(default: T, values: Mapping[str, Any], where: str = "") -> T:
    """Override a settings dataclass by a plain nested dict.

    Args:
        default: the settings for every key that is not given.
        values: plain values; a nested settings class takes a mapping, or None for its default.
        where: dotted name of the settings, for messages.

    Returns:
        A new object of ``default``'s class.

    Raises:
        UserError: a key is unknown, a value has the wrong type, or a number is not finite; the
            message names the key.
    """
    fields = {field.name: field for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in fields:
            raise UserError(f"unknown setting {name!r}; known here: {', '.join(sorted(fields))}")
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise UserError(f"{name} must hold settings, not {value!r}")
            changes[key] = from_dict(current, value, f"{name}.")
        else:
            changes[key] = typed(name, value, hints[key])
    return dataclasses.replace(default, **changes)  # type: ignore[type-var]


def as_tuples(value: Any) -> Any:
    """Turns JSON's lists back into tuples, at every depth."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: as_tuples(item) for key, item in value.items()}
    return value
