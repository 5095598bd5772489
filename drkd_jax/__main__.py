"""``drkd COMMAND`` and ``python -m drkd_jax COMMAND``: one file per command, loaded on demand."""

from __future__ import annotations

from drkd_jax.fault_tolerance.interrupt import leave_quietly

if __name__ == "__main__":
    leave_quietly()  # Ctrl-C during the imports below

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from absl import flags, logging

from drkd_jax.errors import EXIT_FAULT, EXIT_TRY_AGAIN, EXIT_USER, UserError, one_line
from drkd_jax.fault_tolerance.interrupt import (
    EXIT_INTERRUPTED,
    InterruptedRunError,
    NonFiniteError,
    catch_interrupts,
)
from drkd_jax.fault_tolerance.writing import no_place, refusal
from drkd_jax.paths import expand_arguments
from drkd_jax.renamed import refuse_old_flags

COMMANDS = {
    "train": ("drkd_jax.cli.train", "a detector, with or without distillation"),
    "recipes": ("drkd_jax.cli.recipes", "what there is to train, and every key of a recipe"),
    "evaluate": ("drkd_jax.cli.evaluate", "COCO's 12 numbers of a trained detector"),
    "predict": ("drkd_jax.cli.predict", "a trained detector on your own images"),
    "visualize": ("drkd_jax.cli.visualize", "how two detectors relate pixels and boxes"),
    "convert": ("drkd_jax.cli.convert", "weights of torchvision and mmdetection, and back"),
    "export": ("drkd_jax.cli.export", "a detector alone: arrays, or a program without our code"),
    "prepare": ("drkd_jax.cli.prepare", "unzipped COCO to a TFDS data folder"),
    "crosscheck": ("crosscheck", "compare with the PyTorch reference"),
    "benchmark": ("drkd_jax.cli.benchmark", "what a training step of a recipe costs here"),
    "report": ("drkd_jax.cli.report", "finished runs compared in one HTML file"),
    "demo": ("drkd_jax.cli.demo", "the main job, small, end to end"),
}


def commands() -> dict[str, tuple[str, str]]:
    """The commands of this installation."""
    return {name: entry for name, entry in COMMANDS.items() if find_spec(entry[0]) is not None}


def usage() -> str:
    """The help text: all commands."""
    lines = [f"  {name:11s} {what}" for name, (_, what) in commands().items()]
    return "\n".join(
        ["usage: drkd COMMAND [--help], or python -m drkd_jax COMMAND [--help]", *lines]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        its exit code: 2 for a fault that the user can correct, 75 if the same command can continue
        from a checkpoint, 130 after Ctrl-C if it cannot, 1 for any other failure.
    """
    arguments = expand_arguments(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USER
    name, *rest = arguments
    known = commands()
    if name not in known:
        if name in COMMANDS:
            print(f"error: {name} runs in a checkout: python -m drkd_jax {name}", file=sys.stderr)
            return EXIT_USER
        print(f"error: no command '{name}'; there are {', '.join(known)}", file=sys.stderr)
        return EXIT_USER
    logging.set_verbosity(logging.WARNING)
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    try:
        refuse_old_flags(name, rest)
        command = import_module(known[name][0]).main
        with catch_interrupts():
            return command(rest)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        return EXIT_TRY_AGAIN
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{f': {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAULT
    except OSError as error:
        if not no_place(error):
            raise
        print(f"error: {refusal(error)}", file=sys.stderr)
        return EXIT_USER


def program() -> NoReturn:
    """Runs the command that this process was called with, and exits with its code."""
    for stream in (sys.stdout, sys.stderr):  # file names may be undecodable, and the terminal ASCII
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())


if __name__ == "__main__":
    program()
