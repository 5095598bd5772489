"""A settings dataclass filled from a plain nested dict, with every unknown key named."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from drkd_jax.errors import UserError

T = TypeVar("T")


def from_dict(default: T, values: Mapping[str, Any], where: str = "") -> T:
    """Lay a plain nested dict over a settings dataclass.

    Args:
        default: the settings that hold for every key not named.
        values: plain values; a nested settings class takes a mapping, or None for its default.
        where: dotted name of the place, for messages.

    Returns:
        A new object of ``default``'s class.

    Raises:
        UserError: for an unknown key, a value of the wrong type or a number that is not finite,
            with the key named.
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
            changes[key] = _plain(name, value, hints[key])
    return dataclasses.replace(default, **changes)  # type: ignore[type-var]


def as_tuples(value: Any) -> Any:
    """JSON's lists as tuples again, at every depth."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: as_tuples(item) for key, item in value.items()}
    return value


def _plain(name: str, value: Any, hint: Any) -> Any:
    """A number, a string or a tuple of the type that the field wants."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name} must be a list of numbers, not {value!r}")
        return tuple(_plain(name, item, typing.get_args(hint)[0]) for item in value)
    wanted = typing.get_args(hint) or (hint,)
    if float in wanted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and bool not in wanted) or not isinstance(value, wanted):
        names = " or ".join("None" if w is type(None) else w.__name__ for w in wanted)
        raise UserError(f"{name} must be {names}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value!r}")
    return value
