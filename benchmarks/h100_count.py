"""Counts what a full-size training step costs on an H100, without having one.

    python benchmarks/h100_count.py [--recipe=NAME,...] [--devices=1,8] [--json=FILE] [--hlo=FOLDER]

XLA compiles the product's own jitted step for an H100 that is only described. The figures come from
the optimised program: kernels, TFLOP of products, GB read and written, ms by part of the program,
buffers, and traffic between GPUs. They are counts, not measurements: bytes, kernels, buffers and
collectives are XLA's own; milliseconds are a lower bound by assumed rates, which are shown. No
images are read and no weights are made. Needs JAX's CUDA 13 plugin (no GPU, no driver); a message
says if it is missing. A compilation takes minutes on one CPU core. ``--read FILE...`` counts
programs that ``--hlo`` wrote before, and needs only this checkout. Exit code 0: all were counted;
1: some did not compile; 2: a fault in the flags.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # counts the checkout of this file

from benchmarks.h100.counting import count  # noqa: E402
from benchmarks.h100.hlo import read_module  # noqa: E402
from benchmarks.h100.parts import PARTS  # noqa: E402
from benchmarks.h100.table import assumed, markdown, name  # noqa: E402
from drkd_jax.errors import EXIT_FAULT, EXIT_USER, UserError  # noqa: E402

RECIPES = (
    "retinanet_r50_fpn_2x_coco",
    "retinanet_r50_fpn_2x_coco_drkd",
    "faster_rcnn_r50_fpn_2x_coco",
    "faster_rcnn_r50_fpn_2x_coco_drkd",
)
PRECISIONS = {"bf16": "bfloat16", "float32": "float32"}
MINUTE = 60.0  # seconds
HEADER = "// h100_count "  # followed by the case as JSON, above the program's text


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return _read(options) if options.read else _compile(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _read(options: argparse.Namespace) -> int:
    results = _empty()
    for file in options.read:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--read {file}: cannot be read: {error}") from error
        results["cases"].append(_counted(_about(text, file), text, options, str(file)))
    _show(results, options)
    return 0


def _compile(options: argparse.Namespace) -> int:
    from benchmarks.h100 import compiling

    compiling.set_up()  # before JAX is imported
    from benchmarks.gain.machine import commit, versions

    results, program = _empty(), {"commit": commit(), "versions": versions()}
    before, failed = _earlier(options), 0
    for folder in filter(None, (options.hlo, options.json and options.json.parent)):
        folder.mkdir(parents=True, exist_ok=True)
    cases = [(recipe, devices) for devices in options.devices for recipe in options.recipe]
    for number, (recipe, devices) in enumerate(cases, start=1):
        about: dict[str, Any] = {
            "recipe": recipe,
            "plain": options.plain,
            "devices": devices,
            "batch": options.batch,
            "precision": options.precision,
            **program,
        }
        say = _Progress(f"{number} of {len(cases)}, {name(about)}")
        try:
            about, text = _program(about, say)
        except UserError:
            raise
        except Exception as error:  # the other cases are still useful
            say(f"did not compile: {type(error).__name__}: {str(error).splitlines()[0]}")
            failed += 1
            continue
        if options.hlo:
            file = f"{recipe}{'-plain' if options.plain else ''}-{devices}gpu-{options.precision}"
            (options.hlo / f"{file}.hlo").write_text(f"{HEADER}{json.dumps(about)}\n{text}")
        results["cases"].append(_counted(about, text, options, recipe))
        say(f"{results['cases'][-1]['whole']['ms']:.1f} ms by count")
        _write(results, options)
    _show(results, options, before)
    return EXIT_FAULT if failed else 0


def _program(about: dict[str, Any], say: _Progress) -> tuple[dict[str, Any], str]:
    """The description of a case, and the optimised program's text."""
    from benchmarks.h100 import compiling, steps
    from drkd_jax.ops.platform import tracing_for

    start = time.perf_counter()
    config = steps.read_config(
        about["recipe"],
        plain=about["plain"],
        precision=PRECISIONS[about["precision"]],
        batch_size=about["batch"] * about["devices"],
    )
    with tracing_for("gpu"):
        step = steps.abstract_step(config, devices=about["devices"])
        lowered = steps.lower(step, compiling.described_mesh(about["devices"]))
    traced = time.perf_counter() - start
    say(f"traced in {traced:.0f} s; XLA compiles now, which takes minutes")
    with say.every(MINUTE, "XLA still compiles"):
        compiled = lowered.compile()
    seconds = time.perf_counter() - start - traced
    say(f"compiled in {seconds:.0f} s")
    found = {
        "canvas": list(step.batch.images.shape[1:3]),
        "trace_seconds": round(traced, 1),
        "compile_seconds": round(seconds, 1),
        "buffers": compiling.buffers(compiled),
        "trips": steps.least_trips(step),
    }
    return about | found, compiled.as_text()


