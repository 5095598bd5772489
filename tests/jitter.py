"""``pytest --jitter=N``: finds verdicts that change if all numbers move in their last digits.

A plugin of pytest. The numeric tests run once unchanged and N times with inputs and weights moved
by a relative 1e-7, about as much as another processor's rounding does; then once on each of XLA's
code paths that can be chosen on one machine. Verdicts that differ are listed, and the exit code is
then 1.

Numbers are moved where they are drawn: `numpy.random.default_rng` and `RandomState` (they also draw
weights), and in the inputs of stored cases; equal numbers are moved equally. Stored answers stay:
they belong to the unmoved numbers, and a tolerance must allow for both. If it does not, since both
sides are computed in float64, `still` keeps the inputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
STEP = 1e-7
# The default: the tests whose verdict depends on comparing numbers.
NUMERIC = (
    "tests/models",
    "tests/ops",
    "tests/distill",
    "tests/crosscheck",
    "tests/test_anchors.py",
    "tests/test_boxes.py",
    "tests/test_losses.py",
)
# Name: XLA_FLAGS, processors. Older instruction sets stand for other machines: without FMA, and
# with vectors of another length, the same program rounds in other places.
CODE_PATHS = {
    "SSE4.2": ("--xla_cpu_max_isa=SSE4_2", 0),
    "AVX": ("--xla_cpu_max_isa=AVX", 0),
    "AVX2": ("--xla_cpu_max_isa=AVX2", 0),
    "vectors of 128 bits": ("--xla_cpu_prefer_vector_width=128", 0),
    "vectors of 512 bits": ("--xla_cpu_prefer_vector_width=512", 0),
    "fusion emitters": ("--xla_cpu_use_fusion_emitters=true", 0),
    "one thread": ("--xla_cpu_multi_thread_eigen=false", 1),
}
SEED, VERDICTS = "DRKD_JITTER_SEED", "DRKD_JITTER_VERDICTS"  # environment variables of a run


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("jitter", "verdicts that hang on the last digits")
    group.addoption("--jitter", type=int, metavar="N", help="runs with numbers moved by 1e-7")
    group.addoption(
        "--code-paths", action="store_true", help="a run on each of XLA's code paths, with --jitter"
    )


# Inside a run: moves numbers, and stores the verdicts.


_still = False


@contextlib.contextmanager
def still() -> Iterator[None]:
    """Does not move the numbers that are drawn inside.

    For computations in float64 that are compared with stored answers to exactly these inputs. There
    no processor's rounding moves a number by 1e-7.
    """
    global _still
    before, _still = _still, True
    try:
        yield
    finally:
        _still = before


def moved(values: Any, seed: int) -> Any:
    """Moves floating-point numbers by at most twice `STEP`, relatively; 0 stays 0.

    Equal arrays are moved equally, so two draws from one seed stay the same.
    """
    array = np.asarray(values)
    if _still or array.dtype.kind != "f":
        return values
    noise = np.random.Generator(np.random.PCG64([seed, zlib.crc32(array.tobytes())]))
    out = (array * (1 + STEP * noise.uniform(-2, 2, array.shape))).astype(array.dtype)
    return out if array.shape else out[()]


def install(seed: int, patch: pytest.MonkeyPatch) -> None:
    """Moves all numbers that NumPy draws, and the inputs of stored cases."""

    def moving(base: type, *names: str) -> type:
        def drawing(name: str) -> Any:
            own = getattr(base, name)
            return lambda self, *a, **k: moved(own(self, *a, **k), seed)

        return type(f"Moved{base.__name__}", (base,), {name: drawing(name) for name in names})

    generator = moving(np.random.Generator, "normal", "standard_normal", "uniform", "random")
    state = moving(np.random.RandomState, "normal", "standard_normal", "uniform")
    patch.setattr(np.random, "RandomState", state)
    default_rng = np.random.default_rng
    patch.setattr(np.random, "default_rng", lambda s=None: generator(default_rng(s).bit_generator))
    load = np.load

    def loaded(file: Any, *more: Any, **named: Any) -> Any:
        found = load(file, *more, **named)
        return MovedFile(found, seed) if Path(str(file)).name == "cases.npz" else found

    patch.setattr(np, "load", loaded)


class MovedFile:
    """An open file of arrays that moves the arrays read from it."""

    def __init__(self, file: Any, seed: int):
        self.file, self.seed, self.files = file, seed, file.files

    def __getitem__(self, key: str) -> Any:
        return moved(self.file[key], self.seed)

    def __enter__(self) -> MovedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def pytest_configure(config: pytest.Config) -> None:
    """Moves the numbers, if the environment asks for it."""
    if seed := int(os.environ.get(SEED, 0)):
        patch = pytest.MonkeyPatch()
        install(seed, patch)
        config.add_cleanup(patch.undo)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Stores the verdict of a test, and why it failed."""
    if path := os.environ.get(VERDICTS):
        if report.when != "call" and report.passed:
            return
        why = report.longreprtext.strip().splitlines()[-1:] if report.failed else []
        with Path(path).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, *why]) + "\n")


