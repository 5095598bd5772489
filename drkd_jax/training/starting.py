"""The student's initial weights: random, from another run, or from a file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.data.config import PIXEL_KEYS
from drkd_jax.errors import UserError, faults_of
from drkd_jax.models.arrays import flatten, unflatten
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.filling import as_tuples, from_dict
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.weights.fetch.by_name import is_name, local_file, short_name
from drkd_jax.weights.opening import is_work_folder, load
from drkd_jax.words import listed

# Settings of a backbone that must be equal for weights to be usable: those that change the shapes
# of its arrays, and those that do not.
_BACKBONE = ("depth", "width", "groups", "dcn", "norm")
_UNSEEN = ("eps", "style", "pool")
_GREY = 1.0  # of 255; libraries round the same means differently by up to 0.7
# Settings of a detector that must be equal for the outputs of its heads to mean the same.
_HEADS = ("anchors", "delta_stds", "roi_stds", "roi_aligned", "class_ids")


def check_files(config: Mapping[str, Any]) -> None:
    """Checks that the weight files of both sides exist before anything else is done.

    Weights given by name (`weights.fetch`) are downloaded here, before processes wait for others.

    Raises:
        UserError: files are missing (the message names all, and their keys), or a download failed.
    """
    teacher = config.get("teacher") or {}
    wanted = {
        "config.student.init": config["student"].get("init", ""),
        "config.teacher.checkpoint": "" if teacher.get("init") else teacher.get("checkpoint", ""),
    }
    paths = {key: path for key, path in wanted.items() if path and not is_name(path)}
    missing = {key: path for key, path in paths.items() if not Path(path).exists()}
    if missing:
        named = " and ".join(f"{key} = {path}" for key, path in missing.items())
        random = "; --config.student.init= starts the student from random weights"
        raise UserError(
            f"{named}: not there. Put the file (of torchvision, mmdetection or ours) or the work "
            "folder of a trained detector there, or name another one"
            f"{random if 'config.student.init' in missing else ''}{_published(missing)}"
        )
    for key, place in wanted.items():
        if is_name(place):
            with _of_key(key):
                local_file(place)


@contextlib.contextmanager
def _of_key(key: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{key} = {error}") from error


def _published(missing: Mapping[str, str]) -> str:
    """How to get those missing files that are published."""
    names = {key: short_name(Path(path).name) for key, path in missing.items()}
    return "".join(f"; --{key}={name} fetches it" for key, name in names.items() if name)


def build_student(
    config: Mapping[str, Any], num_classes: int, dtype: Any, names: Sequence[str] = ()
) -> tuple[models.Detector, str]:
    """The student with its initial weights, and one line that says where they came from.

    Args:
        config: config of the run; `student.init` is empty, a work folder, or a file of ours, of
            torchvision or of mmdetection, by path or name: an ImageNet backbone or a detector.
        num_classes: number of classes of the data.
        dtype: the dtype that the student computes in.
        names: names of the data's classes, if known: outputs for other classes, or for the same
            classes in another order, stay random.

    Raises:
        UserError: unknown model settings, or initial weights that do not exist or do not fit.
    """
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    init, seed = config["student"].get("init", ""), config["seed"]
    with faults_of("config.student"):
        student = models.init_detector(settings, num_classes, seed, dtype)
    if student.settings.backbone.norm == "folded":
        raise UserError(
            "config.student.backbone.norm = 'folded': a network without norms, for detecting and "
            "teaching only; train with 'frozen_bn', 'bn' or 'gn'"
        )
    if not init:
        return student, f"random weights of seed {seed}"
    return start_from(student, *_meant_alike(init, student, config.get("data") or {}, names))


def start_from(module: Any, arrays: Mapping[str, Any], where: str) -> tuple[Any, str]:
    """Puts every array that fits into a module; the rest stays random.

    Args:
        module: the student.
        arrays: by flat name.
        where: the arrays' name in messages.

    Returns:
        (the module, one line that says how many arrays fit and which did not).

    Raises:
        UserError: none of the arrays fits, or less than half of the backbone's.
    """
    graph, state = nnx.split(module)
    pure = nnx.as_pure(state)
    own = flatten(pure)
    fit = {name for name in own if name in arrays and np.shape(arrays[name]) == own[name].shape}
    if not fit:
        raise UserError(f"config.student.init = {where}: none of its arrays fits this student")
    backbone = {name for name in own if name.startswith("backbone.")}
    if 2 * len(backbone & fit) < len(backbone):
        raise UserError(
            f"config.student.init = {where}: only {len(backbone & fit)} of {len(backbone)} arrays "
            f"of the backbone fit this student{_unlike(arrays, own, backbone - fit)}; set "
            "config.student.backbone as it is there"
        )
    flat = {
        name: jnp.asarray(arrays[name], leaf.dtype) if name in fit else leaf
        for name, leaf in own.items()
    }
    origin = f"{where}: {len(fit)} of {len(own)} arrays"
    if len(fit) < len(own):
        origin += f" (random: {listed(sorted(set(own) - fit), 4)})"
    return nnx.merge(graph, unflatten(flat, pure)), origin


def _unlike(arrays: Mapping[str, Any], own: Mapping[str, Any], names: set[str]) -> str:
    """The first array that has different shapes on the two sides, for a message."""
    for name in sorted(names & set(arrays)):
        return f": {name} is {np.shape(arrays[name])} there and {own[name].shape} here"
    return ""


def _check_pixels(init: str | Path, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuses weights whose network had another input format than this run's student."""
    usual = {"channels": "rgb"}
    theirs, own = usual | dict(theirs), usual | dict(own)
    wrong = [
        f"config.data.{key} = {theirs[key]}"
        for key in PIXEL_KEYS
        if key in theirs and key in own and not _near(key, theirs[key], own[key])
    ]
    if wrong:
        raise UserError(
            f"config.student.init = {init}: its network reads its images differently; set "
            f"{', '.join(wrong)}"
        )


