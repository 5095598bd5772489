"""Removes the prefixes that training programs put before a model's own names.

A key of a file is its path from the root: `state_dict.module.backbone.conv1.weight` is in the dict
"state_dict" of a checkpoint, and a safetensors file may have the same name flat. Both are removed
in the same way: as the prefix of the one complete model in a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from drkd_jax.errors import UserError
from drkd_jax.words import counted

# Wrapper modules that are in no library's own names: they can occur anywhere in a key.
_INSIDE = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# For files with two complete models: the one to take, and what the other is.
_WANTED = (
    ("encoder_q", "encoder_k", "MoCo's key encoder, a moving average of the one that is used"),
    (
        "state_dict",
        "ema_state_dict",
        "weights of the last step: mmengine puts the average into state_dict",
    ),
)
_ROOT = re.compile(r"(.*?)(?:backbone\.(?:body\.|bottom_up\.)?)?(?:layer1|res2)\.0\.conv1\.weight")
_BLOCK = re.compile(r"(?:.*\.)?(?:layer|res)\d\.\d+\.conv\d\.weight")
# First parts of keys that belong to the training, whatever the model's prefix.
_BESIDE = {
    *("optimizer", "optimizers", "optimizer_states", "optim", "scheduler", "lr_scheduler"),
    *("lr_schedulers", "param_schedulers", "scaler", "grad_scaler", "message_hub", "callbacks"),
    *("rng_state", "random_state", "loops", "amp", "iteration", "epoch"),
}
_SHOWN = 8  # prefixes in a message


class Unwrapped(NamedTuple):
    """A model's own keys, and the other keys of its file.

    Attributes:
        prefix: the prefix of the model's names; "" if there is none.
        names: the model's own name -> the file's key.
        outside: the file's other keys -> why they are left out.
        lines: messages for the user.
    """

    prefix: str
    names: dict[str, str]
    outside: dict[str, str]
    lines: tuple[str, ...]


def unwrap(
    keys: Iterable[str], is_whole: Callable[[Mapping[str, str]], bool], asked: str | None = None
) -> Unwrapped:
    """Removes the prefix of the one complete model in a file.

    Args:
        keys: paths from the file's root.
        is_whole: whether names (to keys) are those of a complete model; only called if more than
            one prefix is possible.
        asked: the prefix that the user wants; None searches for it.

    Raises:
        UserError: there is no model under the requested prefix, or there are several models.
    """
    plain, dropped = _without_inside(list(keys))
    if asked is not None:
        prefix = asked.rstrip(".") + "." if asked.strip(".") else ""
        prefix = ".".join(part for part in prefix.split(".") if part not in dropped)
        if not any(name.startswith(prefix) for name in plain):
            raise UserError(f"no key begins with {asked!r}; {describe(plain)}")
    found = dict.fromkeys(m[1] for name in plain if (m := _ROOT.fullmatch(name)))
    if asked is not None:
        return _under(prefix, plain, dropped, dict.fromkeys(found, "another model"))
    if not found and not any(map(_BLOCK.fullmatch, plain)):
        raise UserError(f"no ResNet or ResNeXt is in it; {describe(plain)}")
    if len(found) <= 1:
        return _under(next(iter(found), ""), plain, dropped, {})
    models = [prefix for prefix in found if is_whole(_inside(prefix, plain, found))]
    others: dict[str, str] = {}
    for wanted, other, why in _WANTED:
        for prefix in models:
            twin = ".".join(other if part == wanted else part for part in prefix.split("."))
            if twin != prefix and twin in models:
                others[twin] = why
    left = [prefix for prefix in models if prefix not in others] or list(found)
    if len(left) != 1:
        listed = ", ".join(f"{prefix or 'the root'!s}" for prefix in left[:_SHOWN])
        first = next((prefix for prefix in left if prefix), "")
        raise UserError(
            f"it holds {len(left)} models, under {listed}; say which one is meant, by "
            f"config.teacher.prefix or by convert --set prefix={first}"
        )
    others = {prefix: others.get(prefix, "another model, or a part of one") for prefix in found}
    return _under(left[0], plain, dropped, others)


def describe(names: Iterable[str]) -> str:
    """The beginnings of a file's keys, and how many keys have each."""
    counts = Counter(
        ".".join(name.split(".")[:2]) if name.count(".") > 1 else name.split(".")[0]
        for name in names
    )
    listed = ", ".join(f"{start} ({count})" for start, count in counts.most_common(_SHOWN))
    more = len(counts) - _SHOWN
    return f"its keys begin with {listed}" + (f" and {more} others" if more > 0 else "")


def _without_inside(keys: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(name -> key, the modules that were removed from the names)."""
    plain, dropped = {}, dict[str, None]()
    for key in keys:
        parts = key.split(".")
        left = [part for part in parts if part not in _INSIDE]
        if not left or left[-1] != parts[-1]:
            left = parts
        dropped |= dict.fromkeys(part for part in parts if part not in left)
        plain[".".join(left)] = key
    if len(plain) < len(keys):  # two keys with one name: the modules distinguish arrays
        return {key: key for key in keys}, ()
    return plain, tuple(dropped)


def _inside(prefix: str, plain: Mapping[str, str], others: Iterable[str]) -> dict[str, str]:
    """The names under a prefix, without those of inner models and of the training."""
    deeper = tuple(o for o in others if o != prefix and o.startswith(prefix))
    return {
        name.removeprefix(prefix): key
        for name, key in plain.items()
        if name.startswith(prefix)
        and not name.startswith(deeper)
        and (prefix or name.split(".")[0] not in _BESIDE or "." not in name)
    }


def _under(
    prefix: str, plain: Mapping[str, str], dropped: tuple[str, ...], others: Mapping[str, str]
) -> Unwrapped:
    names = _inside(prefix, plain, others)
    where = f"outside of the model, which is under {prefix.rstrip('.') or 'the root'}"
    mine, outside = set(names.values()), {}
    for name, key in plain.items():
        if key not in mine:
            reasons = [
                why for other, why in others.items() if other != prefix and name.startswith(other)
            ]
            outside[key] = reasons[-1] if reasons else where
    taken = [f"{part}." for part in (prefix.rstrip("."), *dropped) if part]
    lines: tuple[str, ...] = ()
    if taken:
        lines = (f"{' and '.join(taken)} taken off the names of {counted(len(names), 'array')}",)
    return Unwrapped(prefix, names, outside, lines)