class _Progress:
    """Prints lines with their subject and the seconds since its creation."""

    def __init__(self, what: str):
        self._what, self._start = what, time.perf_counter()
        self("traces")

    def __call__(self, words: str) -> None:
        seconds = time.perf_counter() - self._start
        print(f"[{self._what}] {seconds:5.0f} s: {words}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def every(self, seconds: float, words: str) -> Iterator[None]:
        """Repeats a message while the block runs."""
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(seconds):
                self(words)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _about(text: str, file: Path) -> dict[str, Any]:
    """The description that `--hlo` wrote above the program; of other files, only the name."""
    first = text.partition("\n")[0]
    about = {"file": file.name}
    if first.startswith(HEADER):
        try:
            about |= json.loads(first.removeprefix(HEADER))
        except ValueError as error:
            raise UserError(f"--read {file}: its first line is damaged: {error}") from error
    return about


def _counted(
    about: dict[str, Any], text: str, options: argparse.Namespace, where: str
) -> dict[str, Any]:
    trips = about.get("trips", {}) | options.trips
    return about | {"trips": trips} | count(read_module(text, where), trips, options.top)


def _empty() -> dict[str, Any]:
    return {"assumed": assumed(), "cases": []}


def _write(results: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _show(
    results: dict[str, Any], options: argparse.Namespace, before: dict[str, Any] | None = None
) -> None:
    _write(results, options)
    print(markdown(results, before or _earlier(options)), end="")


def _earlier(options: argparse.Namespace) -> dict[str, Any] | None:
    if not options.against:
        return None
    try:
        found = json.loads(options.against.read_text())
        if not isinstance(found["cases"], list):
            raise TypeError("no cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--against={options.against}: no results of this benchmark ({error}); give a file "
            "that --json wrote"
        ) from error
    return dict(found)


def _rounded(value: Any) -> Any:
    """Rounds floats to six digits, more than are significant."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on, like 1,8")
    return found


def _trips(text: str) -> dict[str, int]:
    found = dict(part.rsplit("=", 1) for part in text.split(","))
    for part, trips in found.items():
        if part not in PARTS or not trips.isdecimal() or int(trips) < 1:
            raise argparse.ArgumentTypeError(
                f"{part}={trips}: should be like RoIAlign=4; parts are {', '.join(PARTS)}"
            )
    return {part: int(trips) for part, trips in found.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(RECIPES)
    parser.add_argument(
        "--recipe",
        type=lambda text: tuple(text.split(",")),
        default=RECIPES,
        metavar="NAME,...",
        help=f"recipes by name or file (default: {names})",
    )
    parser.add_argument("--plain", action="store_true", help="leave their distillation out")
    parser.add_argument(
        "--devices", type=_numbers, default=(1, 8), metavar="1,8", help="GPUs of a host"
    )
    parser.add_argument("--batch", type=int, default=8, help="images a GPU (default: 8)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="keep the programs there")
    parser.add_argument("--read", nargs="+", type=Path, metavar="FILE", help="programs of --hlo")
    parser.add_argument("--against", type=Path, metavar="FILE", help="earlier results of --json")
    parser.add_argument(
        "--trips",
        type=_trips,
        default={},
        metavar="PART=N,...",
        help="trips of loops whose number only the data decides (default: the fewest that there "
        "can be, for RoIAlign one tile a region; else 1)",
    )
    parser.add_argument("--top", type=int, default=20, help="longest kernels in the JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
