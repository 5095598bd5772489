import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.lock import LOCK_FILE, locked
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
