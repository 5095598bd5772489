"""The command line of `train.py`: flags, config file, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from drkd_jax.errors import EXIT_FAULT, EXIT_TRY_AGAIN, EXIT_USER, UserError
from drkd_jax.training.interrupt import InterruptedRunError, NonFiniteError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe: configs/NAME.py, or configs/NAME.py:tiny for its small form."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and metrics go; a run found there goes on."
)


def main() -> NoReturn:
    """Parses the command line and trains."""
    app.run(_run, flags_parser=_parse)
    raise SystemExit(0)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for flag in (_CONFIG, _WORKDIR):
            if not flag.value:
                raise UserError(f"--{flag.name} is missing; see train.py --help")
        if len(rest) > 1:
            raise UserError(f"what is {' '.join(rest[1:])}? Every argument is --name=value")
        _CONFIG.value.to_dict()  # a config file that could not be read says so only now
    except (AttributeError, KeyError) as error:
        given = " ".join(item for item in argv if item.startswith("--config."))
        name = str(error).strip("\"'")
        _fail(UserError(f"the config knows no key '{name}'; given are {given}"), EXIT_USER)
    except Exception as error:  # a config file is a program: it can fail in any way
        _fail(error, EXIT_USER)
    return rest


def _run(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    from drkd_jax.training.loop import train

    try:
        train(_CONFIG.value.to_dict(), str(_WORKDIR.value))
    except UserError as error:
        _fail(error, EXIT_USER)
    except NonFiniteError as error:
        _fail(error, EXIT_FAULT)
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_TRY_AGAIN) from None


def _fail(error: Exception, code: int) -> NoReturn:
    words = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (UserError, flags.Error)) and code == EXIT_USER:
        words = f"{type(error).__name__}: {words}"
    print(f"error: {words}", file=sys.stderr)
    raise SystemExit(code) from None
