"""The two models of `visualize`, with the graph units of a distilled run where there are some."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from drkd_jax.cli.detector import Read, read_named
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.report.two_models import Model, Units
from drkd_jax.training.loading import load_distiller
from drkd_jax.training.teacher import teacher_spec

SIDES = ("weights", "against")  # the arguments that name them


class Side(NamedTuple):
    """One of the two models, with what it was read from."""

    read: Read
    model: Model
    said: str  # about its graph units


def read_sides(arguments: argparse.Namespace) -> tuple[Side, Side]:
    """Reads both models; says which of them have graph units.

    Args:
        arguments: with the places `weights` and `against`, `which` and `size`.

    Raises:
        UserError: there is no checkpoint, or it cannot be used.
    """
    places = [getattr(arguments, side) for side in SIDES]
    reads = []
    for place in places:
        named = argparse.Namespace(
            workdir=None, weights=place, which=arguments.which, size=arguments.size
        )
        reads.append(read_named(named))
    sides = []
    for own, other in ((0, 1), (1, 0)):
        units, said = _units(places[own], reads[own], places[other], reads[other])
        letter, name = "AB"[own], Path(places[own]).resolve().name
        print(f"{letter} {places[own]}, step {reads[own].step}: {said}")
        model = Model(f"{letter} {name}", reads[own].detector, reads[own].pixels, units)
        sides.append(Side(reads[own], model, said))
    return sides[0], sides[1]


def _units(place: str, read: Read, other: str, of_other: Read) -> tuple[Units | None, str]:
    """The graph units of a model: of its own run, else of the run that it teaches."""
    if _is_distilled(read):
        taught = _teaches(other, read)
        num_classes = read.num_classes
        spec = (
            of_other.detector.spec if taught else teacher_spec(read.config["teacher"], num_classes)
        )
        specs = read.detector.spec, spec
        found = load_distiller(place, read.step, read.config, specs)
        if found is None:
            return None, (
                f"its run keeps no graph units of step {read.step}; --which=last takes a step "
                "that has them"
            )
        if found.pixel_relation is None:
            return None, "its distillation has no pixel relation, so no graph units"
        return Units(found, "student"), "before (x) and after (φ(x)) the student's graph units"
    if _is_distilled(of_other) and _teaches(place, of_other):
        specs = of_other.detector.spec, read.detector.spec
        found = load_distiller(other, of_other.step, of_other.config, specs)
        if found is not None and found.pixel_relation is not None:
            return Units(found, "teacher"), (
                "before (x) and after (φ(x)) the teacher's graph units of the run that it taught"
            )
    return None, "features alone, it has no graph units"


def _is_distilled(read: Read) -> bool:
    return read.config.get("distill") is not None and read.config.get("teacher") is not None


def _teaches(place: str, student: Read) -> bool:
    named = student.config["teacher"].get("checkpoint")
    return bool(named) and Path(named).resolve() == Path(place).resolve()


def joint_pipeline(own: Read, other: Read) -> PipelineConfig:
    """The sizes of --weights, on canvases that both pyramids halve evenly."""
    stride = math.lcm(own.detector.stride, other.detector.stride)
    canvases = tuple(
        (-(-height // stride) * stride, -(-width // stride) * stride)
        for height, width in own.pipeline.canvases
    )
    keys = "shorter", "longer", "resize"
    of = [", ".join(str(getattr(each.pipeline, key)) for key in keys) for each in (own, other)]
    if of[0] != of[1]:
        print(f"both see pictures resized as A does ({of[0]}); B was made for {of[1]}")
    return dataclasses.replace(own.pipeline, batch_size=1, canvases=canvases)
