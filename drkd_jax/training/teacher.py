"""The frozen teacher: loading its weights, stripping its heads, and checks of its fitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.data.config import PIXEL_KEYS
from drkd_jax.distill.baselines.crosskd import CrossKDConfig
from drkd_jax.errors import UserError, faults_of
from drkd_jax.models.detector import Detector
from drkd_jax.models.feature_extractor import strip
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.folding import fold
from drkd_jax.models.pixels import only_pixels
from drkd_jax.models.retinanet import RetinaNet
from drkd_jax.models.settings import AnchorSettings
from drkd_jax.step.state import Arrays, num_parameters
from drkd_jax.types import FeatureSpec
from drkd_jax.weights.classes import follow_classes, map_classes
from drkd_jax.weights.opening import load
from drkd_jax.words import listed

_OWN_KEYS = ("checkpoint", "init", "evaluate", "dtype", "data")


class Teacher(NamedTuple):
    """A teacher that is ready to be passed to the step."""

    detector: Any  # with its heads only if they are needed, see `load_teacher`
    graph: nnx.GraphDef
    arrays: Arrays  # bare arrays of the whole module
    origin: str  # one line: where the weights came from
    categories: tuple[str, ...]  # class names of its training; () if unknown
    pixels: Mapping[str, Any]  # its input format: "mean", "std", "channels"; {}: the student's

    @property
    def num_parameters(self) -> int:
        """The number of elements in its arrays."""
        return num_parameters(self.arrays)


def load_teacher(
    settings: Mapping[str, Any], num_classes: int, seed: int, *, heads: bool = False
) -> Teacher:
    """Builds `config.teacher`: backbone and pyramid, norms folded, kernels in `dtype`.

    With `checkpoint` (a work folder, or a file of ours, of torchvision or of mmdetection, by path
    or name) the model is the checkpoint's own; model settings in `settings` must agree with it, and
    add what a foreign file does not show. Without a checkpoint, `init = "random"` is required. The
    heads are kept only if `evaluate` asks for the teacher's AP, or with `heads`.

    Args:
        settings: model settings, `checkpoint`, `init`, `evaluate`, `dtype` ("bfloat16" or
            "float32"), `prefix` (one of several models in a file), and `data`: `mean`, `std` and
            `channels`, if they differ from those that the checkpoint was trained with.
        num_classes: number of classes of a teacher with random weights.
        seed: seed of random weights.
        heads: keep the heads, because a distiller reads them.

    Raises:
        UserError: there is neither a checkpoint nor `init`, or there are both, or the checkpoint
            does not exist, is of another model, or has no pyramid.
    """
    init, checkpoint = settings.get("init", ""), settings.get("checkpoint", "")
    name = settings.get("dtype", "bfloat16")
    if name not in ("bfloat16", "float32"):
        raise UserError(f"config.teacher.dtype = {name!r}: bfloat16 or float32")
    if init not in ("", "random"):
        raise UserError(f"config.teacher.init = {init!r}: 'random' or nothing")
    dtype = jnp.dtype(name)
    model = {key: value for key, value in settings.items() if key not in _OWN_KEYS}
    said = only_pixels(settings.get("data") or {}, "config.teacher.data")
    whole = heads or bool(settings.get("evaluate"))
    if init == "random":
        if checkpoint:
            raise UserError(
                f"config.teacher.checkpoint = {checkpoint} would not be read, since "
                "config.teacher.init = 'random'; leave one of them empty (a recipe's form 'tiny' "
                "has the latter, with a model of its own)"
            )
        if not model:
            raise UserError("config.teacher.init = 'random' needs the teacher's model settings")
        with faults_of("config.teacher"):
            detector = models.init_detector(model, num_classes, seed, dtype)
        origin = "random weights, as config.teacher.init asks for"
        return _teacher(detector, origin, (), whole, said)
    if not checkpoint:
        raise UserError(
            "the teacher is untrained: config.teacher.checkpoint is empty. Give the work folder "
            "or the file of a trained teacher, or say config.teacher.init = 'random'"
        )
    teacher = _of_checkpoint(checkpoint, model, dtype, whole)
    return teacher._replace(pixels={**teacher.pixels, **said})


def teacher_spec(settings: Mapping[str, Any], num_classes: int) -> FeatureSpec:
    """The pyramid of `config.teacher`; weights are read only if nothing else describes it.

    Raises:
        UserError: as `load_teacher`.
    """
    if settings.get("init", "") != "random":
        return load_teacher(settings, num_classes, 0).detector.spec
    model = {key: value for key, value in settings.items() if key not in _OWN_KEYS}
    return models.abstract_detector(model, num_classes).spec


def for_data(teacher: Teacher, data: Sequence[tuple[Any, str]]) -> Teacher:
    """The teacher with its classes mapped to the data's by name.

    Its features are unchanged; its detections, if it kept its heads, get the data's class numbers.
    A teacher that lacks the names of the data's classes is returned unchanged; `compare_classes`
    describes the difference.

    Args:
        teacher: with or without class names.
        data: (id, name) of each class that is trained on.
    """
    own = tuple(enumerate(teacher.categories, start=1))
    if not own:
        return teacher
    try:
        found = map_classes(own, data, "the data")
    except UserError:
        return teacher
    names = tuple(name for _, name in data)
    if found.same:  # except for case and blanks
        return teacher._replace(categories=names)
    detector = teacher.detector
    if isinstance(detector, Detector):
        detector = follow_classes(detector, found)
    return teacher._replace(
        detector=detector,
        graph=nnx.split(detector)[0],
        categories=names,
        origin="; ".join((teacher.origin, *found.lines)),
    )


def compare_classes(teacher: tuple[str, ...], student: tuple[str, ...]) -> str | None:
    """A sentence if the classes of the two differ, else None."""
    if not teacher or teacher == student:
        return None
    return (
        f"the teacher knows {len(teacher)} classes ({listed(teacher, 4)}), the student "
        f"{len(student)} ({listed(student, 4)}): its features come from other objects"
    )


def _of_checkpoint(place: str, model: Mapping[str, Any], dtype: Any, whole: bool) -> Teacher:
    weights = load(place, as_tuples(dict(model)), heads=whole)
    about, source, origin = weights.about, weights.about.source, weights.origin
    if about.part == "backbone" or (whole and about.part != "detector"):
        lacks = "feature pyramid" if about.part == "backbone" else "detection head of ours"
        raise UserError(f"config.teacher.checkpoint = {place}: it has no {lacks} ({origin})")
    if source.get("step") == 0:
        raise UserError(
            f"the teacher is untrained: the checkpoint in {place} is one of step 0. "
            "Give a trained one, or say config.teacher.init = 'random'"
        )
    if source.get("numbers"):
        origin += f", AP {source['numbers']['AP']:.4f} on {about.data['val']}"
    if not (weights.config or whole or about.part == "pyramid"):
        origin += "; its heads are left out"
    names = tuple(name for _, name in about.categories)
    return _teacher(weights.detector(dtype), origin, names, whole, about.data)


def _teacher(
    detector: Any, origin: str, categories: tuple[str, ...], whole: bool, data: Mapping[str, Any]
) -> Teacher:
    detector = fold(detector if whole else strip(detector))
    graph, state = nnx.split(detector)
    # Kernels are stored in the dtype they are used in; vectors (norms, biases) stay exact.
    arrays = jax.tree.map(
        lambda leaf: (
            leaf.astype(detector.dtype) if leaf.ndim > 1 and leaf.dtype == jnp.float32 else leaf
        ),
        nnx.as_pure(state),
    )
    pixels = {key: data[key] for key in PIXEL_KEYS if key in data}
    return Teacher(detector, graph, arrays, origin, categories, pixels)


_OFF = "or set distill.crosskd.weight = 0"


def check_heads(
    term: CrossKDConfig, student: Detector, teacher: Teacher, names: Sequence[str]
) -> None:
    """Refuses a teacher whose head cannot continue the student's.

    Args:
        term: the settings of CrossKD.
        student: a student accepted by `check_head`.
        teacher: with its heads, and its classes mapped to the data's by name.
        names: names of the data's classes.

    Raises:
        UserError: the teacher is not a RetinaNet, its head has fewer layers, or its anchors or
            classes differ from the student's.
    """
    detector = teacher.detector
    check_head(term, detector, "teacher")
    own, theirs = student.settings.anchors, detector.settings.anchors  # type: ignore[attr-defined]
    if not _alike(own, theirs):
        raise UserError(
            f"distill.crosskd: the student's anchors have {_words(own)}, the teacher's "
            f"{_words(theirs)}: give config.student.anchors the teacher's, {_OFF}"
        )
    differing = _differing(teacher, student.num_classes, names)
    if differing:
        raise UserError(
            f"distill.crosskd: {differing}. Its head has to know the data's classes: take such a "
            f"teacher, {_OFF}"
        )


def _differing(teacher: Teacher, num_classes: int, names: Sequence[str]) -> str | None:
    """A sentence if the teacher's outputs are not for the data's classes in their order."""
    if not teacher.categories:
        known = teacher.detector.num_classes
        if known == num_classes:
            return None
        return f"the teacher's head knows {known} classes without names, the student {num_classes}"
    own, data = (list(enumerate(side)) for side in (teacher.categories, names))
    try:
        if map_classes(own, data).same:  # ignoring case and blanks
            return None
    except UserError:
        pass
    return compare_classes(teacher.categories, tuple(names))


def _alike(a: AnchorSettings, b: AnchorSettings) -> bool:
    # torchvision's sides are whole pixels: anchors that differ by a hundredth are the same.
    return a.ratios == b.ratios and (
        len(a.scales) == len(b.scales) and np.allclose(a.scales, b.scales, rtol=0.01)
    )


def _words(anchors: AnchorSettings) -> str:
    sides = ", ".join(f"{side:.3g}" for side in anchors.scales)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    return f"sides of {sides} strides at ratios {ratios}"


def check_head(term: CrossKDConfig, detector: Detector, side: str) -> None:
    """Refuses a detector whose head cannot be read after `term.layers` layers.

    Args:
        term: the settings of CrossKD.
        detector: the student or the teacher.
        side: its name in messages.

    Raises:
        UserError: it is not a RetinaNet, or its head has fewer layers.
    """
    if not isinstance(detector, RetinaNet):
        raise UserError(
            f"distill.crosskd crosses the heads of two RetinaNets, and the {side} is a "
            f"{type(detector).__name__}: take detector 'retinanet' for both, {_OFF}"
        )
    convs = detector.settings.head_convs
    if convs < term.layers:
        raise UserError(
            f"distill.crosskd.layers = {term.layers}, and the {side}'s head has only {convs} "
            f"(config.{side}.head_convs): layers from 0 to {convs}, {_OFF}"
        )
