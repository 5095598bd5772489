"""Lists every key of a recipe with its value and its description.

The only source of a description is where the key gets its default: a comment in `recipes.common`,
or "Attributes" in the docstring of a settings class.
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
        value: a plain value.
        words: its description.
    """

    name: str
    value: Any
    words: str


def list_keys(config: ConfigDict) -> list[Key]:
    """Every key of a config, in order; a key that only this recipe has is described by ""."""
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
        for each in (*DETECTORS, *named):  # the recipe's own detector comes last and overrides
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
    """The descriptions in the comments of `common`, by key.

    A comment belongs to the assignment in its line; a comment on its own lines, to the next one.
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
    """The descriptions of a settings class's fields in its docstring and those of its bases."""
    words: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        _, _, attributes = text.partition("\nAttributes:\n")
        entry = r"^    (\w+): (.*(?:\n {5,}.*)*)"
        for name, meaning in re.findall(entry, attributes, re.MULTILINE):
            words[name] = " ".join(meaning.replace("``", "").split())
    return words
