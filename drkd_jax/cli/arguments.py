"""An argument parser whose complaints are one line and exit code 2, as all user faults."""

from __future__ import annotations

import argparse
from typing import NoReturn

from drkd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `UserError`, and knows no abbreviations."""

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
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
