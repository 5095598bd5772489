"""Finds a recipe by its name or its file, and defines the flag ``--config`` that takes one."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

import drkd_jax
from drkd_jax.errors import UserError

_Answer = TypeVar("_Answer")


def recipe_folder() -> Path:
    """The folder with the recipes of this installation.

    In a wheel the folder ``configs`` is inside the package, in a checkout beside it.
    """
    package = Path(drkd_jax.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """The names of the recipes of this installation."""
    return sorted(p.stem for p in recipe_folder().glob("*.py") if not p.stem.startswith("_"))


def find_recipe(recipe: str, base: Path | None = None) -> tuple[Path, str | None]:
    """The file of a recipe, and the requested form.

    Args:
        recipe: ``NAME`` of an installed recipe, or ``FILE.py``; the form follows after a colon.
        base: what a file's path is relative to; by default the current folder.

    Raises:
        UserError: there is no such recipe; the message lists the existing ones.
    """
    name, colon, form = recipe.partition(":")
    names = recipe_names()
    file = recipe_folder() / f"{name}.py" if name in names else Path(base or "", name)
    if name and file.is_file():
        return file, form if colon else None
    there = f"there are {', '.join(names)}"
    if Path(name).suffix != ".py" and Path(name).name == name:
        raise UserError(f"no recipe '{name}'; {there}, and files of your own (FILE.py)")
    stem = Path(name).stem
    if stem in names:
        there = f"the recipe of that name comes along: --config={stem}{colon}{form}"
    raise UserError(f"recipe {file}: no such file; {there}")


def load_recipe(recipe: str, base: Path | None = None) -> ConfigDict:
    """The config of a recipe.

    Args:
        recipe: see `find_recipe`.
        base: see `find_recipe`.

    Raises:
        UserError: there is no such recipe, it refuses the form, or its file has an error.
    """
    file, form = find_recipe(recipe, base)
    get_config = getattr(load_module(file, recipe), "get_config", None)
    if get_config is None:
        raise UserError(f"recipe {recipe}: {file} has no get_config(name=None)")
    config = _asked(lambda: get_config() if form is None else get_config(form), file, recipe)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"recipe {recipe}: get_config of {file} gives no ConfigDict, but {kind}")
    return config


def load_module(file: Path, recipe: str) -> ModuleType:
    """Runs the file of a recipe.

    Raises:
        UserError: it cannot be run.
    """
    name = f"recipe_{file.stem}"
    loader = SourceFileLoader(name, str(file))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(file)))
    module.__file__ = str(file)
    sys.modules[name] = module  # needed by dataclasses
    _asked(lambda: loader.exec_module(module), file, recipe)
    return module


def define_recipe_flag(
    description: str,
    flag_values: flags.FlagValues = flags.FLAGS,
    arguments: Sequence[str] | None = None,
) -> flags.FlagHolder[ConfigDict]:
    """Defines ``--config``, and its keys as ``--config.KEY=VALUE``.

    Args:
        description: for ``--help``.
        flag_values: where the flag is defined.
        arguments: searched for overrides; by default the process's own.
    """
    flags.disclaim_key_flags()  # the flag belongs to the calling module
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        description,
        flag_values=flag_values,
        sys_argv=None if arguments is None else list(arguments),
    )
    flag_values["config"].parser = _RecipeParser()
    flag_values["config"].allow_overwrite = False  # or the first of two is ignored silently
    return holder


class _RecipeParser(flags.ArgumentParser[ConfigDict]):
    """Parses the flag: finds recipes, and reports what is wrong with one."""

    def parse(self, argument: str) -> ConfigDict:
        return load_recipe(argument).lock()

    def flag_type(self) -> str:
        return "recipe"


def _asked(question: Callable[[], _Answer], file: Path, recipe: str) -> _Answer:
    """The result of calling a recipe's code, which can fail in any way."""
    try:
        return question()
    except (UserError, ValueError) as error:
        raise UserError(f"recipe {recipe}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"recipe {recipe}: {where}{type(error).__name__}: {error}") from error
