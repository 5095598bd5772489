"""Clear messages for errors in a command line with a recipe and its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from drkd_jax.errors import UserError
from drkd_jax.renamed import renaming

# What the user should have written, by the parser's message.
_WANTED = (
    ("ConfigDict", "a part with keys of its own; set one of them (`drkd recipes RECIPE` has all)"),
    ("int()", "must be a whole number in digits alone, as 1000"),
    ("to float", "must be a number"),
    ("boolean", "must be True or False"),
)


def flag_fault(error: Exception, argv: Sequence[str]) -> Exception:
    """Rewords an error of parsing ``--config`` and ``--config.KEY``, if possible.

    Args:
        error: what absl or ml_collections raised.
        argv: the parsed arguments.
    """
    recipes = re.findall(r"(?<!\S)--?config[= ]\S+", " ".join(argv))
    twice = isinstance(error, flags.DuplicateFlagError) or "already defined as" in str(error)
    if twice and len(recipes) > 1:
        return UserError(f"give one --config, not several: {', '.join(recipes)}")
    if isinstance(error, flags.UnrecognizedFlagError):
        if error.flagname.startswith("config."):  # flags created from the recipe
            return UserError(f"--config is missing; given: {_given(argv)}")
        return error
    if isinstance(error, flags.IllegalFlagValueError):
        return UserError(_wrong_value(str(error)))
    if isinstance(error, (AttributeError, KeyError)):
        keys = re.findall(r"(?<!\S)--?config\.([\w.]+)", " ".join(argv))
        renamed = next(filter(None, map(renaming, keys)), "")
        if renamed:
            return UserError(renamed)
        return UserError(f"the config has no key {_unknown_key(error)}; given: {_given(argv)}")
    # ml_collections' message for a key in a section that the recipe leaves empty.
    part = re.match(r'Override (\S+) .* field "(\w+)" is None', str(error))
    if isinstance(error, ValueError) and part:
        key, empty = part.groups()
        return UserError(
            f"--config.{key}: config.{empty} is empty in this recipe, which trains without "
            "a teacher; take one that distils, or its form that does (--config=folder:drkd)"
        )
    return error


def _wrong_value(words: str) -> str:
    """Rewords a parser's message about a flag's value so that it says what is expected."""
    found = re.match(r"flag (--[\w.-]+=.*?): (.*)", words, re.DOTALL)
    wanted = next((text for mark, text in _WANTED if found and mark in found[2]), None)
    return f"{found[1]}: {wanted}" if found and wanted else words


def _given(argv: Sequence[str]) -> str:
    return " ".join(item for item in argv if item.startswith("--config."))


def _unknown_key(error: Exception) -> str:
    """A message about an override's unknown key, with a guess at what was meant."""
    said: object = error
    while isinstance(said, Exception):  # ml_collections nests exceptions
        said = said.args[0] if said.args else ""
    name, *guess = str(said).splitlines() or [""]  # the guess is on its own line
    key = name.strip("\"'")
    return f"'{key}'" + "".join(f" ({line})" for line in guess)
