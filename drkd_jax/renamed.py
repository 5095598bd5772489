"""Names that have changed: old ones are understood in files and answered on the command line.

Before the release of 0.1.0 an image was called a picture. Work folders, checkpoints and results of
that time still have those names, which are translated where such a file is read. A name that is
typed is refused with the new one, so that commands and recipes do not keep both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drkd_jax.errors import UserError

# Keys of a config, by section.
KEYS = {
    "train": {"tensorboard_pictures": "tensorboard_images"},
    "eval": {"max_pictures": "max_images"},
    "distill": {"pictures_per_device": "images_per_device"},
}
# Flags, by command.
FLAGS = {
    "evaluate": {"--max-pictures": "--max-images"},
    "visualize": {"--picture": "--image"},
}
# Keys of `eval.json`, and of a source's fingerprint in a checkpoint.
_COUNTS = {"pictures": "images", "picture_digest": "image_digest"}


def read_content(content: Any, name: str) -> Any:
    """The content of one of a work folder's JSON files, with present names.

    Args:
        content: as it was read.
        name: the file's name.
    """
    if not isinstance(content, Mapping):
        return content
    if name == "config.json":
        return read_config(content)
    return _with_new(content, _COUNTS) if name == "eval.json" else content


def read_about(about: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's description, or another mapping with a "config", with present names."""
    found = dict(about)
    if isinstance(about.get("config"), Mapping):
        found["config"] = read_config(about["config"])
    if isinstance(about.get("fingerprint"), Mapping):
        found["fingerprint"] = {
            part: _with_new(value, _COUNTS) if isinstance(value, Mapping) else value
            for part, value in about["fingerprint"].items()
        }
    return found


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with present names."""
    found = dict(config)
    for section, names in KEYS.items():
        if isinstance(found.get(section), Mapping):
            found[section] = _with_new(found[section], names)
    return found


def renaming(key: str) -> str:
    """A message about a renamed key of a config, such as "eval.max_pictures"; "" for others."""
    section, _, name = key.partition(".")
    new = KEYS.get(section, {}).get(name)
    return f"config.{key} was renamed to config.{section}.{new}" if new else ""


def refuse_old_key(key: str) -> None:
    """Refuses a renamed key of a config.

    Raises:
        UserError: it was renamed; the message has the new name.
    """
    if message := renaming(key):
        raise UserError(message)


def refuse_old_flags(command: str, argv: Sequence[str]) -> None:
    """Refuses renamed flags of a command.

    Raises:
        UserError: one was renamed; the message has the new name.
    """
    for argument in argv:
        flag = argument.partition("=")[0]
        new = FLAGS.get(command, {}).get(flag)
        if new:
            raise UserError(f"{flag} was renamed to {new}")


def _with_new(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}
