"""Trains the runs that are not finished, each by the public command in its own process.

A finished run has a summary and detections; all others continue from their last checkpoint. So this
process and its trainings may be killed at any time: a signal is passed on to the trainings, which
write a checkpoint. Trainings that outlive a SIGKILL of this process hold the lock of their folder;
the next call waits for them instead of starting them again.
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
_MEMORY = 0.9  # share of a GPU's memory for all slots together
_LIVES = 3  # starts of one run; if all end by a signal from elsewhere, it has failed
# One thread each: two such processes on two cores train 1.5 times as much as one of two threads.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclasses.dataclass
class _Running:
    """A training; if `process` is None, another call started it."""

    job: Job
    process: subprocess.Popen[bytes] | None
    slot: int


class Runner:
    """Runs a list of jobs.

    Args:
        jobs: The jobs in order; teachers before their students.
        slots: How many run at once.
        cores: CPU cores to divide among the slots; empty: no pinning.
        shares_memory: Whether the slots take equal parts of a GPU's memory, since a small detector
            leaves most of a large GPU idle.
        programs: Folder of compiled programs.
        about: Stored in each run's folder: what trained it.
        keep_checkpoints: Whether to keep the checkpoints of finished students.
        on_done: Called with the job after each run that ended.

    Attributes:
        failed: Error texts by job name.
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
        """Number of runs that this call has not started yet."""
        return len(self._waiting)

    def steps(self) -> int:
        """Steps done, over all jobs and calls."""
        for each in self._running:
            self._begun[each.job.name] = _step(each.job.folder)
        counted = [job for job in self.jobs if job.name not in self.failed]
        return sum(self._begun.get(job.name, job.steps) for job in counted)

    def run(self, request: StopRequest, tick: Callable[[], None]) -> None:
        """Runs until all jobs have ended, or until all have stopped after a signal.

        Args:
            request: Knows whether a signal asked to stop.
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
            for job in ended:  # after starting the next one, as this may take long
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
                # Ctrl-C reaches only this process, which passes it on once; a second would kill.
                start_new_session=True,
            )

    def note(self, job: Job) -> list[str]:
        """Creates a run's folder with a note about its training; returns the command."""
        command = job.command(self.programs)
        if job.folder.is_symlink() and not job.folder.exists():  # adopted, but deleted since
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
    """Whether a training holds the lock of a work folder."""
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
            with contextlib.suppress(ValueError, KeyError, TypeError):  # incomplete or damaged
                return int(json.loads(line)["step"])
    return 0


def _last_words(folder: Path) -> str:
    """The last line that a failed run printed: usually its error."""
    try:
        lines = (folder / LOG_FILE).read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing was printed"])[-1]


@contextlib.contextmanager
def _on_cores(share: Sequence[int]) -> Iterator[None]:
    """Pins processes from their start; if pinned later, they might have counted all cores."""
    if not share or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
