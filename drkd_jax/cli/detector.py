"""A trained detector with everything it needs to predict, from its work folder or a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.records import Category
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import conventions
from drkd_jax.models.folding import fold
from drkd_jax.training.evaluate import Predict, predictor
from drkd_jax.training.loading import fill, load_detector
from drkd_jax.training.pixels import read_pixels
from drkd_jax.training.settings import EvalSettings, as_tuples, eval_settings, train_settings
from drkd_jax.training.setup import read_pipeline
from drkd_jax.training.sharding import data_mesh, put_everywhere
from drkd_jax.training.state import Arrays
from drkd_jax.weights.opening import open_weights


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


def load(workdir: str, which: str) -> Trained:
    """Loads "best" or "last" of a work folder.

    Raises:
        UserError: there is no checkpoint, or it does not fit its own config.
    """
    detector, about, step = load_detector(workdir, which)
    config, mesh = about["config"], data_mesh()
    graph, state = nnx.split(detector)
    settings = eval_settings(config.get("eval") or {})
    pixels = read_pixels(config["data"], train_settings(config["train"]).precision)
    return Trained(
        config=config,
        step=step,
        categories=tuple(Category(int(number), name) for number, name in about["categories"]),
        num_classes=len(about["categories"]),
        pipeline=read_pipeline(config, settings.batch_size),
        eval=settings,
        mesh=mesh,
        predict=predictor(graph, pixels, mesh),
        arrays=(put_everywhere(nnx.as_pure(state), mesh),),
    )


def load_weights(path: str, size: tuple[int, int] | None, batch_size: int) -> Trained:
    """Loads a file of ours, of torchvision or of mmdetection, its batch norms folded.

    Args:
        path: of the file.
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
    config: dict[str, Any] = as_tuples({"seed": 0, "data": {"max_boxes": 100} | data})
    mesh = data_mesh()
    detector = fold(fill(weights.model(), weights.arrays, path))
    graph, state = nnx.split(detector)
    return Trained(
        config=config,
        step=int(about.source.get("step", 0)),
        categories=tuple(Category(number, name) for number, name in about.categories),
        num_classes=about.num_classes,
        pipeline=read_pipeline(config, batch_size),
        eval=EvalSettings(batch_size=batch_size),
        mesh=mesh,
        predict=predictor(graph, read_pixels(config["data"], "float32"), mesh),
        arrays=(put_everywhere(nnx.as_pure(state), mesh),),
    )
