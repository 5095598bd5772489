"""Every key of a recipe with its value and what its comment or docstring says.

The words stand where the key gets its default, and nowhere else: comments in `recipes.common`,
"Attributes" in the docstrings of the settings classes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from drkd_jax.distill.config import TERMS, DistillConfig
from drkd_jax.models.build import DETECTORS
from drkd_jax.recipes import common


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: as in ``--config.NAME=VALUE``.
        value: a plain one.
        words: what it means.
    """

    name: str
    value: Any
    words: str


def list_keys(config: ConfigDict) -> list[Key]:
    """Every key of a config, in its order; "" for the words of one that only its recipe has."""
    words = commented()
    words |= {f"distill.{name}": text for name, text in documented(DistillConfig).items()}
    for term, settings in TERMS.items():
        own = documented(settings)
        words |= {f"distill.{term}.{name}": text for name, text in own.items()}
    for side in ("student", "teacher"):
        model = config.get(side)
        detector: Any = model.get("detector") if isinstance(model, ConfigDict) else None
        named = [detector] if detector in DETECTORS else []
        words[f"{side}.detector"] = " | ".join(DETECTORS)
        for each in (*DETECTORS, *named):  # the one that is meant has the last word
            own = _of_settings(DETECTORS[each][1])
            words |= {f"{side}.{name}": text for name, text in own.items()}
    return [Key(name, value, words.get(name, "")) for name, value in _flat(config)]


def _flat(config: ConfigDict, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def commented() -> dict[str, str]:
    """What the comments of `common` say, by key.

    A comment belongs to the assignment in its line; one with lines of its own, to that after them.
    """
    source = inspect.getsource(common)
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                line, text = line + 1, f"{comments.pop(line, '')} {text}".strip()
            comments[line] = text
    words = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and function.name in ("base", "with_teacher"):
            for name, line in _assigned(function):
                if line in comments:
                    words[name] = comments[line].replace("``", "")
    return words


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                several = target.elts if isinstance(target, ast.Tuple) else [target]
                for each in several:
                    yield ast.unparse(each).removeprefix("config."), node.end_lineno or node.lineno


def _of_settings(settings: Any, above: str = "") -> dict[str, str]:
    words = {above + name: text for name, text in documented(type(settings)).items()}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            words |= _of_settings(value, f"{above}{field.name}.")
    return words


def documented(settings: type) -> dict[str, str]:
    """What the docstring of a settings class, and those of its bases, say of its fields."""
    words: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        _, _, attributes = text.partition("\nAttributes:\n")
        entry = r"^    (\w+): (.*(?:\n {5,}.*)*)"
        for name, meaning in re.findall(entry, attributes, re.MULTILINE):
            words[name] = " ".join(meaning.replace("``", "").split())
    return words
