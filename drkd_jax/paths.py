"""`~` for the home folder, in every path that a person types: the one place that knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_SPEC = re.compile(r"\s*(coco|tfds|shapes):")
# A path begins after the source's kind, between its parts, and after a "+" that joins sources.
_BEGINS = re.compile(r"(?:(?<=[:@+])|(?<=[:@+] ))~[^/:@+ ]*(?=[/:+ ]|$)")

# Where a config holds paths.
_KEYS = (("data", "train"), ("data", "val"), ("student", "init"), ("teacher", "checkpoint"))


def expand_home(text: str) -> str:
    """A path or a data source with the home folder in the place of `~` and `~name`.

    What only looks so (`~` of a user who is not there, or inside a name) stays as it is.
    """
    if _SPEC.match(text):
        return _BEGINS.sub(lambda found: os.path.expanduser(found[0]), text)
    return os.path.expanduser(text)


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line, `~` expanded in bare ones and in those like --name=value."""
    expanded = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("-") and equals:
            expanded.append(f"{name}={expand_home(value)}")
        else:
            expanded.append(expand_home(argument))
    return expanded


def expand_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with `~` expanded in each of its paths; the given one stays as it is."""
    expanded = dict(config)
    for section, key in _KEYS:
        value = (expanded.get(section) or {}).get(key)
        if isinstance(value, str):
            expanded[section] = {**expanded[section], key: expand_home(value)}
    return expanded
