"""Checks of single distillation settings; each error message names the key."""

from __future__ import annotations

import math
import numbers
from typing import Any

from drkd_jax.errors import UserError


def choice(term: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise UserError(f"distill.{term}.{key} = {value!r} is unknown: choose one of {names}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def at_least_one(key: str, value: int | None) -> None:
    """Refuses anything but a whole number of at least 1, or None."""
    if value is not None:
        whole(key, value, 1)


def whole(key: str, value: int, least: int) -> None:
    """Refuses anything but a whole number of at least `least`."""
    if not (is_number(value) and isinstance(value, numbers.Integral) and value >= least):
        raise UserError(f"distill.{key} = {value!r}: must be a whole number, {least} or more.")


def positive(key: str, value: float | int) -> None:
    """Refuses anything but a finite number above 0."""
    if not (is_number(value) and value > 0):
        raise UserError(f"distill.{key} = {value!r}: must be a number above 0.")


def not_negative(key: str, value: float | int, why: str = "") -> None:
    """Refuses anything but a finite number of at least 0."""
    if not (is_number(value) and value >= 0):
        raise UserError(f"distill.{key} = {value!r}: must be a number, 0 or more{why}.")
