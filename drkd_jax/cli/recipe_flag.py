"""The flag ``--config``: a recipe by name or file, and its keys as ``--config.KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from drkd_jax.recipes.finding import load_recipe


class _RecipeParser(flags.ArgumentParser[ConfigDict]):
    """Finds recipes by name, and names what is wrong with one."""

    def parse(self, argument: str) -> ConfigDict:
        return load_recipe(argument).lock()

    def flag_type(self) -> str:
        return "recipe"


def define_recipe_flag(
    description: str,
    flag_values: flags.FlagValues = flags.FLAGS,
    arguments: Sequence[str] | None = None,
) -> flags.FlagHolder[ConfigDict]:
    """Defines ``--config``.

    Args:
        description: for ``--help``.
        flag_values: where it is defined.
        arguments: where overrides are looked for; the process's own otherwise.
    """
    flags.disclaim_key_flags()  # the flag belongs to the file that calls this
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        description,
        flag_values=flag_values,
        sys_argv=None if arguments is None else list(arguments),
    )
    flag_values["config"].parser = _RecipeParser()
    return holder