# Starts the runs.


def start(
    arguments: list[str], seeds: list[int], flags: str = "", processors: int = 0
) -> Iterator[dict[str, tuple[str, str]]]:
    """Runs all tests once per seed, in one new process.

    So programs are compiled only once. Test files are imported again for each seed, since most
    inputs are drawn at import.

    Args:
        arguments: arguments of pytest.
        seeds: seeds of the noise; 0: nothing moves.
        flags: flags for XLA, after those in the environment.
        processors: how many processors the process may use; 0: all.

    Yields:
        The verdicts for each seed: (outcome, why) by test.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {str(seed): str(Path(folder) / f"{seed}.jsonl") for seed in seeds}
        environment = {
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-c", "from tests import jitter; jitter.child()"]
        kept = os.sched_getaffinity(0) if processors else set()
        if processors:  # a child inherits the processors of its parent
            os.sched_setaffinity(0, set(sorted(kept)[:processors]))
        said = Path(folder) / "said"
        try:
            with said.open("w") as file:
                process = subprocess.Popen(
                    [*command, json.dumps([paths, arguments])],
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=file,
                )
        finally:
            if processors:
                os.sched_setaffinity(0, kept)
        try:
            for path in map(Path, paths.values()):
                done = path.with_suffix(".done")
                while process.poll() is None and not done.exists():
                    time.sleep(0.1)
                if not done.exists():
                    raise SystemExit(f"a run broke off: {said.read_text()[-4000:]}")
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                yield {test: (outcome, "".join(why)) for test, outcome, *why in lines}
        finally:
            process.kill()
            process.wait()


def child() -> None:
    """The program of the process that `start` starts: one run of pytest after the other."""
    paths, arguments = json.loads(sys.argv[1])
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.jitter"]
    options += ["--hypothesis-seed=0"]  # the same examples in every run
    for seed, path in paths.items():
        os.environ |= {SEED: seed, VERDICTS: path}
        for name in [name for name in sys.modules if name.startswith("tests.")]:
            if name not in (__name__, "tests.jitter", "tests.conftest"):
                del sys.modules[name]
        code = pytest.main([*options, *arguments])
        if code not in (0, 1):
            raise SystemExit(f"pytest ended with {code}")
        Path(path).touch()
        Path(path).with_suffix(".done").touch()


def own_arguments(given: list[str]) -> list[str]:
    """The arguments of pytest without the options of this plugin."""
    kept, value = [], False
    for argument in given:
        own = argument.startswith(("--jitter=", "--code-paths")) or argument == "--jitter"
        if not value and not own:
            kept.append(argument)
        value = not value and argument == "--jitter"
    return kept


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With ``--jitter``: starts the runs instead of running tests, and compares them."""
    seeds, paths = config.getoption("jitter"), config.getoption("code_paths")
    if seeds is None and not paths:
        return None
    arguments = own_arguments([str(a) for a in config.invocation_params.args])
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        arguments += NUMERIC
    began = time.monotonic()
    moving = start(arguments, list(range((seeds or 0) + 1)))
    plain = next(moving)
    failed = sorted(test for test, (outcome, _) in plain.items() if outcome == "failed")
    print(f"{len(plain)} tests as they are, {len(failed)} failed", *failed, sep="\n  ", flush=True)
    changed: dict[str, list[str]] = {}

    def compare(name: str, found: dict[str, tuple[str, str]]) -> None:
        missing = "missing", ""
        differing = sorted(
            test
            for test in plain.keys() | found.keys()
            if plain.get(test, missing)[0] != found.get(test, missing)[0]
        )
        seconds = time.monotonic() - began
        print(f"{name}: {len(differing)} verdicts changed, {seconds:.0f} s", flush=True)
        for test in differing:
            print(f"  {test}: {' '.join(found.get(test, missing))}", flush=True)
            changed.setdefault(test, []).append(name)

    for seed, found in enumerate(moving, 1):
        compare(f"seed {seed}", found)
    chosen = CODE_PATHS if paths else {}
    for name, (flags, processors) in chosen.items():
        compare(name, next(start(arguments, [0], flags, processors)))
    print(f"{(seeds or 0) + len(chosen)} runs, {len(changed)} verdicts that change")
    for test, names in sorted(changed.items()):
        print(f"  {test}: in {', '.join(names)}")
    return int(bool(changed))
