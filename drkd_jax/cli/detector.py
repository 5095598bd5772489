"""Loads a trained detector with all it needs to predict, from its work folder or a file."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from drkd_jax.cli.arguments import positive, two_numbers
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources.records import Category
from drkd_jax.errors import UserError
from drkd_jax.models.folding import fold
from drkd_jax.models.pixels import Pixels
from drkd_jax.step.settings import EvalSettings, eval_settings
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import Arrays
from drkd_jax.training.evaluate import Predict, predictor
from drkd_jax.weights.fetch.by_name import is_name
from drkd_jax.weights.loaded import Weights
from drkd_jax.weights.opening import is_work_folder, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a trained detector, for `load_named`."""
    add_place(parser)
    parser.add_argument(
        "--batch-size",
        type=positive,
        help="images per step; the run's own, 1 of a file, by default",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for the place of a trained detector, for `read_named`."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", help="work folder of a training run")
    place.add_argument(
        "--weights",
        help="a file of ours, of torchvision or of mmdetection, or its name (docs/weights.md)",
    )
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument(
        "--size", type=two_numbers, metavar="SxL", help="--weights: 800x1333 by default"
    )


@dataclasses.dataclass(frozen=True)
class Known:
    """What belongs to a trained detector besides its network."""

    config: dict[str, Any]
    origin: str  # one line: where the weights came from
    step: int
    categories: tuple[Category, ...]  # () where a file does not name them
    num_classes: int
    pipeline: PipelineConfig
    eval: EvalSettings

    @property
    def classes(self) -> tuple[Category, ...]:
        """Its categories, numbered from 1 where a file does not name them."""
        numbers = range(1, self.num_classes + 1)
        return self.categories or tuple(Category(k, f"class {k}") for k in numbers)


@dataclasses.dataclass(frozen=True)
class Read(Known):
    """A trained detector after reading, before it is compiled or put on devices."""

    detector: Any
    pixels: Pixels


@dataclasses.dataclass(frozen=True)
class Trained(Known):
    """A detector that is ready to run on this machine's devices."""

    mesh: Mesh
    predict: Predict
    arrays: tuple[Arrays, ...]


def where(arguments: argparse.Namespace) -> tuple[str, bool]:
    """The place given by the arguments, and whether it is a file of weights.

    A work folder given by --weights, or a file by --workdir, is recognised too.
    """
    place = arguments.workdir or arguments.weights
    if is_name(place) or Path(place).exists():
        return place, not is_work_folder(place)
    return place, arguments.weights is not None


def load_named(arguments: argparse.Namespace, least_limit: int | None = None) -> Trained:
    """Loads what the arguments of `add_arguments` name.

    Args:
        arguments: the parsed arguments.
        least_limit: detections per image that the detector's own limits must allow; None: as in
            its evaluation.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    read = read_named(arguments)
    return ready(read, read.eval.least_limit if least_limit is None else least_limit)


def read_named(arguments: argparse.Namespace, dtype: Any = None) -> Read:
    """Reads what the arguments of `add_place` or `add_arguments` name; for ``dtype`` see `read`.

    Raises:
        UserError: there is no checkpoint, the file cannot be used, or --size is given for a run.
    """
    found = open_named(arguments)
    if found.config and arguments.size:
        raise UserError(size_of_a_run(found.name))
    return read(found, arguments.size, getattr(arguments, "batch_size", None), dtype)


def size_of_a_run(place: str) -> str:
    """The message why a work folder accepts no --size."""
    return (
        f"--size belongs to files of weights; {place} is a work folder, whose config says the size "
        "of images: leave it out, or export the run and name the file"
    )


def open_named(arguments: argparse.Namespace) -> Weights:
    """Opens what the arguments of `add_place` or `add_arguments` name.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    place, is_file = where(arguments)
    if is_file and is_work_folder(place):
        raise UserError(f"{place}: cannot be read (no such file or folder)")
    return load(place, which=arguments.which)


def read(
    found: Weights,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
) -> Read:
    """A detector from a work folder or a file; the batch norms of a file's are folded.

    Args:
        found: from `weights.load`.
        size: for a file: pixels of the shorter side after resizing, and at most of the longer one;
            None: as the file says, or 800 and 1333.
        batch_size: images per step; None: as in the run's evaluation, and 1 for a file.
        dtype: dtype of the computation; None: that of the run, float32 for a file.

    Raises:
        UserError: it has no supported detector, or does not fit its own config.
    """
    found.check_detector()
    settings = EvalSettings(batch_size=1)
    if found.config:
        settings = eval_settings(found.config.get("eval") or {})
    if batch_size is not None:
        settings = dataclasses.replace(settings, batch_size=batch_size)
    detector, pixels = found.detector(dtype), found.pixels
    return Read(
        detector=detector if found.config else fold(detector),
        pixels=pixels if dtype is None else dataclasses.replace(pixels, dtype=jnp.dtype(dtype)),
        config=found.as_config(size),
        origin=found.origin,
        step=found.step,
        categories=found.categories,
        num_classes=found.about.num_classes,
        pipeline=found.pipeline(settings.batch_size, size),
        eval=settings,
    )


def ready(read: Read, least_limit: int) -> Trained:
    """Puts a detector on this machine's devices; for ``least_limit`` see `load_named`."""
    mesh = data_mesh()
    graph, state = nnx.split(read.detector)
    return Trained(
        **{field.name: getattr(read, field.name) for field in dataclasses.fields(Known)},
        mesh=mesh,
        predict=predictor(graph, read.pixels, mesh, least_limit),
        arrays=(put_everywhere(nnx.as_pure(state), mesh),),
    )
