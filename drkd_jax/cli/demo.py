"""``python -m drkd_jax demo``: the main task on drawn images, with tables and figures."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from drkd_jax.cli.arguments import Parser, positive
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError
from drkd_jax.fault_tolerance.writing import make_folder


def main(argv: Sequence[str]) -> int:
    """Runs the demo.

    Raises:
        UserError: An argument or the work folder has a fault.
        InterruptedRunError: A signal ended it; the same command continues.
        NonFiniteError: A loss became non-finite.
    """
    options = _parser().parse_args(list(argv))
    if options.teacher_steps and not options.train_teacher:
        raise UserError("--teacher-steps: only with --train-teacher")
    from drkd_jax.demo import Recipes
    from drkd_jax.demo.results import scores_table
    from drkd_jax.demo.run import demo
    from drkd_jax.demo.teacher_file import shipped

    configs = [_config(kind, options) for kind in ("teacher", "student", "drkd")]
    command = shlex.join(["python", "-m", "drkd_jax", "demo", *argv])
    make_folder(options.workdir, "--workdir")
    recipes = Recipes(*(config.to_dict() for config in configs))
    teacher = None if options.train_teacher else shipped(options.detector)
    try:
        results = demo(
            options.workdir, recipes, teacher=teacher, seeds=options.seeds, command=command
        )
    except KeyboardInterrupt:  # between two runs, whose checkpoints are written
        raise InterruptedRunError("interrupted; the same command goes on") from None
    print()
    print(scores_table(results["runs"]))
    for paragraph in [*results["verdict"], results["last_word"]["text"]]:
        print(f"\n{paragraph.replace('**', '')}")
    seconds = f"{results['seconds']:.0f} s in all"
    print(f"\n{options.workdir}/report.html and results.md hold the report, {seconds}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "demo",
        "Trains a plain student and a DRKD student on few drawn images, compares them with the "
        "teacher and draws what they see. Run again, it goes on where it stopped.",
    )
    parser.add_argument("--workdir", default="demo", help="folder for everything (default: demo)")
    parser.add_argument("--detector", default="faster_rcnn", choices=("retinanet", "faster_rcnn"))
    parser.add_argument("--steps", type=positive, help="steps of each student")
    parser.add_argument(
        "--train-teacher",
        action="store_true",
        help="train the teacher first, instead of the one that comes with the package",
    )
    parser.add_argument(
        "--teacher-steps", type=positive, help="with --train-teacher: steps of the teacher"
    )
    parser.add_argument(
        "--seeds", type=positive, default=1, help="pairs of students, each with its own seed"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps: only shows that it runs")
    return parser


def _config(kind: str, options: argparse.Namespace) -> ConfigDict:
    from drkd_jax.recipes import common
    from drkd_jax.recipes.finding import load_recipe

    config = load_recipe(f"demo:{kind}:{options.detector}")
    if options.tiny:
        teacher, config.teacher = config.teacher, None
        config = common.tiny(config)
        config.teacher = teacher
    steps = options.teacher_steps if kind == "teacher" else options.steps
    if steps:
        factor = _shorten(config.train, steps)
        if config.distill:
            for key in ("adaptation_steps", "warmup_steps"):
                config.distill[key] = round(config.distill[key] * factor)
    return config


def _shorten(settings: Any, steps: int) -> float:
    """Changes the length of the run, and scales what `config.train` counts in steps with it."""
    if settings.steps < 1:
        raise UserError("--steps needs a recipe that counts in steps, not in epochs")
    factor = steps / settings.steps
    settings.decay_at = tuple(v if v < 1 else v * factor for v in settings.decay_at)
    settings.warmup_steps = max(1, round(settings.warmup_steps * factor))
    settings.eval_every = max(1, round(settings.eval_every * factor)) if settings.eval_every else 0
    settings.steps = steps
    return factor
