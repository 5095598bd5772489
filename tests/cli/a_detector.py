"""A detector without training, for commands that only call one."""

from __future__ import annotations

from collections.abc import Sequence

from drkd_jax.cli.detector import Trained
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources.records import Category
from drkd_jax.step.settings import EvalSettings
from drkd_jax.step.sharding import data_mesh
from drkd_jax.training.evaluate import Predict


def detector(
    predict: Predict,
    categories: Sequence[Category],
    *,
    side: int,
    batch_size: int,
    num_threads: int = 0,
) -> Trained:
    """A detector that returns the results of ``predict``, on canvases of ``side`` pixels."""
    return Trained(
        config={},
        origin="made for a test",
        step=1,
        categories=tuple(categories),
        num_classes=len(categories),
        pipeline=PipelineConfig(
            batch_size=batch_size,
            canvases=((side, side),),
            shorter=side,
            longer=side,
            num_threads=num_threads,
        ),
        eval=EvalSettings(),
        mesh=data_mesh(),
        predict=predict,
        arrays=(),
    )
