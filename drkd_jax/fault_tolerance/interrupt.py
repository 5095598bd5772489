"""How a run ends before its time: by a signal, with a checkpoint, or by a number not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptedRunError(Exception):
    """A run was asked to stop; its checkpoint is written and the same command goes on from it."""


class NonFiniteError(Exception):
    """A loss, gradient or parameter stopped being a finite number; the run cannot go on."""


EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell gives it


def leave_quietly() -> None:
    """From now on Ctrl-C ends this process without a traceback; for programs, not for libraries.

    Within `catch_interrupts` the first one raises KeyboardInterrupt, within `stop_request` it is
    only noted. Any other one leaves the process at once: it may meet an import, clean-up, a
    destructor or another library's callback, where an exception prints a traceback or is lost.
    Checkpoints and other files are made whole before they take their names, so none is harmed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _interrupt)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[None]:
    """Where the first Ctrl-C may be raised as KeyboardInterrupt, since it is caught outside."""
    _catching.append(True)
    try:
        yield
    finally:
        _catching.clear()


_catching: list[bool] = []  # of this process; empty from the first one on


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _catching and not (_active and _active[0].name) and not _imports(frame):
        _catching.clear()
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted: left at once\n")
    processes = sys.modules.get("multiprocessing")  # of the loader, where there are some
    for child in processes.active_children() if processes else ():
        child.kill()  # they ignore what the run alone should answer
    os._exit(EXIT_INTERRUPTED)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which may turn the exception into an ImportError."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopRequest:
    """Holds the name of the signal that asked for the end, once one did."""

    name: str | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While active, the first SIGTERM or SIGINT is only noted; a second one acts as before.

    Outside the main thread, where Python lets nobody handle signals, it notes nothing. Within
    another one it is the same.
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
    # None: a handler that was not set from Python, as JAX's own on several processes.
    before = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }

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
