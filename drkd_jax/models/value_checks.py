"""Checks of single detector settings; each error message names the key."""

from __future__ import annotations

import math
from typing import Any

from drkd_jax.errors import UserError


def one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Refuses a value that is not among the known ones."""
    if value not in known:
        raise UserError(f"{name} is {value!r}; known: {', '.join(map(str, known))}")


def within(name: str, value: float, least: int, most: float = math.inf) -> None:
    """Refuses a number that is too small or too large."""
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise UserError(f"{name} is {value}; it must be {limit}")


def stds(name: str, values: tuple[float, ...]) -> None:
    """Refuses anything but four numbers above 0, or none at all."""
    if values and (len(values) != 4 or min(values) <= 0):
        raise UserError(f"{name} is {values}; it must be four numbers above 0")
