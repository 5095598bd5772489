"""One run at a time in a work folder.

The lock belongs to the process: however it ends, the kernel lets it go, so a lock file that a dead
run left behind blocks nobody.
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

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import as_user_error, reason

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work folder for this process.

    Raises:
        UserError: another run holds it (which one is said), or the folder cannot be written or
            locked.
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
                "end, or use another --workdir"
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
            os.write(handle, json.dumps(about).encode() + b"\n")
        yield
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {about['process']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError):  # it has the lock and has not yet said who it is
        return "it has just started"
