"""A trained detector with everything it needs to predict, from its work folder or a file."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from drkd_jax.cli.arguments import positive
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.records import Category
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import conventions
from drkd_jax.models.folding import fold
from drkd_jax.training.evaluate import Predict, predictor
from drkd_jax.training.loading import fill, load_detector
from drkd_jax.training.pixels import Pixels, read_pixels
from drkd_jax.training.settings import EvalSettings, as_tuples, eval_settings, train_settings
from drkd_jax.training.setup import read_pipeline
from drkd_jax.training.sharding import data_mesh, put_everywhere
from drkd_jax.training.state import Arrays
from drkd_jax.weights.by_name import is_name
from drkd_jax.weights.opening import open_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a trained detector; `load_named` takes them."""
    add_place(parser)
    parser.add_argument("--batch-size", type=positive, default=1, help="--weights: pictures a step")


def add_place(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where a trained detector lies; `read_named` takes them."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", help="work folder of a training run")
    place.add_argument(
        "--weights",
        help="a file of ours, of torchvision or of mmdetection, or its name (docs/weights.md)",
    )
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument(
        "--size", type=size_of, metavar="SxL", help="--weights: 800x1333 by default"
    )


def size_of(text: str) -> tuple[int, int]:
    """Two numbers from text like 800x1333."""
    shorter, longer = (positive(part) for part in text.split("x"))
    return shorter, longer


@dataclasses.dataclass(frozen=True)
class Read:
    """A trained detector as it was read, before anything is compiled or placed."""

    detector: Any
    pixels: Pixels
    config: dict[str, Any]
    step: int
    categories: tuple[Category, ...]  # () where a file does not name them
    num_classes: int
    pipeline: PipelineConfig
    eval: EvalSettings


@dataclasses.dataclass(frozen=True)
class Trained:
    """A detector ready to run on this machine's devices."""

    config: dict[str, Any]
    step: int
    categories: tuple[Category, ...]  # () where a file does not name them
    num_classes: int
    pipeline: PipelineConfig
    eval: EvalSettings
    mesh: Mesh
    predict: Predict
    arrays: tuple[Arrays, ...]


def where(arguments: argparse.Namespace) -> tuple[str, bool]:
    """The place that `add_arguments` named, and whether it is a file of weights.

    A work folder named by --weights, or a file by --workdir, is taken for what it is.
    """
    place = arguments.workdir or arguments.weights
    if is_name(place):
        return place, True
    if Path(place).exists():
        return place, not Path(place).is_dir()
    return place, arguments.weights is not None


def load_named(arguments: argparse.Namespace, least_limit: int | None = None) -> Trained:
    """Loads what the arguments of `add_arguments` name.

    Args:
        arguments: parsed.
        least_limit: detections a picture that the detector's own limits have to let through;
            None: what its evaluation asked for.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    read = read_named(arguments)
    return ready(read, read.eval.least_limit if least_limit is None else least_limit)


def read_named(arguments: argparse.Namespace) -> Read:
    """Reads what the arguments of `add_place` or `add_arguments` name.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    named, is_file = where(arguments)
    if is_file:
        return read_weights(named, arguments.size, getattr(arguments, "batch_size", 1))
    return read_run(named, arguments.which)


def ready(read: Read, least_limit: int) -> Trained:
    """A detector on this machine's devices; ``least_limit`` as of `load_named`."""
    mesh = data_mesh()
    graph, state = nnx.split(read.detector)
    return Trained(
        config=read.config,
        step=read.step,
        categories=read.categories,
        num_classes=read.num_classes,
        pipeline=read.pipeline,
        eval=read.eval,
        mesh=mesh,
        predict=predictor(graph, read.pixels, mesh, least_limit),
        arrays=(put_everywhere(nnx.as_pure(state), mesh),),
    )


def read_run(workdir: str, which: str) -> Read:
    """Reads "best" or "last" of a work folder.

    Raises:
        UserError: there is no checkpoint, or it does not fit its own config.
    """
    detector, about, step = load_detector(workdir, which)
    config = about["config"]
    settings = eval_settings(config.get("eval") or {})
    return Read(
        detector=detector,
        pixels=read_pixels(config["data"], train_settings(config["train"]).precision),
        config=config,
        step=step,
        categories=tuple(Category(number, name) for number, name in about["categories"]),
        num_classes=len(about["categories"]),
        pipeline=read_pipeline(config, settings.batch_size),
        eval=settings,
    )


def read_weights(path: str, size: tuple[int, int] | None, batch_size: int = 1) -> Read:
    """Reads a file of ours, of torchvision or of mmdetection, its batch norms folded.

    Args:
        path: of the file, or its name.
        size: pixels of the shorter side after resizing and of the longer one at most; None: what
            the file says, or 800 and 1333.
        batch_size: pictures a step.

    Raises:
        UserError: the file cannot be used, or holds no detector of ours.
    """
    weights = open_weights(path)
    about = weights.about
    if about.part != "detector":
        raise UserError(f"{path}: it has no detection head of ours, so it detects nothing")
    library = conventions(about.settings.get("convention", "mmdet"))
    data = dict(about.data) if "mean" in about.data else dataclasses.asdict(library.pixels)
    data.pop("val", None)
    if size or "canvases" not in data:
        shorter, longer = size or (data.get("shorter", 800), data.get("longer", 1333))
        sides = tuple(-(-side // 32) * 32 for side in (shorter, longer))
        data |= {"canvases": (sides, sides[::-1]), "shorter": shorter, "longer": longer}
        if data.get("resize") == "stretch":
            if size:  # the shorter side and the longer one at most: shapes are kept
                data["resize"] = "mmdet"
            else:
                data["canvases"] = (sides,)
    config: dict[str, Any] = as_tuples({"seed": 0, "data": {"max_boxes": 100} | data})
    return Read(
        detector=fold(fill(weights.model(), weights.arrays, path)),
        pixels=read_pixels(config["data"], "float32"),
        config=config,
        step=int(about.source.get("step", 0)),
        categories=tuple(Category(number, name) for number, name in about.categories),
        num_classes=about.num_classes,
        pipeline=read_pipeline(config, batch_size),
        eval=EvalSettings(batch_size=batch_size),
    )
