"""What the user can mend, told apart from what is our fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_TRY_AGAIN = 75


class UserError(Exception):
    """A fault in the input, the config or the machine that the user can mend.

    The message names the file, the picture or the key, and says what to do. The command line
    prints it as one line and leaves with exit code 2.
    """


@contextlib.contextmanager
def faults_of(place: Any) -> Iterator[None]:
    """Puts the file or key that they are of before the words of faults.

    Raises:
        UserError: as raised inside, with the place.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
