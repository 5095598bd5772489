"""Paths that a user gives: `~` is expanded here and nowhere else, and links are followed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drkd_jax.values import section, typed

_SPEC = re.compile(r"\s*(coco|tfds|shapes):")
# A path begins after the source's kind, between its parts, and after a "+" that joins sources.
_BEGINS = re.compile(r"(?:(?<=[:@+])|(?<=[:@+] ))~[^/:@+ ]*(?=[/:+ ]|$)")

# Where a config holds paths.
_KEYS = (("data", "train"), ("data", "val"), ("student", "init"), ("teacher", "checkpoint"))


def expand_home(text: str) -> str:
    """A path or a data source with `~` and `~name` replaced by the home folder.

    A `~` of an unknown user, or inside a name, stays unchanged.
    """
    if _SPEC.match(text):
        return _BEGINS.sub(lambda found: os.path.expanduser(found[0]), text)
    return os.path.expanduser(text)


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with `~` expanded, both in bare ones and in --name=value."""
    expanded = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("-") and equals:
            expanded.append(f"{name}={expand_home(value)}")
        else:
            expanded.append(expand_home(argument))
    return expanded


def expand_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's config with `~` expanded in each of its paths.

    Raises:
        UserError: a path is no text, or a part with paths no mapping.
    """
    expanded = dict(config)
    for part, key in _KEYS:
        value = section(f"config.{part}", expanded.get(part)).get(key)
        if value is not None:
            text = typed(f"config.{part}.{key}", value, str)
            expanded[part] = {**expanded[part], key: expand_home(text)}
    return expanded


def link_target(path: Path) -> Path:
    """The file that a symbolic link leads to, which need not exist; other paths unchanged.

    A new file that takes the place of an old one must be renamed to this: renamed to the link's
    own name it would replace the link.

    Raises:
        OSError: the link leads in a circle.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # the only kind of link that is left as it is
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target
