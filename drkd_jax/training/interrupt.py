"""How a run ends before its time: by a signal, with a checkpoint, or by a number not finite."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptedRunError(Exception):
    """A run was asked to stop; its checkpoint is written and the same command goes on from it."""


class NonFiniteError(Exception):
    """A loss, gradient or parameter stopped being a finite number; the run cannot go on."""


class StopRequest:
    """Holds the name of the signal that asked for the end, once one did."""

    name: str | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While active, the first SIGTERM or SIGINT is only noted; a second one acts as usual.

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
