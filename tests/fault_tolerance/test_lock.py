import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import lock
from drkd_jax.fault_tolerance.lock import LOCK_FILE, locked, require_shared
from drkd_jax.training import loop
from tests.training import tiny

HOLD = """
import sys, time
from pathlib import Path
from drkd_jax.fault_tolerance.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"another run .* \(process {os.getpid()} on .* since "),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # and the folder is free again
        pass


def test_a_run_in_the_folder_of_another_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another run trains in this folder"):
        loop.train(tiny.config(), tmp_path)


def test_tasks_of_srun_without_the_flag_are_told_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    words = r"another --workdir \(Slurm started 2 processes: --distributed makes them one run\)$"
    with locked(tmp_path), pytest.raises(UserError, match=words), locked(tmp_path):
        pass
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with locked(tmp_path), pytest.raises(UserError, match=r"another --workdir$"), locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match=f"process {process.pid} on"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path):
        pass
    assert "has no locks" in caplog.text


def test_a_lock_that_fails_otherwise_is_one_line(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    words = r"lock: cannot be locked \(Input/output error\)"
    with pytest.raises(UserError, match=words), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    words = r"lock: cannot be written \(it is a folder\)"
    with pytest.raises(UserError, match=words), locked(tmp_path):
        pass


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is number 1, and process 0 sees its own lock."""
    monkeypatch.setattr(lock.jax, "process_count", lambda: 2)
    monkeypatch.setattr(lock.jax, "process_index", lambda: 1)
    monkeypatch.setattr(lock, "allgather", lambda numbers: numbers)


def test_a_folder_that_not_all_processes_share_is_refused(tmp_path, second_of_two):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    told = "not seen by 1 of the 2 processes \\(number 1 for one\\)"
    with locked(tmp_path / "first") as text:
        require_shared(tmp_path / "first", text)
        for name in ("second", "none"):
            with pytest.raises(UserError, match=told):
                require_shared(tmp_path / name, text, patience=0.1)
        (tmp_path / "second" / LOCK_FILE).write_text('{"process": 1}')  # of a run of before
        with pytest.raises(UserError, match=told):
            require_shared(tmp_path / "second", text, patience=0.1)


def test_a_lock_that_shows_late_is_waited_for(tmp_path, second_of_two, monkeypatch):
    def appear(_):
        (tmp_path / LOCK_FILE).write_text("here")

    monkeypatch.setattr(lock.time, "sleep", appear)
    require_shared(tmp_path, "here", patience=60)


@pytest.mark.parametrize("text", ["", "[1]", "3", "{}"])
def test_a_lock_file_that_does_not_say_who_holds_it(tmp_path, text):
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(text)
        with pytest.raises(UserError, match="it has just started"), locked(tmp_path):
            pass
