"""``python -m drkd_jax recipes``: lists the recipes, or every key of one."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drkd_jax.cli.arguments import Parser
from drkd_jax.recipes.finding import find_recipe, load_recipe, recipe_names


def main(argv: Sequence[str]) -> int:
    """Prints the recipes, or the keys of one.

    Raises:
        UserError: There is no such recipe, or it refuses its form.
    """
    parser = Parser(
        "recipes",
        "Prints the recipes that come along, or every key of one with its value. A key is set by "
        "--config.KEY=VALUE behind --config=RECIPE of train and benchmark.",
    )
    parser.add_argument("recipe", nargs="?", help="NAME[:FORM], or FILE.py[:FORM] of your own")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    options = parser.parse_args(list(argv))
    if options.recipe is None:
        what = {name: _summary(find_recipe(name)[0]) for name in recipe_names()}
        width = max(map(len, what))
        lines = [f"{name:{width}s}  {words}" for name, words in what.items()]
    else:
        what, lines = _keys(options.recipe)
    print(json.dumps(what, indent=2) if options.json else "\n".join(lines))
    return 0


def _summary(file: Path) -> str:
    """The first line of a recipe's docstring; nothing is run."""
    words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(words.partition("\n\n")[0].replace("``", "").split())


def _keys(recipe: str) -> tuple[dict[str, Any], list[str]]:
    config = load_recipe(recipe)  # first: the rest imports JAX
    from drkd_jax.recipes.keys import list_keys

    keys = list_keys(config)
    lines = [f"{key.name} = {key.value!r}" + f"  # {key.words}" * bool(key.words) for key in keys]
    return {key.name: {"value": key.value, "words": key.words} for key in keys}, lines
