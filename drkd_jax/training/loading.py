"""What a run wrote, for others: its student's arrays, alone, in a file, or as a detector."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from drkd_jax import distill, models
from drkd_jax.errors import UserError
from drkd_jax.training.settings import as_tuples, train_settings
from drkd_jax.training.state import flatten, split_module, unflatten
from drkd_jax.training.writing import reason, write_text
from drkd_jax.types import FeatureSpec
from drkd_jax.weights.opening import open_weights
from drkd_jax.weights.ours import About

# The folders of a work folder.
WHICH = {"last": "checkpoints", "best": "best"}


def load_arrays(workdir: str | Path, which: str = "best") -> tuple[dict[str, Any], dict, int]:
    """The student's arrays, by flat name, from a work folder.

    Args:
        workdir: of a training run.
        which: "best" (or, where nothing was evaluated, the last) or "last".

    Returns:
        (NumPy arrays by name, the JSON part, step).

    Raises:
        UserError: there is no checkpoint.
    """
    workdir = Path(workdir).absolute()
    logging.getLogger("absl").setLevel(logging.ERROR)
    if which not in WHICH:
        raise UserError(f"--which={which}: one of {', '.join(WHICH)}")
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; it should be the work folder of a run")
    for name in [which] if which == "last" else ["best", "last"]:
        folder = workdir / WHICH[name]
        if not folder.is_dir():
            continue
        manager = ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(read_only=True)
        )
        step = manager.latest_step()
        if step is None:
            continue
        item = folder / str(step) / "student"
        with ocp.StandardCheckpointer() as checkpointer:
            target = {name: np.empty(*leaf) for name, leaf in stored(item).items()}
            arrays = checkpointer.restore(item, target)
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        manager.close()
        return arrays, about["about"], step
    raise UserError(f"{workdir}: holds no checkpoint yet; train there first (train.py --workdir)")


def load_detector(
    workdir: str | Path, which: str = "best", dtype: Any = None
) -> tuple[Any, dict[str, Any], int]:
    """The detector that a run trained, built by the checkpoint's own config.

    Args:
        workdir: of a training run.
        which: "best" or "last".
        dtype: what it computes in; None takes the precision of its training.

    Returns:
        (detector, {"config": ..., "categories": [[id, name], ...], ...}, step).

    Raises:
        UserError: no checkpoint, or its arrays are not those of its config.
    """
    arrays, about, step = load_arrays(workdir, which)
    about["config"] = as_tuples(about["config"])
    dtype = dtype or train_settings(about["config"]["train"]).precision
    student = about["config"]["student"]
    settings = {key: value for key, value in student.items() if key != "init"}
    detector = models.abstract_detector(settings, len(about["categories"]), dtype=dtype)
    return fill(detector, arrays, str(workdir)), about, step


def load_distiller(
    workdir: str | Path,
    step: int,
    config: Mapping[str, Any],
    specs: tuple[FeatureSpec, FeatureSpec],
) -> distill.Distiller | None:
    """The distiller of a run at one of its steps; of the best step only where it was kept as well.

    Args:
        workdir: of a distilled run.
        step: whose checkpoint is read.
        config: of the run.
        specs: the pyramids of its student and its teacher.

    Returns:
        The distiller, or None where the work folder holds no such checkpoint, or one without a
        distiller.

    Raises:
        UserError: its arrays are not those of the config.
    """
    item = Path(workdir).absolute() / WHICH["last"] / str(step) / "training"
    if config.get("distill") is None or not item.is_dir():
        return None
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), dict(tree)["distiller"])
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    only = ocp.args.PyTreeRestore(
        {"distiller": wanted}, restore_args={"distiller": as_numpy}, partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(item, args=only)
    settings = distill.distill_config(config["distill"])
    made = nnx.eval_shape(lambda: distill.Distiller(settings, *specs, rngs=nnx.Rngs(0)))
    parts = split_module(made, made.is_trained)
    pair = parts.params, parts.rest
    arrays = {name: jax.numpy.asarray(leaf) for name, leaf in found["distiller"].items()}
    there = {name: leaf.shape for name, leaf in arrays.items()}
    if there != {name: leaf.shape for name, leaf in flatten(pair).items()}:
        raise UserError(f"{item}: the distiller's arrays are not those of its config")
    return nnx.merge(parts.graph, *unflatten(arrays, pair))


def fill(module: Any, arrays: Mapping[str, Any], where: str) -> Any:
    """Puts arrays, by flat name, into a module of the same names and shapes.

    Raises:
        UserError: names or shapes that differ, with the first of them.
    """
    graph, state = nnx.split(module)
    pure = nnx.as_pure(state)
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(pure).items()}
    found = {name: tuple(leaf.shape) for name, leaf in arrays.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{where}: {name} is {found.get(name, 'missing')} in the checkpoint and "
                f"{wanted.get(name, 'not there')} in the model"
            )
    return nnx.merge(graph, unflatten({k: jax.numpy.asarray(v) for k, v in arrays.items()}, pure))


def stored(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of one item of a checkpoint, by flat name.

    Args:
        item: its folder, as `checkpoints/8000/student`.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = flatten(checkpointer.metadata(item).item_metadata.tree)
    return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}


def student_arrays(source: str | Path, which: str = "best") -> tuple[dict[str, Any], About]:
    """The student alone: its arrays by flat name, and what is needed to build it again.

    Args:
        source: a work folder, or a file of weights.
        which: "best" or "last" checkpoint of a work folder.

    Raises:
        UserError: there is no checkpoint, or the file cannot be used.
    """
    if not Path(source).is_dir():
        weights = open_weights(source)
        return weights.arrays, weights.about
    arrays, about, step = load_arrays(source, which)
    config = about["config"]
    origin = {"workdir": Path(source).name, "which": which, "step": step}
    if about.get("numbers"):
        origin["numbers"] = about["numbers"]
    categories = tuple(
        (number if isinstance(number, str) else int(number), str(name))
        for number, name in about["categories"]
    )
    return {name: np.asarray(array) for name, array in arrays.items()}, About(
        part="detector",
        settings={key: value for key, value in config["student"].items() if key != "init"},
        num_classes=len(categories),
        categories=categories,
        source=origin,
        data={key: value for key, value in config["data"].items() if key != "train"},
    )


def write_orbax(folder: Path, arrays: Mapping[str, Any], about: About) -> None:
    """Writes an orbax folder `student`, by flat name, and `about.json` beside it.

    Raises:
        UserError: something lies there already, or it cannot be written.
    """
    folder = folder.absolute()
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "student", dict(arrays))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from error
    text = json.dumps(dataclasses.asdict(about), indent=2, sort_keys=True)
    write_text(folder / "about.json", text + "\n")
