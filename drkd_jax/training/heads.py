"""Whether two detectors' heads can be crossed, as `distill.crosskd` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drkd_jax.distill.crosskd import CrossKDConfig
from drkd_jax.errors import UserError
from drkd_jax.models import Detector
from drkd_jax.models.retinanet import RetinaNet
from drkd_jax.models.settings import AnchorSettings
from drkd_jax.training.teacher import Teacher, compare_classes
from drkd_jax.weights.classes import map_classes

_OFF = "or set distill.crosskd.weight = 0"


def check_student(term: CrossKDConfig, student: Detector) -> None:
    """Refuses a student whose head cannot be left after so many layers.

    Raises:
        UserError: it is no RetinaNet, or its head has fewer layers.
    """
    _check_head(term, student, "student")


def check_teacher(
    term: CrossKDConfig, student: Detector, teacher: Teacher, names: Sequence[str]
) -> None:
    """Refuses a teacher whose head cannot finish the student's.

    Args:
        term: the settings.
        student: which `check_student` let through.
        teacher: with its heads, and its classes found among the data's by name.
        names: of the data's classes.

    Raises:
        UserError: it is no RetinaNet, its head has fewer layers, or its anchors or classes are
            others than the student's.
    """
    detector = teacher.detector
    _check_head(term, detector, "teacher")
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
    """A sentence where the teacher's answers are not about the data's classes in their order."""
    if not teacher.categories:
        known = teacher.detector.num_classes
        if known == num_classes:
            return None
        return f"the teacher's head knows {known} classes without names, the student {num_classes}"
    own, data = (list(enumerate(side)) for side in (teacher.categories, names))
    try:
        if map_classes(own, data).same:  # upper case and blanks aside
            return None
    except UserError:
        pass
    return compare_classes(teacher.categories, tuple(names))


def _alike(a: AnchorSettings, b: AnchorSettings) -> bool:
    # torchvision's sides are whole pixels: a hundredth apart is the same anchor.
    return a.ratios == b.ratios and (
        len(a.scales) == len(b.scales) and np.allclose(a.scales, b.scales, rtol=0.01)
    )


def _words(anchors: AnchorSettings) -> str:
    sides = ", ".join(f"{side:.3g}" for side in anchors.scales)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    return f"sides of {sides} strides at ratios {ratios}"


def _check_head(term: CrossKDConfig, detector: Detector, side: str) -> None:
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
