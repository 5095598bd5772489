"""Pairs the pyramid levels of student and teacher.

Two maps form a pair if their pixels cover the same area (same stride) and if both are computed in
the same way: the map of stride 64 is every second pixel of P5 in one pyramid and a convolution of
C5 in another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.types import FeatureSpec, Responses


@dataclasses.dataclass(frozen=True)
class LevelPair:
    """One level that both pyramids have: its place in each, and its stride in pixels."""

    student: int
    teacher: int
    stride: int

    @property
    def name(self) -> str:
        """P2 for stride 4, P3 for stride 8 and so on: the usual name of the level."""
        return f"P{math.log2(self.stride):g}"


def _listed(spec: FeatureSpec) -> str:
    if spec.kinds is None:
        return ", ".join(f"stride {stride}" for stride in spec.strides)
    return ", ".join(
        f"stride {stride} ({kind})" for stride, kind in zip(spec.strides, spec.kinds, strict=True)
    )


def _alike(student: FeatureSpec, i: int, teacher: FeatureSpec, j: int) -> bool:
    if student.kinds is None or teacher.kinds is None:
        return True
    return student.kinds[i] == teacher.kinds[j]


def pair_levels(student: FeatureSpec, teacher: FeatureSpec) -> tuple[LevelPair, ...]:
    """Pairs the levels of two pyramids by stride and kind, finest first.

    Args:
        student: the student's pyramid.
        teacher: the teacher's pyramid.

    Returns:
        The common levels; matched by stride alone if a pyramid does not name its kinds.

    Raises:
        UserError: there are no common levels; the message lists both pyramids.
    """
    place = {stride: i for i, stride in enumerate(teacher.strides)}
    pairs = [
        LevelPair(i, place[stride], stride)
        for i, stride in enumerate(student.strides)
        if stride in place and _alike(student, i, teacher, place[stride])
    ]
    if not pairs:
        raise UserError(
            "student and teacher have no feature level in common. "
            f"Student: {_listed(student)}. Teacher: {_listed(teacher)}. "
            "Choose detectors that share at least one stride made in the same way."
        )
    return tuple(sorted(pairs, key=lambda pair: pair.stride))


def check_maps(
    pairs: Sequence[LevelPair], specs: tuple[FeatureSpec, FeatureSpec], maps: Any, *, alike: bool
) -> None:
    """Refuses feature maps that do not match the pyramids' specifications.

    Args:
        pairs: the levels in common.
        specs: the student's pyramid and the teacher's.
        maps: the student's maps and the teacher's, [B, h, w, C] each.
        alike: whether the two maps of a pair must have the same height and width.

    Raises:
        UserError: names the side and the level, with what is there and what was promised.
    """
    for side, spec, given in zip(("student", "teacher"), specs, maps, strict=True):
        if len(given) != len(spec):
            raise UserError(
                f"the {side} gives {len(given)} maps; its FeatureSpec has {len(spec)} levels "
                f"({_listed(spec)})"
            )
        for i, (stride, channels) in enumerate(zip(spec.strides, spec.channels, strict=True)):
            shape = tuple(given[i].shape)
            if len(shape) != 4 or shape[-1] != channels:
                raise UserError(
                    f"the {side}'s map {i}, of stride {stride}, has the shape {shape}; its "
                    f"FeatureSpec says [B, h, w, {channels}]"
                )
    for pair in pairs:
        s, t = tuple(maps[0][pair.student].shape), tuple(maps[1][pair.teacher].shape)
        if s[0] != t[0] or (alike and s != (*t[:3], s[3])):
            raise UserError(
                f"at stride {pair.stride} the student's map has the shape {s} and the teacher's "
                f"{t}; both have to be of the same images, and one pixel of the same place"
            )


def check_responses(specs: tuple[FeatureSpec, FeatureSpec], maps: Any, given: Responses) -> None:
    """Refuses head maps that do not match the pyramids' feature maps.

    Args:
        specs: the student's pyramid and the teacher's.
        maps: the student's maps and the teacher's, [B, h, w, C] each, already checked by
            `check_maps`.
        given: the heads' maps.

    Raises:
        UserError: names the side and the level, with what was given and what is expected.
    """
    sides = zip(("student", "teacher"), specs, maps, (given.student, given.teacher), strict=True)
    for side, spec, own, heads in sides:
        where = f"responses.{side}"
        if len(heads) != len(spec):
            raise UserError(
                f"{where} is of {len(heads)} levels, and the {side}'s FeatureSpec has {len(spec)} "
                f"({_listed(spec)}): give a pair (classes, boxes) for each, also for those that "
                "the other side has not"
            )
        for i, (pair, stride) in enumerate(zip(heads, spec.strides, strict=True)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise UserError(
                    f"{where}[{i}], of stride {stride}: should be a pair of maps (classes, boxes)"
                )
            wanted = tuple(own[i].shape)
            for branch, found in zip(("classes", "boxes"), pair, strict=True):
                if tuple(found.shape) != wanted:
                    raise UserError(
                        f"{where}[{i}], of stride {stride}: its map of {branch} has the shape "
                        f"{tuple(found.shape)}; a head's map is of its pyramid's shape, {wanted}"
                    )
