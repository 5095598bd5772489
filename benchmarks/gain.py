"""Measures what distillation gains: students with and without it, over seeds, sets, detectors.

    python benchmarks/gain.py benchmarks/gain/deeppcb.toml --data=DIR --workdir=runs/gain

Trains the table's runs that are not finished: the teacher once, then every arm's student, the first
seed of all before the second. It may be stopped or killed at any time; the same command continues.
Writes ``gain.json``, ``gain.md`` and ``gain.png`` into WORKDIR/TABLE after every run. The format of
a table: see gain/table.py. Exit code 0: all runs are done; 1: some failed; 2: a fault in the table
or the data; 75: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measures the checkout of this file

from benchmarks.gain.adopt import adopt  # noqa: E402
from benchmarks.gain.forest import forest  # noqa: E402
from benchmarks.gain.machine import commit, cores, machine, versions  # noqa: E402
from benchmarks.gain.markdown import markdown  # noqa: E402
from benchmarks.gain.plan import Job, Plan, make_plan  # noqa: E402
from benchmarks.gain.progress import Bar  # noqa: E402
from benchmarks.gain.results import DRAWS, as_json, gather  # noqa: E402
from benchmarks.gain.runner import Runner  # noqa: E402
from benchmarks.gain.table import read_table  # noqa: E402
from drkd_jax.cli.arguments import positive  # noqa: E402
from drkd_jax.errors import EXIT_FAULT, EXIT_TRY_AGAIN, EXIT_USER, UserError  # noqa: E402
from drkd_jax.fault_tolerance.interrupt import stop_request  # noqa: E402
from drkd_jax.fault_tolerance.writing import write_text  # noqa: E402
from drkd_jax.paths import expand_arguments  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(expand_arguments(given))
    command = shlex.join(["python", "benchmarks/gain.py", *given])
    try:
        return _run(options, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _run(options: argparse.Namespace, command: str) -> int:
    table = read_table(options.table)
    if options.quick:
        table = table.quick()
    only = options.only.split(",") if options.only else None
    table = table.chosen(only, _seeds(options.seeds) if options.seeds else None)
    data = options.data.absolute() if options.data else None
    workdir = options.workdir.absolute()
    plan = make_plan(table, workdir, data)
    for line in adopt(plan, options.adopt):
        print(line, flush=True)
    here = machine()
    about = {"machine": here, "versions": versions(), "commit": commit()}
    frame = {
        "table": table.name,
        "file": str(options.table),
        "command": command,
        "reference": table.reference,
        "draws": DRAWS,
        **about,
        "base": table.base,
        "arms": {
            arm.name: {"distilled": arm.distilled, "overrides": arm.overrides} for arm in table.arms
        },
    }
    report = _Report(plan, frame)
    report.write({})  # reports faults of finished runs before hours of training
    if options.report:
        print(f"{plan.folder}/gain.md")
        return 0
    on_cpu = here["platform"] == "cpu"
    with stop_request() as request, Bar(plan.jobs) as bar:

        def done(job: Job) -> None:
            report.write(runner.failed)
            summary = job.summary()
            score = f"AP {100 * summary['final']['AP']:.1f}" if summary else runner.failed[job.name]
            bar.say(f"{job.name}: {score}", runner.steps())

        runner = Runner(
            plan.jobs,
            slots=options.jobs,
            # With one thread, XLA of jaxlib 0.10.2 takes over 20 GB for a tiny Faster R-CNN.
            cores=cores() if on_cpu and not options.quick else (),
            shares_memory=not on_cpu,
            programs=_programs(workdir),
            about=about,
            keep_checkpoints=options.keep_checkpoints,
            on_done=done,
        )
        bar.start(runner.steps())
        runner.run(request, lambda: bar.at(runner.steps()))
    report.write(runner.failed)
    print(f"{plan.folder}/gain.md")
    if request.name:
        print(f"{request.name}: stopped; the same command goes on", file=sys.stderr)
        return EXIT_TRY_AGAIN
    for name, text in runner.failed.items():
        print(f"failed: {name}: {text}", file=sys.stderr)
    return EXIT_FAULT if runner.failed else 0


class _Report:
    """Writes the results so far.

    Args:
        plan: The table's runs.
        frame: The part of the results that is the same after every run.
    """

    def __init__(self, plan: Plan, frame: dict[str, Any]):
        self._plan, self._frame = plan, frame

    def write(self, failed: dict[str, str]) -> None:
        results = {**self._frame, **gather(self._plan, failed)}
        folder = self._plan.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "gain.json", json.dumps(as_json(results), indent=1) + "\n")
        write_text(folder / "gain.md", markdown(results))
        forest(folder / "gain.png", results)


def _programs(workdir: Path) -> Path:
    """The folder of compiled programs: JAX's own setting, if there is one."""
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or workdir / "programs").absolute()


def _seeds(text: str) -> tuple[int, ...]:
    """Parses ``0-4``, ``3`` or ``0,2,5``.

    Raises:
        UserError: The text has none of these forms.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise UserError(f"--seeds={text}: should be like 0-4, 3 or 0,2,5")
        seeds = range(int(first), int(last or first) + 1)
        if not seeds:
            raise UserError(f"--seeds={text}: {part} names none, the first is above the last")
        found += seeds
    return tuple(dict.fromkeys(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="a table file, as benchmarks/gain/deeppcb.toml")
    parser.add_argument("--data", type=Path, metavar="DIR", help="what {data} in the table is")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/gain"), help="of all tables (default: runs/gain)"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        help="trainings at a time: each on its share of the cores, or of a GPU's memory",
    )
    parser.add_argument("--only", metavar="ARM,...", help="these arms and the reference")
    parser.add_argument("--seeds", metavar="0-4", help="other seeds than the table's")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is there")
    parser.add_argument(
        "--quick", action="store_true", help="every arm for two steps on drawn images: does it run?"
    )
    parser.add_argument(
        "--adopt",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="link finished runs of the same configs in these folders, instead of training them; "
        "of distilled ones those that had the table's teacher",
    )
    parser.add_argument("--keep-checkpoints", action="store_true", help="of finished students, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
