"""The command line of `train.py` and `drkd train`: flags, recipe, exit codes."""

# Nothing here may use a device before `connect`: JAX fixes its devices at the first use.

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from drkd_jax.errors import EXIT_FAULT, EXIT_TRY_AGAIN, EXIT_USER, UserError, one_line
from drkd_jax.fault_tolerance.interrupt import (
    EXIT_INTERRUPTED,
    InterruptedRunError,
    NonFiniteError,
    catch_interrupts,
    leave_quietly,
    stop_request,
)
from drkd_jax.fault_tolerance.writing import no_place, refusal
from drkd_jax.paths import expand_arguments
from drkd_jax.recipes.finding import define_recipe_flag, recipe_names
from drkd_jax.recipes.flag_faults import flag_fault

_CONFIG = define_recipe_flag(
    "The recipe: its NAME, or a file as configs/NAME.py; NAME:tiny for its small form."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and metrics go; a run found there goes on."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes of one run. With srun, Open MPI 4 and on Kubernetes it is enough; "
    "other MPIs need --coordinator too; elsewhere --num-processes and --process-id say the rest.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "All processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process-id", None, "This process, from 0.")
_TIMEOUT = flags.DEFINE_integer(
    "connect-timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
_INTERRUPTED = flags.DEFINE_integer(
    "exit-code-interrupted",
    EXIT_TRY_AGAIN,
    "Exit code of a run that a signal ended, with a checkpoint written.",
    lower_bound=0,
    upper_bound=255,
)
_DRY_RUN = flags.DEFINE_bool(
    "dry-run", False, "Say what would happen, and memory and time of a step; writes nothing."
)
_PROFILE = flags.DEFINE_string(
    "profile", "", "Steps to trace into WORKDIR/profile: 5, or 100:110 for steps 100 to 109."
)
_CACHE = flags.DEFINE_string(
    "compilation-cache", "", "Folder that keeps compiled programs for the next start."
)


_USAGE = """usage: drkd train --config=RECIPE[:FORM] --workdir=DIR [--config.KEY=VALUE ...]
Trains a detector, with or without distillation; the same command goes on where it stopped.
Recipes: {}.
`drkd recipes RECIPE` prints the keys of one.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Parses the command line and trains.

    Args:
        argv: What follows `drkd train`; None: this process is `train.py`.
    """
    leave_quietly()
    if argv is not None:
        if {"-h", "--help"} & set(argv):
            print(_USAGE.format(", ".join(recipe_names())))
            print(flags.FLAGS.module_help(sys.modules[__name__]).strip())
            raise SystemExit(0)
        sys.argv[:] = ["drkd train", *argv]  # ml_collections looks for overrides there
        flags.FLAGS.unparse_flags()  # the other commands do not use them
    sys.argv[1:] = expand_arguments(sys.argv[1:])
    app.run(_run, flags_parser=_parse)
    raise SystemExit(0)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for flag in (_CONFIG, _WORKDIR):
            if not flag.value and not (flag is _WORKDIR and _DRY_RUN.value):
                raise UserError(f"--{flag.name} is missing; see {Path(argv[0]).name} --help")
        for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
            if flag.value is not None and not _DISTRIBUTED.value:
                raise UserError(f"--{flag.name} belongs to --distributed, which is missing")
        if len(rest) > 1:
            raise UserError(f"unknown: {' '.join(rest[1:])}; every argument is --name=value")
    except Exception as error:
        _fail(flag_fault(error, argv))
    return rest


def _run(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        with catch_interrupts():
            _train()
    except UserError as error:
        _fail(error)
    except NonFiniteError as error:
        _fail(error, EXIT_FAULT)
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(_INTERRUPTED.value) from None
    except KeyboardInterrupt:
        words = "interrupted; the same command goes on from the last checkpoint, if there is one"
        print(words, file=sys.stderr)
        _leave(EXIT_INTERRUPTED, words)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and no_place(error):
            _fail(UserError(refusal(error)))
        if _DISTRIBUTED.value:
            traceback.print_exc()
            _leave(EXIT_FAULT, f"{type(error).__name__}: {error}")
        raise


def _train() -> None:
    if _DRY_RUN.value:
        from drkd_jax.training.measure import dry_run

        if _DISTRIBUTED.value:
            print(
                "processes  this one alone: a dry run meets no other, and its step takes the "
                "images of all of them on the devices here"
            )
        dry_run(_CONFIG.value.to_dict())
        return
    if _DISTRIBUTED.value:
        _meet()  # a signal ends this wait at once; there is nothing to save
    with stop_request():
        from drkd_jax.training.loop import train
        from drkd_jax.training.setup import keep_programs

        if _CACHE.value:
            keep_programs(_CACHE.value)
        train(_CONFIG.value.to_dict(), str(_WORKDIR.value), profile=_PROFILE.value)


def _meet() -> None:
    from drkd_jax.fault_tolerance.processes import check_devices, connect, listen

    connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout=_TIMEOUT.value)
    listen()
    check_devices()


def _leave(code: int, words: str) -> None:
    """Exits at once if there are several processes, which would wait for each other otherwise."""
    if _DISTRIBUTED.value:
        from drkd_jax.fault_tolerance.processes import leave

        leave(code, words)


def _fail(error: Exception, code: int = EXIT_USER) -> NoReturn:
    words = one_line(error)
    if not isinstance(error, (UserError, flags.Error)) and code == EXIT_USER:
        words = f"{type(error).__name__}: {words}"
    print(f"error: {words}", file=sys.stderr)
    if flags.FLAGS.is_parsed():
        _leave(code, words)
    raise SystemExit(code) from None
