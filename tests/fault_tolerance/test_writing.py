import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import (
    as_user_error,
    is_refused_write,
    make_folder,
    make_place,
    no_place,
    reason,
    refusal,
    replacing,
    write_json,
    write_text,
)


def test_a_file_is_replaced_in_one_go(tmp_path):
    path = tmp_path / "config.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    path, sync = tmp_path / "gain.json", os.fsync

    def other_process(file):
        monkeypatch.setattr(os, "fsync", sync)
        write_text(path, "theirs")

    monkeypatch.setattr(os, "fsync", other_process)  # between our content and its name
    write_text(path, "ours")
    assert path.read_text() == "ours"
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
    assert is_refused_write(RuntimeError("OUT_OF_RANGE: /x/vm.xplane.pb; File too large"))
    assert not is_refused_write(ValueError("shapes differ"))
    assert not is_refused_write(KeyError("os_error_code"))


def test_only_the_system_s_errors_are_turned_into_words(tmp_path):
    with pytest.raises(UserError, match="no permission"), as_user_error(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyError), as_user_error(tmp_path):
        raise KeyError("x")


def test_a_folder_is_made_and_proven(tmp_path):
    folder = make_folder(tmp_path / "a" / "b", "--out")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert make_folder(folder) == folder


def no_files(monkeypatch, code):
    """Makes the system refuse every new file; file permissions would not stop root."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, monkeypatch, code, words):
    no_files(monkeypatch, code)
    with pytest.raises(UserError, match=f"--out={tmp_path}: cannot be written .{words}"):
        make_folder(tmp_path, "--out")
    with pytest.raises(UserError, match=rf"a\.json: cannot be written .{words}"):
        make_place(tmp_path / "a.json")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="there is a file of that name"):
        make_folder(tmp_path / "file", "--out")
    for place in (make_folder, make_place):
        with pytest.raises(UserError, match="a part of the path is a file, not a folder"):
            place(tmp_path / "file" / "x")
        with pytest.raises(UserError, match="the name is too long"):
            place(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="it is a folder"):
        make_place(tmp_path, "--json")


def test_the_place_of_a_file_leaves_the_file_alone(tmp_path):
    path = tmp_path / "new" / "a.json"
    make_place(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    make_place(path)
    assert path.read_text() == "old"


def test_what_is_no_file_on_a_disk_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        make_place(pipe)
        with replacing(pipe) as file:
            file.write(b"through")
        assert os.read(reader, 100) == b"through"
        write_text(pipe, "as text")
        assert os.read(reader, 100) == b"as text"
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    write_text(Path(os.devnull), "to nobody")


def test_a_link_is_written_through(tmp_path):
    real, link, again = tmp_path / "disk" / "a.json", tmp_path / "a.json", tmp_path / "b.json"
    link.symlink_to(real)
    again.symlink_to("a.json")
    make_place(again)  # its target and the folder need not exist
    for text in ("first", "second"):
        write_text(again, text)
        assert real.read_text() == text
        assert link.is_symlink()
        assert again.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "disk"]
    assert list(real.parent.iterdir()) == [real]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    circle, hanging = tmp_path / "circle", tmp_path / "hanging"
    circle.symlink_to("circle")
    hanging.symlink_to("gone")
    for place in (make_folder, make_place, lambda path: write_text(path, "x")):
        with pytest.raises(UserError, match=r"circle: .*\(a link in the path leads in a circle\)"):
            place(circle)
    with pytest.raises(UserError, match="leads in a circle"):
        make_folder(circle / "x", "--workdir")
    with pytest.raises(
        UserError, match=rf"--workdir={hanging}: .*a link to {tmp_path}/gone, which does not exist"
    ):
        make_folder(hanging, "--workdir")
    assert circle.is_symlink()
    (tmp_path / "gone").mkdir()
    assert make_folder(hanging) == hanging


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    path = make_place(tmp_path / name / f"{name}.json", "--json")
    write_text(path, f"<h1>{name}</h1>")
    assert path.read_bytes() == b"<h1>caf\\udce9</h1>"
    write_text(path, json.dumps(name, ensure_ascii=False))
    assert json.loads(path.read_text()) == name


def test_a_file_that_does_not_become_whole_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_refusal_without_a_name_is_one_line():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert no_place(full)
    assert refusal(full) == "the disk is full"
    named = PermissionError(errno.EACCES, "Permission denied", "/x/y")
    assert refusal(named) == "/x/y: no permission"
    assert not no_place(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))


def test_json_is_indented_unless_another_form_is_asked_for(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1], "a": 2})
    assert path.read_text() == '{\n  "b": [\n    1\n  ],\n  "a": 2\n}\n'
    write_json(path, {"b": [1], "a": 2}, indent=None, sort_keys=True)
    assert path.read_text() == '{"a": 2, "b": [1]}\n'
