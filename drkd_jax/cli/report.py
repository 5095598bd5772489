"""``python -m drkd_jax report``: compares finished runs in one HTML file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drkd_jax.cli.arguments import Parser
from drkd_jax.errors import UserError, faults_of
from drkd_jax.fault_tolerance.writing import make_place, write_text
from drkd_jax.words import counted

if TYPE_CHECKING:
    from drkd_jax.report.relations import Relations
    from drkd_jax.report.runs import RunFiles


def main(argv: Sequence[str]) -> int:
    """Writes `report.html`.

    Raises:
        UserError: An argument or a work folder has a fault.
    """
    parser = Parser(
        "report",
        "Compares finished runs in one HTML file that needs no network and no script.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]WORKDIR",
        help="work folders of train.py, with names for the report if you like",
    )
    parser.add_argument(
        "--reference", help="name of the run that others are compared with (default: the first)"
    )
    parser.add_argument(
        "--relations",
        metavar="NAME",
        help="distilled run whose relation maps are shown; its checkpoint and teacher are loaded",
    )
    parser.add_argument("--title", default="DRKD report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="file to write")
    arguments = parser.parse_args(list(argv))
    from drkd_jax.report.page import page
    from drkd_jax.report.runs import named_folders, read_runs

    out = make_place(arguments.out, "--out")
    named = named_folders(arguments.runs)
    names = [name for name, _ in named]
    reference = arguments.reference or names[0]
    for flag, name in (("--reference", reference), ("--relations", arguments.relations)):
        if name is not None and name not in names:
            raise UserError(f"{flag}={name}: no such run; there are {', '.join(names)}")
    runs = read_runs(named)
    relations = None
    if arguments.relations:
        shown = _relations(runs[names.index(arguments.relations)])
        relations = shown, {"teacher": "teacher", "student": arguments.relations}
    text = page(
        runs,
        names.index(reference),
        title=arguments.title,
        relations=relations,
        tell=lambda note: print(f"warning: {note}", file=sys.stderr, flush=True),
    )
    write_text(out, text)
    print(f"{out}: {counted(len(names), 'run')}, {len(text.encode()) / 1e6:.1f} MB")
    return 0


def _relations(run: RunFiles) -> Relations:
    """Runs the student, teacher and relation modules of a run's newest checkpoint on an image.

    Raises:
        UserError: The run has no distillation or no checkpoint, or its data cannot be read.
    """
    from drkd_jax.report.relations import see_relations
    from drkd_jax.report.runs import open_truth

    if not run.config.get("distill") or not run.config.get("teacher"):
        raise UserError(f"--relations={run.name}: {run.folder} is not a distilled run")
    if not (run.folder / "checkpoints").is_dir():
        raise UserError(
            f"--relations={run.name}: {run.folder} has no checkpoints; leave --relations out"
        )
    truth, why = open_truth(run)
    if truth is None:
        raise UserError(f"--relations={run.name}: {why}")
    # `evaluate --data` may have scored other images than those of the config.
    config = {**run.config, "data": {**run.config["data"], "val": run.data}}
    with faults_of(f"--relations={run.name}: {run.folder}"):  # its teacher may have been moved
        return see_relations(truth.source, config, run.folder)
