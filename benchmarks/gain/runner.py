"""Trains the runs that are not there yet, each by the public command in a process of its own.

A finished run has a summary and its detections; everything else goes on from its last checkpoint.
So this process and its trainings may be killed at any moment: a signal is handed on and the
trainings write a checkpoint; trainings that outlive a SIGKILL of this process hold the lock of
their folder, and the next call waits for them instead of starting them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gain.plan import Job
from benchmarks.gain.recipes import ROOT
from drkd_jax.errors import EXIT_TRY_AGAIN
from drkd_jax.fault_tolerance.interrupt import StopRequest
from drkd_jax.fault_tolerance.writing import write_text

LOG_FILE = "train.log"
ABOUT_FILE = "about.json"
_POLL = 0.5  # seconds
_MEMORY = 0.9  # of a GPU, of all slots together
_LIVES = 3  # starts of one run that may end by a signal from elsewhere
# One thread each: two such processes on two cores train 1.5 times as much as one with two threads.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclasses.dataclass
class _Running:
    """A training; `process` None: one that another call started."""

    job: Job
    process: subprocess.Popen[bytes] | None
    slot: int


class Runner:
    """Works a list of jobs off.

    Args:
        jobs: In order; a teacher stands before its students.
        slots: How many run at a time.
        cores: CPU cores that are shared out between the slots; empty: nobody is pinned.
        shares_memory: Whether the slots take equal parts of a GPU's memory: a small detector leaves
            most of a large GPU idle.
        programs: Folder of compiled programs.
        about: Kept beside each run: who trained it.
        keep_checkpoints: Leaves a finished student's checkpoints.
        on_done: Called after each run that ended, with the job.

    Attributes:
        failed: Error texts by the job's name.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        slots: int,
        cores: Sequence[int],
        shares_memory: bool = False,
        programs: Path,
        about: dict[str, Any],
        keep_checkpoints: bool,
        on_done: Callable[[Job], None],
    ):
        self.jobs, self.slots, self.cores = jobs, slots, cores
        self.shares_memory = shares_memory
        self.programs, self.about, self.on_done = programs, about, on_done
        self.keep_checkpoints = keep_checkpoints
        self.failed: dict[str, str] = {}
        self._running: list[_Running] = []
        self._ended_by_signal: dict[str, int] = {}
        self._waiting = [job for job in jobs if job.summary() is None]
        self._begun = {job.name: _step(job.folder) for job in self._waiting}
        for job in jobs:
            if job.name not in self._begun:
                self._clean(job)

    @property
    def num_waiting(self) -> int:
        """Runs that are not begun in this call."""
        return len(self._waiting)

    def steps(self) -> int:
        """Steps done, over all jobs and calls."""
        for each in self._running:
            self._begun[each.job.name] = _step(each.job.folder)
        counted = [job for job in self.jobs if job.name not in self.failed]
        return sum(self._begun.get(job.name, job.steps) for job in counted)

    def run(self, request: StopRequest, tick: Callable[[], None]) -> None:
        """Until nothing is left to run, or a signal asked for the end and all have stopped.

        Args:
            request: Whether a signal asks to stop.
            tick: Called several times a second.
        """
        handed_on = False
        while True:
            ended = list(self._reap())
            if request.name is None:
                self._start()
            elif not handed_on:
                handed_on = True
                for each in self._running:
                    if each.process is not None:
                        each.process.send_signal(signal.SIGTERM)
            for job in ended:  # after the next one was started: this may take a while
                self.on_done(job)
            waited_for = [each for each in self._running if each.process or not handed_on]
            if not waited_for:
                return
            tick()
            time.sleep(_POLL)

    def _start(self) -> None:
        free = [n for n in range(self.slots) if n not in {each.slot for each in self._running}]
        for job in list(self._waiting):
            if not free:
                return
            if job.teacher is not None and job.teacher.summary() is None:
                if job.teacher.name in self.failed:
                    self.failed[job.name] = "its teacher failed"
                    self._waiting.remove(job)
                continue
            self._waiting.remove(job)
            slot = free.pop(0)
            process = None if is_locked(job.folder) else self._train(job, slot)
            self._running.append(_Running(job, process, slot))

    def _train(self, job: Job, slot: int) -> subprocess.Popen[bytes]:
        command = self.note(job)
        environment, share = dict(os.environ), self._share(slot)
        if len(share) == 1:
            flags = f"{environment.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
            environment["XLA_FLAGS"] = flags
        if self.shares_memory and self.slots > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_MEMORY / self.slots:.3f}")
        with (job.folder / LOG_FILE).open("ab") as log, _on_cores(share):
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is for this process, which hands it on once; twice would end it at once.
                start_new_session=True,
            )

    def note(self, job: Job) -> list[str]:
        """Makes a run's folder with a note of who trains it; returns the command that does."""
        command = job.command(self.programs)
        if job.folder.is_symlink() and not job.folder.exists():  # adopted, and gone since
            job.folder.unlink()
        job.folder.mkdir(parents=True, exist_ok=True)
        if not (job.folder / ABOUT_FILE).is_file():
            about = json.dumps({**self.about, "command": command[1:]}, indent=2)
            write_text(job.folder / ABOUT_FILE, about + "\n")
        return command

    def _share(self, slot: int) -> Sequence[int]:
        if self.slots == 1 or len(self.cores) < self.slots:
            return ()
        first, last = (len(self.cores) * n // self.slots for n in (slot, slot + 1))
        return self.cores[first:last]

    def _reap(self) -> Iterator[Job]:
        for each in list(self._running):
            job, process = each.job, each.process
            if is_locked(job.folder) if process is None else process.poll() is None:
                continue
            self._running.remove(each)
            if job.summary() is not None:
                self._begun[job.name] = job.steps
                self._clean(job)
                yield job
            elif process is None or self._may_go_on(job, process.returncode):
                self._waiting.insert(0, job)
            else:
                self.failed[job.name] = f"exit code {process.returncode}: {_last_words(job.folder)}"
                yield job

    def _may_go_on(self, job: Job, code: int) -> bool:
        """Whether a run that ended early was only interrupted."""
        if code != EXIT_TRY_AGAIN and code >= 0:
            return False
        number = self._ended_by_signal[job.name] = self._ended_by_signal.get(job.name, 0) + 1
        return code == EXIT_TRY_AGAIN or number < _LIVES

    def _clean(self, job: Job) -> None:
        if self.keep_checkpoints or not job.is_student or job.folder.is_symlink():
            return
        for name in ("checkpoints", "best"):
            shutil.rmtree(job.folder / name, ignore_errors=True)


def is_locked(folder: Path) -> bool:
    """Whether a training holds a work folder."""
    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def _step(folder: Path) -> int:
    """The last step in a run's log of metrics."""
    with contextlib.suppress(OSError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 15)))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half read, or damaged
                return int(json.loads(line)["step"])
    return 0


def _last_words(folder: Path) -> str:
    """What a failed run printed last: its error, as a rule."""
    try:
        lines = (folder / LOG_FILE).read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing was printed"])[-1]


@contextlib.contextmanager
def _on_cores(share: Sequence[int]) -> Iterator[None]:
    """What is started here begins on these cores; moved later, it might have counted them all."""
    if not share or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
