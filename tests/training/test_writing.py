import errno
import os

import pytest

from drkd_jax.errors import UserError
from drkd_jax.training.writing import is_refused_write, reason, told, write_text


def test_a_file_is_replaced_in_one_go(tmp_path):
    path = tmp_path / "config.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "eval.json"
    write_text(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"eval\.json: cannot be written \(the disk is full\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_library_says_of_a_full_disk_is_understood():
    error = ValueError("OUT_OF_RANGE: Failed to write: File too large [os_error_code='27']")
    assert is_refused_write(error)
    assert reason(error) == "the file would be larger than this process may write"
    full = ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")
    assert reason(full) == "the disk is full"
    assert not is_refused_write(ValueError("shapes differ"))
    assert not is_refused_write(KeyError("os_error_code"))


def test_only_the_system_s_errors_are_turned_into_words(tmp_path):
    with pytest.raises(UserError, match="no permission"), told(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyError), told(tmp_path):
        raise KeyError("x")
