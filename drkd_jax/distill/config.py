"""Settings of the distillation as frozen dataclasses, and their construction from a plain dict."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from drkd_jax.distill.baselines.crosskd import CrossKDConfig
from drkd_jax.distill.baselines.cwd import CWDConfig
from drkd_jax.distill.baselines.feature_imitation import FeatureImitationConfig
from drkd_jax.distill.baselines.fgd import FGDConfig
from drkd_jax.distill.baselines.mgd import MGDConfig
from drkd_jax.distill.baselines.pkd import PKDConfig
from drkd_jax.distill.setting_checks import at_least_one, choice, is_number, not_negative, positive
from drkd_jax.errors import UserError
from drkd_jax.renamed import refuse_old_key
from drkd_jax.values import section, typed

FORMS = ("paper", "official")
TEACHER_MODULES = ("trained", "frozen", "pretrained", "shared", "average")
# No head reads a relation matrix, so no loss of the teacher's could pretrain the boxes' units.
OF_BOXES = tuple(name for name in TEACHER_MODULES if name != "pretrained")
ARITHMETICS = ("auto", "plain", "gram")
COMPARISONS = ("correlation", "values")
FILTERS = ("learned", "random", "none")
SIMILARITIES = ("cosine", "embedded", "bilinear")
SCHEDULES = ("constant", "linear", "cosine", "stop")

# The values that None stands for: (paper, official). The paper form's weights are in units of the
# variance of the teacher's maps, or of their channels, and were found in trainings
# (docs/results.md); the official form's are the author's for two-stage detectors, which fit plain
# norms over two images per device. Teacher modules: see the measurements in docs/method.md;
# "frozen" and "average" do not collapse on noise, and "frozen" also works with a teacher whose
# widths differ from the student's.
_BY_FORM: dict[str, dict[str, tuple[Any, Any]]] = {
    "pixel_relation": {
        "weight": (15.0, 1e-3),
        "compare": ("correlation", "values"),
        "normalize": (True, False),
        "teacher_modules": ("frozen", "trained"),
        "teacher_scale": (0.0, 1.0),  # initial scale of the graph units' branch
        "student_scale": (0.0, 1.0),
    },
    "instance_relation": {
        "weight": (2.0, 4e-3),
        "similarity": ("cosine", "bilinear"),
        "filter": ("none", "random"),
        "teacher_modules": ("frozen", "trained"),
    },
    "instance_feature": {"weight": (0.5, 2.4e-3)},
}


_WEIGHT_OF_VALUES = 0.5  # the paper form's with compare = "values", found in the same way


def _fill(term: str, settings: Any) -> None:
    """Replaces settings that are None by the defaults of the form."""
    choice(term, "form", settings.form, FORMS)
    for name, values in _BY_FORM[term].items():
        if getattr(settings, name) is None:
            object.__setattr__(settings, name, values[FORMS.index(settings.form)])


@dataclasses.dataclass(frozen=True)
class PixelRelationConfig:
    """L_PR: the relations between the pixels of a map, found through a small graph.

    Attributes:
        weight: what the loss is multiplied by in the total. None: 15 in the paper form (0.5 where
            values are compared), 0.001 in the official one. None is replaced when the settings are
            made, here as in every setting, so `dataclasses.replace` keeps the number found then.
        form: "paper" (mean square, padding masked) or "official" (plain norm of the batch).
        compare: how the two embeddings are compared: by their "values", as in the paper, or by the
            "correlation" of each channel over the pixels of an image (the loss is 2 (1 - r), with
            Pearson's r, independent of the channel's mean and scale). None: "correlation" in the
            paper form, "values" in the official one, which supports nothing else.
        nodes: graph nodes m of each paired level, finest first; the last value also holds for all
            further levels.
        normalize: divide the node sums by the number of pixels, so that they do not grow with
            the image. None: yes in the paper form, no in the official one.
        teacher_modules: "trained", "frozen" (stays random), "shared" with the student's, "average"
            of the student's over time, or "pretrained" inside the frozen teacher by its own
            detection loss (training/pretrain.py), then frozen. None: "frozen" in the paper form,
            "trained" in the official one. "shared" and "average" need equal channels on both
            sides.
        teacher_scale: initial standard deviation of the branch that the teacher's unit adds to its
            map (in the default form the map itself has 1). With 0 the unit starts as the identity,
            and with "frozen" it stays that. None: 0 in the paper form, 1 in the official one.
        student_scale: the same for the student's unit.
        momentum: for "average": the share of the running average that a step keeps; with gradient
            accumulation each part of a batch is a step.
        arithmetic: "plain" (pixel by pixel), "gram" (from the Gram matrix of the features), or
            "auto": "gram" on accelerators, and on CPUs for maps of at least `gram_from_pixels`
            pixels.
        gram_from_pixels: see above.
        gram_guard: when the loss falls below this share of the teacher's own squares, the Gram
            form's value is recomputed pixel by pixel, since a small difference of large numbers
            loses its digits. 0: never.
    """

    weight: float | int | None = None
    form: str = "paper"
    compare: str | None = None
    nodes: tuple[int, ...] = (64, 64, 256)
    normalize: bool | None = None
    teacher_modules: str | None = None
    teacher_scale: float | int | None = None
    student_scale: float | int | None = None
    momentum: float | int = 0.999
    arithmetic: str = "auto"
    gram_from_pixels: int = 300
    gram_guard: float | int = 0.01

    def __post_init__(self) -> None:
        if (self.weight, self.form, self.compare) == (None, "paper", "values"):
            object.__setattr__(self, "weight", _WEIGHT_OF_VALUES)
        _fill("pixel_relation", self)
        given: Any = self.nodes
        nodes: Any = (given,) if is_number(given) else given
        numbers_given = isinstance(nodes, list | tuple) and bool(nodes)
        if not (numbers_given and all(is_number(m) and m >= 1 and m == int(m) for m in nodes)):
            raise UserError(
                "distill.pixel_relation.nodes needs at least one number, all whole and above 0."
            )
        object.__setattr__(self, "nodes", tuple(int(m) for m in nodes))
        for name in ("teacher_scale", "student_scale", "gram_from_pixels", "gram_guard"):
            not_negative(f"pixel_relation.{name}", getattr(self, name))
        choice("pixel_relation", "compare", str(self.compare), COMPARISONS)
        if self.form == "official" and self.compare != "values":
            raise UserError(
                f"distill.pixel_relation.compare = {self.compare!r}: the official form has "
                "'values' only; take form 'paper'."
            )
        choice("pixel_relation", "teacher_modules", str(self.teacher_modules), TEACHER_MODULES)
        choice("pixel_relation", "arithmetic", self.arithmetic, ARITHMETICS)


@dataclasses.dataclass(frozen=True)
class InstanceRelationConfig:
    """L_IR: how much each box of an image attends to each other box.

    Attributes:
        weight: what the loss is multiplied by in the total. None: 2 in the paper form, 0.004 in the
            official one.
        form: "paper" (relation matrices compared) or "official" (enhanced instances compared).
        similarity: similarity of two boxes in the paper form: "cosine" of their regions (relative
            to the image's mean box; nothing to train), "embedded" (dot product in one embedding,
            divided by the root of its width) or "bilinear" (two embeddings, as the author's; if
            random, they do not measure similarity). None: "cosine" in the paper form, "bilinear"
            in the official one, which supports nothing else.
        temperature: what the similarity is divided by before the softmax; not for "bilinear".
        diagonal: whether a box's row includes the box itself. None: only for "bilinear".
        embedding: width of the embeddings; None: half the size of a flattened region, D/2.
        filter: "learned" (any number of boxes, in any order), "random" (the author's: a linear
            layer that is never trained) or "none". None: "none" in the paper form, "random" in the
            official one.
        filter_rank: inner width of the learned filter.
        teacher_modules: as in `PixelRelationConfig`, except "pretrained".
        momentum: as in `PixelRelationConfig`.
    """

    weight: float | int | None = None
    form: str = "paper"
    similarity: str | None = None
    temperature: float | int = 0.3
    diagonal: bool | None = None
    embedding: int | None = None
    filter: str | None = None
    filter_rank: int = 64
    teacher_modules: str | None = None
    momentum: float | int = 0.999

    def __post_init__(self) -> None:
        _fill("instance_relation", self)
        choice("instance_relation", "filter", str(self.filter), FILTERS)
        choice("instance_relation", "similarity", str(self.similarity), SIMILARITIES)
        if self.form == "official" and self.similarity != "bilinear":
            raise UserError(
                f"distill.instance_relation.similarity = {self.similarity!r}: the official form "
                "has 'bilinear' only; take form 'paper'."
            )
        if self.diagonal is None:
            object.__setattr__(self, "diagonal", self.similarity == "bilinear")
        positive("instance_relation.temperature", self.temperature)
        for name in ("filter_rank", "embedding"):
            at_least_one(f"instance_relation.{name}", getattr(self, name))
        choice("instance_relation", "teacher_modules", str(self.teacher_modules), OF_BOXES)


@dataclasses.dataclass(frozen=True)
class InstanceFeatureConfig:
    """L_INS: the features inside the boxes.

    Attributes:
        weight: what the loss is multiplied by in the total. None: 0.5 in the paper form, 0.0024 in
            the official one.
        form: "paper" (mean square) or "official" (plain norm, summed over images and levels).
    """

    weight: float | int | None = None
    form: str = "paper"

    def __post_init__(self) -> None:
        _fill("instance_feature", self)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """All terms of the distillation; a term that is None, or has weight 0, is left out.

    Attributes:
        pixel_relation: L_PR.
        instance_relation: L_IR.
        instance_feature: L_INS.
        region_size: bins along each side of a region.
        region_levels: how many of the finest common levels the regions are cropped from.
        max_boxes: how many boxes of an image the instance terms use at most (the first valid
            ones); None: all in the batch. The diagnostics count the boxes left out.
        standardize_teacher: in the default form, divide each of the teacher's maps by its own
            standard deviation (teacher_side.py), so that a weight means the same for every
            teacher. The official form never does.
        images_per_device: official form only: norms and statistics are over groups of this many
            images, as on one of the author's devices, and the loss is the mean over the groups.
        adaptation_steps: in this many first steps the gradient of the distillation reaches only
            the distiller's modules, not the student.
        warmup_steps: the weights of all terms rise linearly from 0 over this many steps after that.
        schedule: of the weights after the warm-up: "constant"; "linear" or "cosine", which fall to
            0 at the end of the run; or "stop", which sets them to 0 at once. See `fall_from`.
        fall_from: the share of the run after which the weights begin to fall, or stop.
        pretrain_steps: for `teacher_modules = "pretrained"`: how many steps the teacher's graph
            units are trained inside the teacher before the run (training/pretrain.py).
        pretrain_rate: the learning rate of these steps.
        feature_imitation, pkd, cwd, mgd, fgd: other distillers, off by default with a weight of 0
            (baselines/map_term.py); they combine freely with each other and the terms above.
        crosskd: another such distiller, for the heads' responses (baselines/crosskd.py).
    """

    pixel_relation: PixelRelationConfig | None = PixelRelationConfig()
    instance_relation: InstanceRelationConfig | None = InstanceRelationConfig()
    instance_feature: InstanceFeatureConfig | None = InstanceFeatureConfig()
    region_size: int = 3
    region_levels: int = 2
    max_boxes: int | None = None
    standardize_teacher: bool = True
    images_per_device: int = 2
    adaptation_steps: int = 0
    warmup_steps: int = 0
    schedule: str = "constant"
    fall_from: float = 0.0
    pretrain_steps: int = 300
    pretrain_rate: float = 2e-3
    feature_imitation: FeatureImitationConfig | None = FeatureImitationConfig()
    pkd: PKDConfig | None = PKDConfig()
    cwd: CWDConfig | None = CWDConfig()
    mgd: MGDConfig | None = MGDConfig()
    fgd: FGDConfig | None = FGDConfig()
    crosskd: CrossKDConfig | None = CrossKDConfig()

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            names = ", ".join(repr(name) for name in SCHEDULES)
            raise UserError(
                f"distill.schedule = {self.schedule!r} is unknown: choose one of {names}."
            )
        for name in ("region_size", "region_levels", "max_boxes", "images_per_device"):
            at_least_one(name, getattr(self, name))
        for name, kind in TERMS.items():
            settings: Any = getattr(self, name)
            if not isinstance(settings, kind | None):
                raise UserError(
                    f"distill.{name} = {settings!r}: must be settings of {kind.__name__} or None."
                )
            if settings is None:
                continue
            not_negative(f"{name}.weight", settings.weight, "; 0 leaves the term out")
            momentum = getattr(settings, "momentum", 0)
            if not (is_number(momentum) and 0 <= momentum <= 1):
                raise UserError(
                    f"distill.{name}.momentum = {momentum!r}: the share that stays, 0 to 1."
                )
        for name in ("adaptation_steps", "warmup_steps"):
            not_negative(name, getattr(self, name))
        for name in ("pretrain_steps", "pretrain_rate"):
            positive(name, getattr(self, name))
        if not (is_number(self.fall_from) and 0 <= self.fall_from < 1):
            raise UserError(
                f"distill.fall_from = {self.fall_from!r}: a share of the run, from 0 to under 1."
            )
        if self.schedule == "stop" and self.fall_from == 0:
            raise UserError(
                "distill.schedule = 'stop' with fall_from = 0 never distils: set fall_from, or "
                "leave config.distill out."
            )

    @property
    def terms(self) -> dict[str, Any]:
        """Settings of the terms that are computed, by name."""
        named = {name: getattr(self, name) for name in TERMS}
        return {name: value for name, value in named.items() if value and value.weight}


# Every term by name: the fields of `DistillConfig` that hold settings of their own.
TERMS: dict[str, Any] = {
    field.name: type(field.default)
    for field in dataclasses.fields(DistillConfig)
    if dataclasses.is_dataclass(field.default)
}


def _build(kind: Any, settings: Mapping[str, Any], where: str) -> Any:
    known = typing.get_type_hints(kind)
    values = dict(settings)
    for key, value in values.items():
        if key not in known:
            refuse_old_key(f"{where}.{key}")
            raise UserError(f"unknown key {where}.{key}: known are {', '.join(sorted(known))}.")
        if typing.get_origin(known[key]) is not tuple:  # one number will do for these
            values[key] = typed(f"{where}.{key}", value, known[key])
        elif isinstance(value, list):  # of a config read back from JSON
            values[key] = tuple(value)
    return kind(**values)


def distill_config(settings: Mapping[str, Any]) -> DistillConfig:
    """Makes the settings from a plain nested dict, as a config file holds it.

    Args:
        settings: keys of `DistillConfig`; each term is a dict with the keys of its own class, or
            None. A term that is not named gets its defaults.

    Returns:
        The frozen settings.

    Raises:
        UserError: a key or a choice is unknown, or a value of another type; the message names it.
    """
    values = dict(section("config.distill", settings))
    for name, kind in TERMS.items():
        value = values.get(name)
        if isinstance(value, Mapping):
            values[name] = _build(kind, value, f"distill.{name}")
        elif value is not None and not isinstance(value, kind):
            raise UserError(f"distill.{name} = {value!r}: must be a table of settings or None.")
    return _build(DistillConfig, values, "distill")
