"""The `train` and `eval` parts of a config as frozen dataclasses that check every key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.evaluation import COCO_MAX, EVALUATORS
from drkd_jax.renamed import refuse_old_key
from drkd_jax.values import typed


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and how carefully a run trains.

    Attributes:
        batch_size: images per step, over all devices and hosts.
        accumulate: number of parts in which a step's batch is processed, one after the other: needs
            memory for `batch_size / accumulate` images only (not on a CPU) and makes one update
            with the mean over the parts (`accumulation.py`).
        steps: length of the run; 0 if `epochs` is given instead.
        epochs: passes over the training images; 0 if `steps` is given.
        learning_rate: the rate between warm-up and the first decay.
        linear_rate_for: the batch size that `learning_rate` is meant for: the rate is scaled in
            proportion to `batch_size`. 0 does not scale it.
        optimizer: "sgd" (torch's) or "adamw".
        momentum: momentum of SGD (no dampening, no Nesterov).
        b1: for AdamW: decay of the running mean of the gradient.
        b2: for AdamW: decay of the running mean of the squared gradient.
        weight_decay: SGD adds this share of a parameter to its gradient, before momentum; AdamW
            subtracts this share, times the rate, from the parameter.
        weight_decay_mask: "all" decays every trained parameter, "kernels" only those with more
            than one axis.
        warmup_steps: the rate rises linearly over this many first steps.
        warmup_factor: the share of the rate at which the warm-up starts.
        schedule: of the rate after the warm-up: "step" falls at `decay_at`, "cosine" falls along
            half a cosine wave until the end of the run.
        decay_at: when the rate falls: values under 1 are shares of the run, others are epochs if
            `epochs` is set, else steps.
        decay_factor: what the rate is multiplied by at each of them.
        final_factor: for "cosine": the share of the rate that is left at the end.
        clip_norm: largest gradient norm, for student and distiller separately; 0 clips nothing.
        ema: decay of an exponential moving average of the student's parameters, which is then
            evaluated and saved; 0 keeps none.
        log_every: steps between two lines of metrics.
        log_gradients: steps between two comparisons of the gradients of detection and distillation
            (`gradients.py`), computed by a separate program; 0 never compares them.
        checkpoint_every: steps between two checkpoints; the last step always writes one.
        eval_every: steps between two evaluations; 0 evaluates only at the end.
        early_stop: the run ends, with its best checkpoint, after this many evaluations in a row
            without a better AP; 0: it runs to its last step.
        tensorboard_images: how many validation images (the first ones with an object) each
            evaluation draws into TensorBoard, with detections beside the ground truth.
        keep: checkpoints kept, apart from the best one.
        precision: "float32" or "bfloat16", the dtype that the networks compute in.
        parallel: "jit", one program over all devices, or "pmap", one per device: the same losses,
            but every device computes everything after the features for the whole batch.
        silence_steps: a warning names a term after it was silent for this many steps.
        silence_share: a weighted term under this share of the total loss counts as silent.
    """

    batch_size: int
    learning_rate: float
    accumulate: int = 1
    linear_rate_for: int = 0
    steps: int = 0
    epochs: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 1e-4
    weight_decay_mask: str = "all"
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    schedule: str = "step"
    decay_at: tuple[float, ...] = ()
    decay_factor: float = 0.1
    final_factor: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    log_every: int = 50
    log_gradients: int = 0
    checkpoint_every: int = 1000
    eval_every: int = 0
    early_stop: int = 0
    tensorboard_images: int = 0
    keep: int = 2
    precision: str = "float32"
    parallel: str = "jit"
    silence_steps: int = 200
    silence_share: float = 1e-3

    @property
    def rate(self) -> float:
        """The learning rate for this batch size."""
        if not self.linear_rate_for:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.linear_rate_for

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UserError: a value that cannot train.
        """
        _choice("train.optimizer", self.optimizer, ("sgd", "adamw"))
        _choice("train.schedule", self.schedule, ("step", "cosine"))
        _choice("train.weight_decay_mask", self.weight_decay_mask, ("all", "kernels"))
        _choice("train.precision", self.precision, ("float32", "bfloat16"))
        _choice("train.parallel", self.parallel, ("jit", "pmap"))
        if (self.steps > 0) == (self.epochs > 0):
            raise UserError(
                f"config.train: steps = {self.steps} and epochs = {self.epochs}; give one of the "
                "two and leave the other 0"
            )
        for name in ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"config.train.{name} = {getattr(self, name)}: must be 1 or more")
        for name in (
            "steps",
            "epochs",
            "warmup_steps",
            "warmup_factor",
            "decay_factor",
            "eval_every",
            "early_stop",
            "tensorboard_images",
            "log_gradients",
            "clip_norm",
            "weight_decay",
            "linear_rate_for",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"config.train.{name} = {getattr(self, name)}: must be 0 or more")
        if not all(at >= 0 for at in self.decay_at):
            raise UserError(f"config.train.decay_at = {self.decay_at}: each must be 0 or more")
        for name in ("momentum", "b1", "b2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"config.train.{name} = {getattr(self, name)}: must be at least 0 and under 1"
                )
        if not 0 <= self.final_factor <= 1:
            raise UserError(
                f"config.train.final_factor = {self.final_factor}: a share of the rate, 0 to 1"
            )
        if self.early_stop and not self.eval_every:
            raise UserError(
                f"config.train.early_stop = {self.early_stop} counts evaluations, and "
                "config.train.eval_every = 0 has one at the end only; set it as well"
            )
        if self.log_gradients and self.parallel == "pmap":
            raise UserError("config.train.log_gradients needs config.train.parallel = 'jit'")
        if not self.learning_rate > 0:
            raise UserError(
                f"config.train.learning_rate = {self.learning_rate}: nothing would be learned; "
                "it must be above 0"
            )


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How an evaluation runs.

    Attributes:
        batch_size: images per step; rounded up to a multiple of the number of devices.
        max_images: how many images are scored, from the first on; 0 scores all.
        evaluator: "faster" (faster-coco-eval) or "pycocotools", which takes several times as long
            for the same numbers.
        max_detections: how many detections count per class and image, best first; COCO's number
            is 100. A larger number raises the detector's own limits too.
    """

    batch_size: int = 16
    max_images: int = 0
    evaluator: str = "faster"
    max_detections: int = COCO_MAX

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UserError: a value that cannot evaluate.
        """
        if self.batch_size < 1:
            raise UserError(f"config.eval.batch_size = {self.batch_size}: must be 1 or more")
        if self.max_images < 0:
            raise UserError(f"config.eval.max_images = {self.max_images}: 0 scores all")
        if self.max_detections <= 10:
            raise UserError(
                f"config.eval.max_detections = {self.max_detections}: must be more than 10, which "
                "COCO's numbers count as well"
            )
        _choice("eval.evaluator", self.evaluator, tuple(EVALUATORS))

    @property
    def least_limit(self) -> int:
        """The least value that the detector's own limits need; 0: they stay unchanged."""
        return self.max_detections if self.max_detections > COCO_MAX else 0


def train_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Reads `config.train`.

    Raises:
        UserError: an unknown or a missing key, or a value that cannot train.
    """
    return read(TrainSettings, "train", values)


def eval_settings(values: Mapping[str, Any]) -> EvalSettings:
    """Reads `config.eval`.

    Raises:
        UserError: an unknown key, or a value that cannot evaluate.
    """
    return read(EvalSettings, "eval", values)


def read(kind: type, where: str, values: Mapping[str, Any]) -> Any:
    """Fills one settings dataclass from a plain dict; lists become tuples.

    Raises:
        UserError: a key is unknown, renamed, missing or of another type; the message names it.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            refuse_old_key(f"{where}.{key}")
            raise UserError(f"config.{where}.{key}: no such key; there are {', '.join(fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UserError(f"config.{where}.{name} is missing")
    hints = typing.get_type_hints(kind)
    return kind(
        **{key: typed(f"config.{where}.{key}", value, hints[key]) for key, value in values.items()}
    )


def set_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are set, at every depth; in a recipe, unset keys are None."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = set_keys(value) or None
        if value is not None:
            kept[key] = value
    return kept


def _choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"config.{where} = {value!r}: one of {', '.join(choices)}")
