"""The command line of `train.py` and `drkd train`: flags, recipe, exit codes."""

# Nothing here may touch a device before `connect`: JAX fixes its devices at the first touch.

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from drkd_jax.errors import EXIT_FAULT, EXIT_TRY_AGAIN, EXIT_USER, UserError
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

_CONFIG = define_recipe_flag(
    "The recipe: its NAME, or a file as configs/NAME.py; NAME:tiny for its small form."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and metrics go; a run found there goes on."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes of one run. On Slurm, Kubernetes and Open MPI nothing more is "
    "needed; elsewhere --coordinator, --num-processes and --process-id say the rest.",
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
        flags.FLAGS.unparse_flags()  # the other commands go by without them
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
            raise UserError(f"what is {' '.join(rest[1:])}? Every argument is --name=value")
    except (AttributeError, KeyError) as error:
        _fail(UserError(f"the config knows no key {_unknown_key(error)}; given are {_given(argv)}"))
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # these flags are made of the recipe
            _fail(UserError(f"--config is missing; given are {_given(argv)}"))
        _fail(error)
    except ValueError as error:
        # ml_collections says this of a key in a part that the recipe leaves empty.
        part = re.match(r'Override (\S+) .* field "(\w+)" is None', str(error))
        if part:
            key, empty = part.groups()
            _fail(
                UserError(
                    f"--config.{key}: config.{empty} is empty in this recipe, which trains without "
                    "a teacher; take one that distils, or its form that does (--config=folder:drkd)"
                )
            )
        _fail(error)
    except flags.IllegalFlagValueError as error:
        _fail(UserError(_wrong_value(str(error))))
    except Exception as error:
        _fail(error)
    return rest


# What a person should have written, by what a parser says of it.
_WANTED = (
    ("ConfigDict", "a part with keys of its own; set one of them (`drkd recipes RECIPE` has all)"),
    ("int()", "wanted is a whole number, written with digits alone, as 1000"),
    ("to float", "wanted is a number"),
    ("boolean", "wanted is True or False"),
)


def _wrong_value(words: str) -> str:
    """A parser's complaint about the value of a flag, in words that say what is wanted."""
    found = re.match(r"flag (--[\w.-]+=.*?): (.*)", words, re.DOTALL)
    wanted = next((text for mark, text in _WANTED if found and mark in found[2]), None)
    return f"{found[1]}: {wanted}" if found and wanted else words


def _given(argv: Sequence[str]) -> str:
    return " ".join(item for item in argv if item.startswith("--config."))


def _unknown_key(error: Exception) -> str:
    """The key that an override names in vain, and a guess at what was meant."""
    said: object = error
    while isinstance(said, Exception):  # ml_collections puts one into the other
        said = said.args[0] if said.args else ""
    name, *guess = str(said).splitlines() or [""]  # the guess has a line of its own
    key = name.strip("\"'")
    return f"'{key}'" + "".join(f" ({line})" for line in guess)


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
    from drkd_jax.fault_tolerance.processes import connect, listen

    connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout=_TIMEOUT.value)
    listen()


def _leave(code: int, words: str) -> None:
    """One of several processes leaves at once, or all would wait for each other."""
    if _DISTRIBUTED.value:
        from drkd_jax.fault_tolerance.processes import leave

        leave(code, words)


def _fail(error: Exception, code: int = EXIT_USER) -> NoReturn:
    words = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (UserError, flags.Error)) and code == EXIT_USER:
        words = f"{type(error).__name__}: {words}"
    print(f"error: {words}", file=sys.stderr)
    if flags.FLAGS.is_parsed():
        _leave(code, words)
    raise SystemExit(code) from None
