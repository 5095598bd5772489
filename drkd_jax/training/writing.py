"""Files that are either whole or as they were, and clear words where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drkd_jax.errors import UserError

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
}


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a small file in one go: who reads it sees the old content or the new one.

    Raises:
        UserError: it cannot be written; the old content is still there.
    """
    new = path.with_name(path.name + ".new")
    with told(path):
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into words for the user.

    Raises:
        UserError: in the place of any `OSError` within.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


@contextlib.contextmanager
def held_back() -> Iterator[list[Any]]:
    """Holds back the errors that threads of C++ libraries can raise to nobody.

    Python prints a traceback for each of them at once, in the midst of whatever is said. Within,
    they are only listed; what is still in the list at the end is printed then, as always.

    Yields:
        The list, of what `sys.unraisablehook` takes.
    """
    held: list[Any] = []
    before = sys.unraisablehook
    sys.unraisablehook = held.append
    try:
        yield held
    finally:
        sys.unraisablehook = before
        for each in held:
            before(each)


def is_refused_write(error: Exception) -> bool:
    """Whether an error is the operating system's refusal to write, in whatever class it comes."""
    return isinstance(error, OSError) or (
        isinstance(error, (ValueError, RuntimeError)) and "os_error_code" in str(error)
    )


def reason(error: Exception) -> str:
    """Why a write failed, in a few words; full disks are named whoever tells of them."""
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno, error.strerror or os.strerror(error.errno))
    text = str(error)
    for number, words in _WORDS.items():
        if os.strerror(number) in text:  # libraries in C++ hand on the system's own text
            return words
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
