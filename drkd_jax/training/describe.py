"""The messages of a run before it starts: what it will do, on which data, with which weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from drkd_jax.data.checking.findings import MAX_DETECTIONS, Finding, find, places
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import padding_share
from drkd_jax.data.sources import Source
from drkd_jax.evaluation import why_nothing_to_find
from drkd_jax.fault_tolerance.processes import broadcast
from drkd_jax.models.build import DETECTORS
from drkd_jax.step.settings import TrainSettings
from drkd_jax.step.state import num_parameters
from drkd_jax.training.setup import Run
from drkd_jax.training.teacher import compare_classes
from drkd_jax.words import counted, listed

WEAK_AP = 0.01  # a teacher with a lower AP is reported


def describe(run: Run, start: int) -> list[str]:
    """The lines that open a run.

    Args:
        run: what was built.
        start: the step it starts from; above 0 for a run that continues.
    """
    device = jax.devices()[0]
    settings, student = run.train, run.config["student"]
    name = f"{student['detector']} on "
    lines = [
        f"devices    {run.mesh.size} x {device.device_kind} ({device.platform}), "
        f"{counted(jax.process_count(), 'process')}, computing in {settings.precision}"
        + (" by pmap" if settings.parallel == "pmap" else ""),
        f"train      {run.train_source.spec}: {_counts(run.train_source)}",
        f"val        {run.val_source.spec}: {_counts(run.val_source)}",
        f"canvases   {', '.join(f'{height}x{width}' for height, width in run.pipeline.canvases)} "
        f"(height x width), {padding_share(run.train_source, run.pipeline):.1%} of their pixels "
        "are padding",
        f"student    {_model(student, name)}, {_student_parameters(run)}; {run.student_origin}",
    ]
    if run.teacher is None:
        lines.append("teacher    none: plain training")
    else:
        model = _model(dataclasses.asdict(run.teacher.detector.settings), _kind(run))
        size = _millions(run.teacher.num_parameters)
        lines.append(f"teacher    {model}, {size} parameters, frozen; {run.teacher.origin}")
        terms = ", ".join(f"{weight:g} x {name}" for name, weight in run.weights.items())
        terms = terms or "nothing"
        distiller = _millions(num_parameters(run.state.params["distiller"]))
        lines.append(
            f"loss       detection + {terms}{_phases(run)}, on maps of stride "
            f"{', '.join(map(str, run.strides))}; the distiller trains {distiller} parameters"
        )
    lines += [
        f"steps      {run.steps} of {settings.batch_size} images{_parts(settings)} "
        f"({run.steps / run.steps_per_epoch:.1f} epochs of {run.steps_per_epoch} steps)"
        + (f", going on from step {start}" if start else ""),
        f"optimiser  {_optimiser(settings)}, learning rate {_rate(settings)} after "
        f"{settings.warmup_steps} steps of warm-up, {_decay(run)}, "
        f"weight decay {settings.weight_decay:g} ({settings.weight_decay_mask}), "
        + (f"gradient clipped at {settings.clip_norm:g}" if settings.clip_norm else "no clipping")
        + (f"; kept and scored: the average of decay {settings.ema:g}" if settings.ema else ""),
    ]
    return lines


def findings(run: Run, say: Callable[[str], None]) -> list[str]:
    """Reports findings about the data and the settings; every process calls it.

    Args:
        run: what was built.
        say: called with findings that are only for information.

    Returns:
        The findings that need attention.
    """
    sets = run.train_source, run.val_source, run.pipeline.max_boxes, run.eval.max_detections
    warnings = []
    for part, text, grave in broadcast(lambda: data_findings(*sets)):
        if grave:
            warnings.append(f"{part}: {text}")
        else:
            say(f"{part:10s} {text}")
    warnings += [*_too_small(run.pipeline), *run.warnings]
    nothing = why_nothing_to_find(run.val_source.coco_ground_truth())
    if nothing:
        warnings.append(f"config.data.val = {run.val_source.spec}: {nothing}")
    if run.teacher is not None and run.config["teacher"].get("init") != "random":
        norm = run.teacher.detector.settings.backbone.norm
        hint = other_start(norm, run.config["student"].get("init") or "")
        if hint:
            say(f"teacher    {hint}")
    differing = other_classes(run)
    return [*warnings, differing] if differing else warnings


def _too_small(pipeline: PipelineConfig) -> list[str]:
    """A sentence if no canvas can hold images of the configured size."""
    wanted = pipeline.shorter, pipeline.longer
    if pipeline.resize == "stretch":
        held = any(h >= wanted[0] and w >= wanted[1] for h, w in pipeline.canvases)
    else:
        held = any(min(c) >= wanted[0] for c in pipeline.canvases)
        held &= any(max(c) >= wanted[1] for c in pipeline.canvases)
    if held:
        return []
    sizes = ", ".join(f"{height}x{width}" for height, width in pipeline.canvases)
    return [
        f"config.data.canvases = {sizes}: too small for data.shorter = {wanted[0]} and "
        f"data.longer = {wanted[1]}, so images are shrunk to fit; make the canvases "
        "larger as well, or ask for less"
    ]


def other_classes(run: Run) -> str | None:
    """A sentence if there is a teacher whose classes are not the data's, else None."""
    if run.teacher is None:
        return None
    names = tuple(category.name for category in run.train_source.categories)
    return compare_classes(run.teacher.categories, names)


