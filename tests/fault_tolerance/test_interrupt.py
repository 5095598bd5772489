"""Ctrl-C, once and twice, in a separate process: an exit code and no traceback."""

import signal
import subprocess
import sys
import textwrap

import pytest

from drkd_jax import __main__ as command_line
from tests.training.tiny import ROOT


@pytest.fixture(autouse=True)
def heard():
    """Restores Ctrl-C: a test runner in the background may ignore it, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


START = """
    import os, signal, sys, time
    from drkd_jax.fault_tolerance.interrupt import catch_interrupts, leave_quietly, stop_request

    def press():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the handler runs

    leave_quietly()
"""


def run(script: str, start: str = START) -> tuple[int, str, str]:
    code = textwrap.dedent(start) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "press()",  # while the program starts
        "with catch_interrupts(): pass\npress()",  # at its end
        """
        try:
            with catch_interrupts():
                press()
        except KeyboardInterrupt:
            try:
                press()  # while what it began is cleaned up
            finally:
                print("went on")
        """,
        """
        import importlib.abc, importlib.util

        class Loader(importlib.abc.Loader):
            def exec_module(self, module):
                try:
                    press()  # C extensions make an ImportError of an exception
                except BaseException as error:
                    raise ImportError from error

        spec = importlib.util.spec_from_loader("module", Loader())
        sys.meta_path.insert(0, type("Finder", (), {"find_spec": lambda *_: spec}))
        with catch_interrupts():
            import module
        """,
        """
        with catch_interrupts(), stop_request() as request:
            press()
            assert request.name == "SIGINT"
            try:
                press()
            finally:
                print("went on")
        """,
    ],
    ids=["start", "end", "clean-up", "import", "training"],
)
def test_the_last_one_leaves_at_once(script):
    code, out, err = run(script)
    assert code == 130
    assert out == ""
    assert err == "interrupted: left at once\n"


def test_the_first_one_can_be_caught():
    code, out, err = run(
        """
        try:
            with catch_interrupts():
                press()
        except KeyboardInterrupt:
            print("caught")
        """
    )
    assert (code, out, err) == (0, "caught\n", "")


def test_where_it_is_ignored_it_stays_so():
    start = START.replace("leave_quietly()\n", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    assert run("leave_quietly()\npress()\nprint('on')", start) == (0, "on\n", "")


@pytest.mark.parametrize("words", ["", "3 of 5 images are done"])
def test_a_command_says_so_in_one_line(words, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt(*filter(None, [words]))

    module = command_line.import_module("drkd_jax.cli.evaluate")
    monkeypatch.setattr(module, "main", interrupted)
    assert command_line.main(["evaluate"]) == 130
    said = capsys.readouterr().err
    assert said == ("interrupted: 3 of 5 images are done\n" if words else "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "program",
    [
        "runpy.run_module('drkd_jax', run_name='__main__')",
        "runpy.run_path('train.py', run_name='__main__')",
        "from drkd_jax import cli; cli.leave_quietly = begun; cli.run()",
    ],
)
def test_programs_listen_before_jax_is_imported(program):
    """During the seconds of the import, Ctrl-C would print a traceback or be lost."""
    script = f"""
    import runpy, sys
    from drkd_jax.fault_tolerance import interrupt

    def begun():
        print("jax" in sys.modules, "flax" in sys.modules)
        raise SystemExit(0)

    interrupt.leave_quietly = begun
    {program}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["False", "False"], run.stderr
