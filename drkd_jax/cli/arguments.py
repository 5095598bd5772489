"""An argument parser whose errors are one line and exit code 2, like all user faults."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

from drkd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `UserError` and accepts no abbreviations."""

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"python -m drkd_jax {command}", description=description, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def above_0(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def score_limit(text: str) -> float:
    """A detector's score, 0 to 1, for argparse."""
    value = _number(text)
    if not 0 <= value <= 1:  # NaN neither
        raise argparse.ArgumentTypeError(f"{text} is not a score: scores lie between 0 and 1")
    return value


def refuse_same_file(source: str, out: str | Path, flag: str = "") -> None:
    """Refuses to write over the file that is to be read.

    Args:
        source: may be a name, which is no place.
        out: the place to write.
        flag: the argument that names it, for messages.

    Raises:
        UserError: they are one file.
    """
    out, read = Path(out), Path(source)
    if out.exists() and read.exists() and out.samefile(read):
        shown = f"{flag}={out}" if flag else str(out)
        raise UserError(f"{shown}: would overwrite the file that is read; name another place")


def depth(text: str) -> int:
    """Bits that the numbers of 16-bit images use, see `decode_image`, for argparse."""
    if not (text.isdecimal() and (int(text) == 0 or 8 <= int(text) <= 16)):
        raise argparse.ArgumentTypeError(f"'{text}' is not 8 to 16 bits, or 0 for all 16")
    return int(text)


def two_numbers(text: str) -> tuple[int, int]:
    """Two integers of at least 1 from a text like 800x1333, for argparse."""
    parts = text.split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not two whole numbers, as 800x1333 is")
    return positive(parts[0]), positive(parts[1])
