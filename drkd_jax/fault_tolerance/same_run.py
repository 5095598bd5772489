"""Checks whether a config and its data continue a checkpoint or describe another run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

import drkd_jax
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.sources.classes import list_classes
from drkd_jax.data.sources.records import Category, Source, changes, fingerprint, id_key
from drkd_jax.distill.config import DistillConfig, distill_config
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.processes import broadcast, from_all
from drkd_jax.models.arrays import flatten
from drkd_jax.models.filling import as_tuples
from drkd_jax.step.settings import EvalSettings, TrainSettings

# What may differ between a checkpoint and the run that continues it.
FREE_TO_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.log_gradients",
    "train.checkpoint_every",
    "train.eval_every",
    "train.early_stop",
    "train.tensorboard_images",
    "train.keep",
    "train.parallel",
    "train.silence_steps",
    "train.silence_share",
    "eval",
    "data.val",
    "data.on_error",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "student.init",
    "teacher.checkpoint",
    "teacher.evaluate",
)
_DEFAULTS = {"data": PipelineConfig, "train": TrainSettings, "eval": EvalSettings}
# What hosts may set for themselves.
_OF_A_HOST = ("data.num_threads", "data.num_workers", "data.prefetch")
_WORDS = 1024  # bytes of a message that all processes exchange
_CLASSES = 100  # most classes that a message lists
_LONG = 40  # most characters of a value that a message shows
_BEFORE = 10  # how many of them come before the first difference


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys in which two configs differ, such as "train.momentum"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            found += differing_keys(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return [] if as_tuples(old) == as_tuples(new) else [prefix[:-1]]


def is_default(key: str, value: Any) -> bool:
    """Whether a key has the value that older runs, whose configs lack the key, used implicitly."""
    section, _, name = key.partition(".")
    if section == "distill" and name and "." not in name:  # a whole term, or a key beside them
        return distill_config({name: value}) == DistillConfig()
    kind = _DEFAULTS.get(section)
    fields = {field.name: field.default for field in dataclasses.fields(kind)} if kind else {}
    return name in fields and as_tuples(fields[name]) == as_tuples(value)


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Path) -> None:
    """Refuses to continue a checkpoint under a config that would make it another run.

    Raises:
        UserError: the configs differ; the message gives every differing key with both values.
    """
    old = _as_meant(old, new)
    wrong = [
        key
        for key in differing_keys(old, new)
        if not (value_at(old, key) is None and is_default(key, value_at(new, key)))
        and not any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)
    ]
    if wrong:
        listed = ", ".join(f"{key} ({_values(old, new, key)})" for key in wrong)
        raise UserError(
            f"{workdir} holds a run of another config; these keys differ: {listed}. "
            "Use another --workdir, or set them back"
        )


def _as_meant(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """An older config, with keys added whose absence meant something other than their default.

    The default form's pixel relation compared values before the key `compare` was introduced, whose
    default differs.
    """
    there, here = (value_at(config, "distill.pixel_relation") for config in (old, new))
    if not isinstance(there, Mapping) or "compare" in there or there.get("form") == "official":
        return old
    if not isinstance(here, Mapping) or "compare" not in here:  # not from a recipe
        return old
    return {
        **old,
        "distill": {**old["distill"], "pixel_relation": {**there, "compare": "values"}},
    }


def check_same_classes(
    old: Sequence[Sequence[Any]], new: Sequence[Sequence[Any]], workdir: Path
) -> None:
    """Refuses to continue a checkpoint on data with other classes.

    Args:
        old: [id, name] of each class of the checkpoint, by label.
        new: the same of the present data.
        workdir: work folder of the run.

    Raises:
        UserError: the classes differ; the message shows both lists.
    """
    before, now = ([Category(*pair) for pair in classes] for classes in (old, new))
    before_keys, now_keys = ([(id_key(c.id), c.name) for c in part] for part in (before, now))
    if before_keys != now_keys:
        raise UserError(
            f"{workdir} holds a run on the classes {list_classes(before, _CLASSES)}; "
            f"config.data.train has {list_classes(now, _CLASSES)} now. Use another --workdir, or "
            "give the data their old classes and ids back"
        )


def common_fingerprints(sources: Mapping[str, Source], teacher: Any = None) -> dict[str, Any]:
    """Fingerprints of the data and the teacher, after checking that all processes read the same.

    If a host's copy had other images or boxes, it would use them under wrong numbers.

    Args:
        sources: by "train" and "val", as this process opened them.
        teacher: the arrays read from a file or work folder; None if none were read.

    Returns:
        JSON values by "train" and "val" and, if there are arrays, "teacher".

    Raises:
        UserError: some process reads something other than process 0; raised on all processes.
    """
    own: dict[str, Any] = {part: fingerprint(source) for part, source in sources.items()}
    what = {part: (f"config.data.{part}", "images or annotations", "folder") for part in own}
    if teacher is not None:
        own["teacher"] = teacher_digest(teacher)
        what["teacher"] = "config.teacher.checkpoint", "weights", "file"
    first = broadcast(lambda: own)
    for part, (key, content, place) in what.items():
        other = np.flatnonzero(from_all(np.array([own[part] != first[part]])))
        if other.size:
            number = ", ".join(map(str, other))
            raise UserError(
                f"{key}: process {number} reads other {content} than process 0; give all hosts "
                f"one {place}, or the same copy of it"
            )
    return own


def require_same_program(config: Mapping[str, Any]) -> None:
    """Refuses processes with different code or configs: they would wait for each other, or diverge.

    All processes must call it.

    Args:
        config: the plain config, as this process was given it.

    Raises:
        UserError: some process differs from process 0; raised on all, with what differs.
    """
    if jax.process_count() == 1:
        return
    own = {
        "config": json.loads(json.dumps(config)),
        "code": code_digest(),
        "jax": f"{jax.__version__} with jaxlib {jaxlib.__version__}",
    }
    words = program_difference(broadcast(lambda: own), own).encode()[:_WORDS]
    told = from_all(np.frombuffer(words.ljust(_WORDS, b"\0"), np.uint8)[None])
    for index, row in enumerate(told):
        if text := row.tobytes().rstrip(b"\0").decode(errors="replace"):
            raise UserError(f"process {index} {text}")


def program_difference(first: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How what this process runs differs from what process 0 runs; empty if it does not.

    Args:
        first: `config`, `code` and `jax` of process 0.
        own: the same of this process.
    """
    if first["jax"] != own["jax"]:
        return f"has jax {own['jax']}, and process 0 has {first['jax']}: install one on all hosts"
    if first["code"] != own["code"]:
        return (
            f"runs other code than process 0 (the files in {Path(drkd_jax.__file__).parent} "
            "differ): give all hosts the same checkout"
        )
    old, new = first["config"], own["config"]
    wrong = [key for key in differing_keys(old, new) if key not in _OF_A_HOST]
    if not wrong:
        return ""
    listed = ", ".join(f"{key} ({_values(old, new, key)})" for key in wrong)
    return (
        "was started with another config than process 0; there is what process 0 has, here what "
        f"it has: {listed}. Start all with the same command"
    )