def _phases(run: Run) -> str:
    """Describes the phases of the distillation; empty if it is constant over the run."""
    phases, words = run.distillation, []
    assert phases is not None
    if phases.adaptation_steps:
        words.append(f"for {phases.adaptation_steps} steps the distiller alone learns by them")
    if phases.warmup_steps:
        words.append(f"their weights rise over {phases.warmup_steps} steps")
    if phases.schedule != "constant":
        start = round(phases.fall_from * run.steps)
        how = {"linear": "fall linearly", "cosine": "fall along a cosine", "stop": "stop"}
        words.append(f"their weights {how[phases.schedule]} from step {start}")
    return f" ({', '.join(words)})" if words else ""


def _parts(settings: TrainSettings) -> str:
    if settings.accumulate == 1:
        return ""
    each = settings.batch_size // settings.accumulate
    return f" in {settings.accumulate} parts of {each}"


def _optimiser(settings: TrainSettings) -> str:
    if settings.optimizer == "adamw":
        return f"AdamW (b1 {settings.b1:g}, b2 {settings.b2:g})"
    return f"SGD with momentum {settings.momentum:g}"


def _decay(run: Run) -> str:
    if run.train.schedule == "cosine":
        return f"along a cosine to {run.train.final_factor:g} of it"
    return f"times {run.train.decay_factor:g} at {list(run.decays) or 'no step'}"


def data_findings(
    train: Source, val: Source, max_boxes: int, max_detections: int = MAX_DETECTIONS
) -> list[tuple[str, str, bool]]:
    """Surprising facts about the data, worded as in `prepare --check`.

    Args:
        train: the set that is trained on.
        val: the set that is scored.
        max_boxes: rows for ground truth in a batch.
        max_detections: detections per class and image that an evaluation counts.

    Returns:
        ("train" or "val", text, whether something is likely wrong) for each.
    """
    of_train = find(train, max_boxes=max_boxes, max_detections=None)
    of_val = find(val, max_boxes=None, max_detections=max_detections)
    shared = _shared(train, val)
    if shared:
        of_val.append(Finding(shared, grave=True))
    elif _twice(train, val):  # may be intended, to overfit a few images
        of_val.append(Finding("the images of config.data.train: its AP says nothing of new ones"))
    found = [("train", each) for each in of_train] + [("val", each) for each in of_val]
    return [(part, finding.text, finding.grave) for part, finding in found]


def _shared(train: Source, val: Source) -> str:
    """The image files that both sets have."""
    trained = set(places(train)) - {None}
    both = [place for place in places(val) if place in trained]
    if not both or _twice(train, val):
        return ""
    named = listed(both)
    return f"{len(both)} of its {len(val)} images are in config.data.train as well: {named}"


def _twice(train: Source, val: Source) -> bool:
    """Whether both sets have the same image files."""
    if train.spec == val.spec:
        return True
    found = [places(train), places(val)]
    return None not in found[0] and sorted(map(str, found[0])) == sorted(map(str, found[1]))


def weak_teacher(ap: float, spec: str) -> str:
    """A sentence about a teacher that finds almost nothing; "" for any other.

    Args:
        ap: AP of the teacher, 0..1; -1 if there is nothing to find.
        spec: the source of the images that it was scored on.
    """
    if not 0 <= ap < WEAK_AP:
        return ""
    return (
        f"the teacher finds next to nothing on {spec} (AP {ap:.4f}): what it has to teach is "
        "little or wrong; see that config.teacher.checkpoint is of these classes, and that it "
        "reads images as config.teacher.data says"
    )


def other_start(teacher_norm: str, student_init: str) -> str:
    """A sentence if only the teacher seems to stem from pretrained weights; "" otherwise.

    Args:
        teacher_norm: of its backbone as it is used: batch norms, which published weights have, are
            "folded" there.
        student_init: `config.student.init`.
    """
    if teacher_norm != "folded" or student_init:
        return ""
    return (
        "has batch norms, as pretrained backbones do, and the student starts at random: where it "
        "was measured, such a student gained half as much from it, or lost (docs/results.md, other "
        "teachers); config.student.init starts it from pretrained weights too"
    )


def _rate(settings: TrainSettings) -> str:
    if not settings.linear_rate_for:
        return f"{settings.rate:g}"
    return (
        f"{settings.rate:g} ({settings.learning_rate:g} x {settings.batch_size}/"
        f"{settings.linear_rate_for} images)"
    )


def _counts(source: Source) -> str:
    counts = source.describe()
    left_out = {"crowd": "crowd region", "dropped": "unusable box"}
    words = [counted(counts[key], what) for key, what in left_out.items() if counts.get(key)]
    nouns = {"images": "image", "boxes": "box", "classes": "class"}
    return ", ".join(counted(counts[key], noun) for key, noun in nouns.items()) + (
        f" (left out of training: {', '.join(words)})" if words else ""
    )


def _model(settings: Mapping[str, Any], detector: str) -> str:
    backbone = settings.get("backbone") or {}
    kind = "ResNeXt" if backbone.get("groups", 1) > 1 else "ResNet"
    return f"{detector}{kind}-{backbone.get('depth', 50)}-FPN"


def _kind(run: Run) -> str:
    """The class of the teacher's detector, if it has heads beside its pyramid."""
    assert run.teacher is not None
    names = {kind: name for name, (kind, _) in DETECTORS.items()}
    name = names.get(type(run.teacher.detector))
    return f"{name} on " if name else ""


def _student_parameters(run: Run) -> str:
    trained = num_parameters(run.state.params["student"])
    others = num_parameters(run.state.model_state["student"])
    return f"{_millions(trained + others)} parameters, {_millions(trained)} of them trained"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 10_000 else str(count)