def _near(key: str, theirs: Any, own: Any) -> bool:
    """Whether two values are practically equal; means may differ by under a grey level."""
    theirs, own = as_tuples(theirs), as_tuples(own)
    if key != "mean" or len(theirs) != len(own):
        return bool(theirs == own)
    return all(abs(float(a) - float(b)) < _GREY for a, b in zip(theirs, own, strict=True))


def _meant_alike(
    init: str, student: models.Detector, data: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The arrays that have the same meaning in this student as in the model they come from."""
    own, of_run = student.settings, is_work_folder(init)
    same = {key: getattr(own.backbone, key) for key in _BACKBONE}
    if own.backbone.style != "pytorch":  # set by the user, as the file cannot show it
        same["style"] = own.backbone.style
    if own.backbone.pool != "padded":
        same["pool"] = own.backbone.pool
    weights = load(init, None if of_run else {"backbone": same}, heads=False)
    arrays, where, settings = weights.arrays, weights.origin, weights.about.settings
    theirs = from_dict(BackboneSettings(), settings.get("backbone") or {})
    _check_backbone(init, theirs, own.backbone)
    _check_pixels(init, weights.about.data, data)
    for name, leaf in flatten(nnx.as_pure(nnx.split(student)[1])).items():
        found = arrays[name].shape if name in arrays else "not there"
        if name.startswith("backbone.") and found != leaf.shape and not of_run:
            raise UserError(
                f"config.student.init = {init}: {name} is {found} in the file and {leaf.shape} in "
                "the student; the backbones have to be the same"
            )
    if weights.about.part != "detector":
        return arrays, where
    fitting = _fitting(arrays, weights.model().settings, student, where)
    return _of_same_classes(*fitting, [name for _, name in weights.about.categories], names)


def _check_backbone(init: str | Path, theirs: BackboneSettings, own: BackboneSettings) -> None:
    """Refuses weights of a backbone that computes differently although all shapes agree."""
    keys = [key for key in _UNSEEN if key != "eps" or own.norm in ("bn", "frozen_bn")]
    wrong = [
        f"config.student.backbone.{key} = {getattr(theirs, key)}"
        for key in keys
        if getattr(theirs, key) != getattr(own, key)
    ]
    if wrong:
        raise UserError(
            f"config.student.init = {init}: its backbone computes differently; set "
            f"{', '.join(wrong)}"
        )


def _fitting(
    arrays: Mapping[str, Any], theirs: PyramidSettings, student: models.Detector, where: str
) -> tuple[dict[str, Any], str]:
    """A detector's arrays, without those that would have another meaning in this student."""
    own, kept = student.settings, dict(arrays)
    wrong = [key for key in _HEADS if getattr(theirs, key, None) != getattr(own, key, None)]
    if theirs.convention != own.convention:
        where += f", without its heads, which are {theirs.convention}'s"
    elif type(theirs) is type(own) and wrong:
        words = ", ".join(f"{key} {getattr(theirs, key)}" for key in wrong)
        where += f", without its heads, whose settings are others ({words})"
    else:
        return kept, where
    body = ("backbone.", "neck.")
    return {name: array for name, array in kept.items() if name.startswith(body)}, where


def _of_same_classes(
    arrays: Mapping[str, Any], where: str, theirs: Sequence[str], own: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """A detector's arrays, without the class outputs unless its classes are the data's in order."""
    kept = dict(arrays)
    if not theirs or len(theirs) != len(own) or list(theirs) == list(own):
        return kept, where  # another number of classes does not fit anyway
    told_apart = re.compile(r"(head\.cls|roi(\.\d)?\.(cls|box))\.")
    kept = {name: array for name, array in kept.items() if not told_apart.match(name)}
    if len(kept) < len(arrays):
        where += ", without the outputs of its classes, which are others or in another order"
    return kept, where
