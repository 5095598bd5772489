"""The error for faults that the user can correct, as opposed to bugs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_TRY_AGAIN = 75


class UserError(Exception):
    """A fault in the input, the config or the machine that the user can correct.

    The message names the file, the image or the key, and says what to do. The command line
    prints it as one line and exits with code 2.
    """


def one_line(error: BaseException) -> str:
    """An error's message on one line; its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def faults_of(place: Any) -> Iterator[None]:
    """Prefixes the messages of faults raised inside with the file or key they concern.

    Raises:
        UserError: as raised inside, with the prefix.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
