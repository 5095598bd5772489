"""Reads the distiller of a run from one of its checkpoints, without the rest of the run's state."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from drkd_jax import distill
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import collect_unraisable
from drkd_jax.models.arrays import flatten, unflatten
from drkd_jax.step.state import split_module
from drkd_jax.types import FeatureSpec
from drkd_jax.weights.checksums import check_unchanged
from drkd_jax.weights.ours import DAMAGED, WHICH


def load_distiller(
    workdir: str | Path,
    step: int,
    config: Mapping[str, Any],
    specs: tuple[FeatureSpec, FeatureSpec],
) -> distill.Distiller | None:
    """Loads the distiller of a run at one of its steps from `checkpoints`.

    Args:
        workdir: work folder of a distilled run.
        step: the step whose checkpoint is read.
        config: config of the run.
        specs: the pyramids of its student and its teacher.

    Returns:
        The distiller, or None if `checkpoints` has no such step (the best step is often not kept
        there), or one without a distiller.

    Raises:
        UserError: its arrays do not fit the config, or are damaged.
    """
    folder = Path(workdir).absolute() / WHICH["last"] / str(step)
    item = folder / "training"
    if config.get("distill") is None or not item.is_dir():
        return None
    words = ""
    with collect_unraisable() as said:
        try:
            kept = _read(item)
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                check_unchanged("training", {"distiller": kept}, reader.restore(folder / "about"))
        except (OSError, *DAMAGED) as error:
            words = str(error)[:200] or type(error).__name__
        if words:
            gc.collect()  # triggers the errors of the other readers' threads
            said.clear()
    if words:
        raise UserError(
            f"{folder}: not a whole checkpoint ({words}); copy the work folder again, or try again "
            "where its run is going on"
        )
    settings = distill.distill_config(config["distill"])
    made = nnx.eval_shape(lambda: distill.Distiller(settings, *specs, rngs=nnx.Rngs(0)))
    parts = split_module(made, made.is_trained)
    pair = parts.params, parts.model_state
    arrays = {name: jax.numpy.asarray(leaf) for name, leaf in kept.items()}
    there = {name: leaf.shape for name, leaf in arrays.items()}
    if there != {name: leaf.shape for name, leaf in flatten(pair).items()}:
        raise UserError(f"{item}: the distiller's arrays are not those of its config")
    return nnx.merge(parts.graph, *unflatten(arrays, pair))


def _read(item: Path) -> dict[str, np.ndarray]:
    """The distiller's arrays, by flat name; some distillers have none."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
    part = {name: leaf for name, leaf in dict(tree).items() if name == "distiller"}
    if not part:
        return {}
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), part)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    only = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(item, args=only)["distiller"]
