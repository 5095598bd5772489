"""Atomic file writes, and clear error messages when files cannot be written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from drkd_jax.errors import UserError
from drkd_jax.paths import link_target

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EEXIST: "there is a file of that name",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "a link in the path leads in a circle",
}
_PROOF = bytes(1 << 16)  # more than a file system stores within a file's own entry


def make_folder(folder: str | Path, flag: str = "") -> Path:
    """Creates a folder with its parents, and verifies that files can be written there.

    Call it before the work whose result goes there.

    Args:
        folder: may already exist.
        flag: the argument that names it, for messages.

    Raises:
        UserError: it cannot be created, or nothing can be written in it.
    """
    folder = Path(folder)
    with _refused(folder, flag):
        target = link_target(folder)
        if target != folder and not target.exists():  # mkdir would call the link a file
            raise FileNotFoundError(errno.ENOENT, f"a link to {target}, which does not exist")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROOF)
    return folder


def make_place(file: str | Path, flag: str = "") -> Path:
    """Creates the folder of a file to be written later, and verifies that this is possible.

    An existing file of that name is not changed.

    Raises:
        UserError: it cannot be written.
    """
    file = Path(file)
    with _refused(file, flag):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_stream(file):
            os.close(os.open(file, os.O_WRONLY))
            return file
        target = link_target(file)
        if target.parent.exists() and not target.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        # With the longest name that is used while writing.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.") as proof:
            proof.write(_PROOF)
    return file


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8.

    A byte of a file name that is not UTF-8 is written as an escape, as JSON has it: "udcff" after
    a backslash.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any, **form: Any) -> None:
    """`write_bytes` of a value as JSON, indented by 2 unless `form` (of `json.dumps`) differs."""
    write_text(path, json.dumps(value, **{"indent": 2, **form}) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a small file atomically: readers see either the old content or the new one.

    Several processes may write at once; the last one's content stays.

    Raises:
        UserError: it cannot be written; the old content is unchanged.
    """
    with as_user_error(path), replacing(path, f".{secrets.token_hex(2)}.new") as file:
        file.write(content)
        if not _is_stream(path):  # streams cannot be synced
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path, ending: str = ".new") -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once it is complete; an error leaves `path` unchanged.

    Until then its name has the additional ending. A link stays, and what it leads to is replaced.
    Targets that are not files on a disk, like
    /dev/stdout or a pipe, are written directly.

    Raises:
        OSError: it cannot be written.
    """
    if _is_stream(path):
        with path.open("wb") as file:
            yield file
        return
    target = link_target(path)
    new = target.with_name(target.name + ending)
    try:
        with new.open("wb") as file:
            yield file
        new.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a message for the user.

    Raises:
        UserError: in place of any `OSError` raised inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


@contextlib.contextmanager
def _refused(path: Path, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shown = (
            f"{flag}={path}" if flag.startswith("-") else " ".join(filter(None, (flag, str(path))))
        )
        raise UserError(
            f"{shown}: cannot be written ({reason(error)}); name another place"
        ) from error


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def collect_unraisable() -> Iterator[list[Any]]:
    """Collects errors from threads of C++ libraries, which nobody can catch.

    Python would print a traceback for each of them immediately, in the middle of other output.
    Inside this context they are only collected; those still in the list at the end are printed.

    Yields:
        The list of arguments of `sys.unraisablehook`.
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


def no_place(error: OSError) -> bool:
    """Whether an error means no space or no permission for a file, whoever wrote it."""
    return error.errno in _WORDS


def refusal(error: OSError) -> str:
    """One line about such an error, with the file's name if the system gave it."""
    return ": ".join(map(str, filter(None, (error.filename, reason(error)))))


def is_refused_write(error: Exception) -> bool:
    """Whether an error is the operating system's refusal to write, whatever its class."""
    if isinstance(error, OSError):
        return True
    text = str(error) if isinstance(error, (ValueError, RuntimeError)) else ""
    # C++ libraries pass on the system's own text, some with its number.
    return "os_error_code" in text or any(os.strerror(number) in text for number in _WORDS)


def reason(error: Exception) -> str:
    """Why a write failed, in a few words; recognises a full disk whatever reports it."""
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno, error.strerror or os.strerror(error.errno))
    text = str(error)
    for number, words in _WORDS.items():
        if os.strerror(number) in text:
            return words
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
