"""What the user can mend, told apart from what is our fault."""

from __future__ import annotations

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_TRY_AGAIN = 75


class UserError(Exception):
    """A fault in the input, the config or the machine that the user can mend.

    The message names the file, the picture or the key, and says what to do. The command line
    prints it as one line and leaves with exit code 2.
    """