def code_digest() -> str:
    """A digest of the package's Python files."""
    digest, package = hashlib.blake2b(digest_size=12), Path(drkd_jax.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def teacher_digest(teacher: Any) -> str:
    """A digest of the arrays of backbone and neck, which determine a teacher's features.

    Args:
        teacher: its arrays, nested, as `training.teacher.Teacher.arrays`.

    Returns:
        24 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, leaf in sorted(flatten(teacher).items()):
        if name.startswith(("backbone.", "neck.")):  # heads may be present or not
            digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def changed_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How data and teacher differ from those of a checkpoint, one line per difference.

    Args:
        old: `common_fingerprints` of the checkpoint; may be empty, or lack the teacher.
        new: the present ones.
    """
    lines = []
    for part, then in (
        ("train", "the run goes on with it"),
        ("val", "the best checkpoint so far was chosen on what it was"),
    ):
        line = changes(old.get(part, {}), new.get(part, {}), f"config.data.{part}")
        if line:
            lines.append(f"{line}; {then}")
    taught, teaches = old.get("teacher"), new.get("teacher")
    if taught and teaches and taught != teaches:
        lines.append(
            "config.teacher.checkpoint has other weights than at the last checkpoint: from here "
            "on another teacher teaches"
        )
    return lines


def changed_scoring(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences in the evaluation that selects the best checkpoint, one line each.

    Args:
        old: config of the checkpoint.
        new: the present config.
    """
    lines = []
    for key in ("eval.max_images", "eval.max_detections"):
        before, now = (value_at(config, key) for config in (old, new))
        default = getattr(EvalSettings(), key.partition(".")[2])
        before, now = (default if value is None else value for value in (before, now))
        if before != now:
            lines.append(
                f"config.{key} is {now}, and was {before} at the last checkpoint: the best one so "
                "far was chosen by what it was"
            )
    return lines


def value_at(config: Any, key: str) -> Any:
    """The value of a key such as "train.momentum"; None if a part of it is missing."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _values(old: Any, new: Any, key: str) -> str:
    texts = [str(as_tuples(value_at(config, key))) for config in (old, new)]
    begin = 0
    if max(map(len, texts)) > _LONG:  # a long equal start would hide the difference
        alike = (a == b for a, b in zip(*texts, strict=False))
        begin = max(0, sum(itertools.takewhile(bool, alike)) - _BEFORE)
    there, here = ("..." * (begin > 0) + _cut(text[begin:]) for text in texts)
    return f"{there} there, {here} here"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."
