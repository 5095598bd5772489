"""Traces some steps with `jax.profiler`, for TensorBoard's profile page."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import as_user_error, is_refused_write, reason

FOLDER = "profile"
_WARM_UP = 2  # first steps of a session, skipped if only a number is given, since they compile

_log = logging.getLogger(__name__)


def read_steps(text: str, start: int, last: int | None = None) -> range:
    """The steps that `--profile` asks for. Prints a message if the session has none of them.

    Args:
        text: "5" for five steps after the session's warm-up, "100:110" for steps 100 to 109 of the
            run; "" for none.
        start: the step that the session starts from.
        last: the run's last step, if it is known.

    Returns:
        Numbers of steps, counted from 1.

    Raises:
        UserError: the text has neither form, or the range is empty.
    """
    if not text:
        return range(0)
    first, colon, end = text.partition(":")
    try:
        if colon:
            steps = range(int(first), int(end))
        else:
            begin = start + _WARM_UP + 1
            steps = range(begin, begin + int(first))
    except ValueError:
        steps = range(0)
    if not steps or steps[0] < 1:
        raise UserError(f"--profile={text}: a number of steps, or FIRST:END with FIRST < END")
    if last is not None and start < last and (steps[-1] <= start or steps[0] > last):
        said = "--profile=%s: nothing is traced, this session has steps %d to %d"
        _log.warning(said, text, start + 1, last)
    return steps


class Trace:
    """Starts and ends the trace around its steps.

    Args:
        workdir: the trace is written to its folder `profile`.
        steps: the steps to trace.
        silent: changes state likewise but writes nothing: for all processes but the first.
    """

    def __init__(self, workdir: Path, steps: range, *, silent: bool = False):
        self.folder, self._steps, self._silent = workdir / FOLDER, steps, silent
        self._running = False

    def before(self, step: int) -> None:
        """Called before a step is started.

        Raises:
            UserError: the folder cannot be written.
        """
        if step not in self._steps or self._running:
            return
        self._running = True
        if not self._silent:
            with as_user_error(self.folder):
                self.folder.mkdir(exist_ok=True)
            jax.profiler.start_trace(str(self.folder))

    def ends_with(self, step: int, last: bool) -> bool:
        """Whether the trace ends after this step.

        Args:
            step: the step that was started.
            last: whether it is the last step.
        """
        return self._running and (last or step + 1 not in self._steps)

    def stop(self) -> None:
        """Ends the trace and writes it.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        running, self._running = self._running, False  # ended even if stopping fails
        if running and not self._silent:
            try:
                jax.profiler.stop_trace()
            except (RuntimeError, OSError) as error:
                if not is_refused_write(error):
                    raise
                raise UserError(f"{self.folder}: cannot be written ({reason(error)})") from error
