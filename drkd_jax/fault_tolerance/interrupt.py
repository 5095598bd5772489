"""Early ends of a run: after a signal, with a checkpoint, or because of a non-finite number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptedRunError(Exception):
    """A run was asked to stop; its checkpoint is written, and the same command continues it."""


class NonFiniteError(Exception):
    """A loss, gradient or parameter became non-finite; the run cannot continue."""


# SIGUSR1, since mpirun hands only that one on and then waits for the checkpoint.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells


def leave_quietly() -> None:
    """From now on Ctrl-C ends this process without a traceback; for programs, not for libraries.

    Inside `catch_interrupts` the first Ctrl-C raises KeyboardInterrupt, inside `stop_request` it is
    only recorded. Any other one exits at once: it may arrive in an import, clean-up, a destructor
    or another library's callback, where an exception would print a traceback or be lost.
    Checkpoints and other files are renamed only when complete, so none is damaged.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        signal.signal(signal.SIGINT, _interrupt)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[None]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt, which the caller must catch."""
    _catching.append(True)
    try:
        yield
    finally:
        _catching.clear()


_catching: list[bool] = []  # of this process; empty after the first Ctrl-C


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _catching and not (_active and _active[0].name) and not _imports(frame):
        _catching.clear()
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted: left at once\n")
    processes = sys.modules.get("multiprocessing")  # the loader's, if any
    for child in processes.active_children() if processes else ():
        child.kill()  # they ignore signals that only the run should handle
    os._exit(EXIT_INTERRUPTED)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which could turn the exception into an ImportError."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopRequest:
    """Holds the name of the signal that asked to stop, once there was one."""

    name: str | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While active, the first signal of `STOPS` is only recorded; a second one acts as before.

    Outside the main thread, where Python does not allow signal handlers, nothing is recorded. A
    nested call returns the outer request.
    """
    if _active:
        yield _active[0]
        return
    request = StopRequest()
    _active.append(request)
    try:
        with _noting(request):
            yield request
    finally:
        _active.clear()


_active: list[StopRequest] = []  # of this process


@contextlib.contextmanager
def _noting(request: StopRequest) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: a handler that was not set from Python, such as JAX's own with several processes.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in STOPS}

    def note(number: int, _: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
