"""A trained detector with everything it needs to predict, from its work folder."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.records import Category
from drkd_jax.training.checkpoint import load_detector
from drkd_jax.training.evaluate import Predict, predictor
from drkd_jax.training.settings import EvalSettings, eval_settings, train_settings
from drkd_jax.training.setup import read_pipeline, read_pixels
from drkd_jax.training.sharding import data_mesh, put_everywhere
from drkd_jax.training.state import Arrays


@dataclasses.dataclass(frozen=True)
class Trained:
    """A detector ready to run on this machine's devices."""

    config: dict[str, Any]
    step: int
    categories: tuple[Category, ...]
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
    pixels = read_pixels(config, train_settings(config["train"]).precision)
    return Trained(
        config=config,
        step=step,
        categories=tuple(Category(int(number), name) for number, name in about["categories"]),
        pipeline=read_pipeline(config, settings.batch_size),
        eval=settings,
        mesh=mesh,
        predict=predictor(graph, pixels, mesh),
        arrays=(put_everywhere(nnx.as_pure(state), mesh),),
    )
