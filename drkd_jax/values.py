"""Checks the types of the plain values that fill settings; each error message names the key."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any

from drkd_jax.errors import UserError

LARGEST = 2**31 - 1  # JAX would take a larger seed modulo 2**32


def typed(name: str, value: Any, hint: Any) -> Any:
    """A number, a string or a tuple in the type of the field that it fills.

    Args:
        name: the key, for messages.
        value: a plain value; a list will do for a tuple, and a whole number for a float.
        hint: type of the field: a class, a union of classes, or a tuple of one of these.

    Raises:
        UserError: another type, a number that is not finite, or a whole number past `LARGEST`.
    """
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name} must be a list of numbers, not {value!r}")
        return tuple(typed(name, item, typing.get_args(hint)[0]) for item in value)
    wanted = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and abs(value) > LARGEST:  # it may have too many digits to be shown
        raise UserError(f"{name} must be at most {LARGEST}, and is a larger whole number")
    if float in wanted and whole:
        return float(value)
    if (isinstance(value, bool) and bool not in wanted) or not isinstance(value, wanted):
        names = " or ".join("None" if w is type(None) else w.__name__ for w in wanted)
        raise UserError(f"{name} must be {names}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value!r}")
    return value


def section(name: str, value: Any) -> Mapping[str, Any]:
    """A part of a config that holds keys of its own.

    Args:
        name: the key, for messages.
        value: the part; None stands for an empty one.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must hold keys of its own, not {value!r}")
    return value
