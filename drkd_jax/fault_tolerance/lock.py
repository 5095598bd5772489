"""Allows only one run at a time in a work folder, and checks that all its processes share it.

The lock belongs to the process: however the process ends, the kernel releases it, so the lock file
of a dead run blocks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.launcher import launched
from drkd_jax.fault_tolerance.processes import allgather
from drkd_jax.fault_tolerance.writing import as_user_error, reason

LOCK_FILE = "lock"
PATIENCE = 90.0  # seconds; NFS may show another host's file a minute late
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[str]:
    """Locks the work folder for this process; yields the content of the lock file.

    Raises:
        UserError: another run holds the lock (the message says which), or the folder cannot be
            written or locked.
    """
    path = workdir / LOCK_FILE
    with as_user_error(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another run trains in this folder ({_holder(path)}). Wait for its "
                f"end, or use another --workdir{_one_of_several()}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"{path}: cannot be locked ({reason(error)})") from error
            _log.warning("%s: this file system has no locks; start one run only in it", workdir)
        with as_user_error(path):
            os.ftruncate(handle, 0)
            about = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            text = json.dumps(about) + "\n"
            os.write(handle, text.encode())
            with contextlib.suppress(OSError):
                os.fsync(handle)  # so that other hosts see it although it stays open
        yield text
    finally:
        os.close(handle)


def require_shared(workdir: Path, text: str, patience: float = PATIENCE) -> None:
    """Refuses a work folder that is not shared: a checkpoint in it would wait for ever.

    All processes must call it.

    Args:
        workdir: the work folder.
        text: the content of process 0's lock file.
        patience: seconds until a file of another host must be visible.

    Raises:
        UserError: some process does not see that lock; raised on all of them.
    """
    if jax.process_count() == 1:
        return
    until = time.monotonic() + patience
    while not (found := _text(workdir / LOCK_FILE) == text) and time.monotonic() < until:
        time.sleep(0.2)
    blind = allgather(np.array([] if found else [jax.process_index()], np.int32))
    if len(blind):
        raise UserError(
            f"{workdir}: what process 0 writes there is not seen by {len(blind)} of the "
            f"{jax.process_count()} processes (number {blind[0]} for one): --workdir has to be "
            "one folder for all, on a file system that their machines share"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _one_of_several() -> str:
    """A hint for processes that a launcher started together, but not as one run."""
    mine = launched(os.environ)
    if mine is None or mine.count == 1 or jax.process_count() > 1:
        return ""
    return f" ({mine.by} started {mine.count} processes: --distributed makes them one run)"


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {about['process']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "it has just started"  # and has not yet written who it is
