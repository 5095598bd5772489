"""Checkpoints of a run: the only file that knows orbax.

A work folder holds `checkpoints/STEP` (the last few: everything a run needs to go on) and
`best/STEP` (the student with the highest AP so far). Both keep the student apart from the rest,
so that whoever only wants a detector reads nothing else. A teacher is never saved.

| item | content |
|---|---|
| `student` | every array of the student, by flat name |
| `training` | distiller, optimiser and step (only in `checkpoints`) |
| `about` | JSON: config, classes, data position, seconds so far, numbers of the evaluation |
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.training.settings import as_tuples, train_settings
from drkd_jax.training.state import Arrays, TrainState, flatten, num_parameters, unflatten
from drkd_jax.training.writing import is_refused_write, reason, told

WHICH = {"last": "checkpoints", "best": "best"}


class Checkpoints:
    """The two folders of checkpoints of one work folder.

    Args:
        workdir: the run's folder.
        keep: how many of the last checkpoints stay.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, keep: int):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells every file it touches
        with told(workdir):
            if jax.process_index() == 0:
                for name in WHICH.values():
                    _remove_unfinished(workdir / name)
            self._last = _manager(workdir / WHICH["last"], keep)
            self._best = _manager(workdir / WHICH["best"], 1)

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._last.latest_step()

    def about(self) -> dict[str, Any]:
        """The JSON part of the newest checkpoint."""
        step = self.latest_step()
        return self._last.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
            "about"
        ]

    def save(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes the state of this moment.

        Args:
            state: of a finished step, finite.
            about: JSON values: `config`, `categories`, `data`, ...

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        training = {
            "distiller": flatten((_of(state.params, "distiller"), _of(state.rest, "distiller"))),
            "optimiser": flatten(state.opt_state),
            "step": state.step,
        }
        items = {
            "student": ocp.args.StandardSave(_student(state)),
            "training": ocp.args.StandardSave(_without_empty(training)),
            "about": ocp.args.JsonSave(dict(about)),
        }
        self._write(self._last, int(state.step), items)

    def save_best(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes the student as the best so far; `about` also holds its `numbers`."""
        step = int(state.step)
        if step in self._best.all_steps():
            return
        items = {
            "student": ocp.args.StandardSave(_student(state)),
            "about": ocp.args.JsonSave(dict(about)),
        }
        self._write(self._best, step, items)

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Step and COCO numbers of the best checkpoint."""
        step = self._best.latest_step()
        if step is None:
            return None
        restored = self._best.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        return step, restored["about"]["numbers"]

    def restore(self, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest checkpoint's state.

        Args:
            like: a state of the same structure, shapes and dtypes.
            sharding: where every array is put.

        Raises:
            UserError: the checkpoint holds other arrays than the config asks for.
        """
        pair = (_of(like.params, "distiller"), _of(like.rest, "distiller"))
        training = {
            "distiller": flatten(pair),
            "optimiser": flatten(like.opt_state),
            "step": like.step,
        }
        wanted = {"student": _student(like), "training": _without_empty(training)}
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), wanted
        )
        step = self.latest_step()
        folder = Path(self._last.directory) / str(step)
        for name, item in wanted.items():
            _check_fits(folder / name, flatten(item))
        restored = self._last.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
            ),
        )
        student, rest = restored["student"], restored["training"]
        params, others = dict(like.params), dict(like.rest)
        params["student"] = unflatten(student, like.params["student"])
        others["student"] = unflatten(student, like.rest["student"])
        if "distiller" in params:
            params["distiller"], others["distiller"] = unflatten(rest["distiller"], pair)
        optimiser = unflatten(rest.get("optimiser", {}), like.opt_state)
        return TrainState(rest["step"], params, others, optimiser)

    def close(self) -> None:
        """Waits until everything is on the disk."""
        for manager in (self._last, self._best):
            with contextlib.suppress(ValueError):  # a failed write was told when it failed
                manager.close()

    def _write(self, manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> None:
        try:
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            if jax.default_backend() == "cpu":
                # On a CPU host and device share memory: the next step would write into it.
                manager.wait_until_finished()
        except Exception as error:
            if not is_refused_write(error):
                raise
            folder = Path(manager.directory)
            _remove_unfinished(folder)
            raise UserError(
                f"{folder}: step {step} cannot be written ({reason(error)}); "
                "the checkpoints before it are whole"
            ) from error


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
            target = {name: np.empty(*leaf) for name, leaf in _stored(item).items()}
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


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        ),
    )


def _remove_unfinished(folder: Path) -> None:
    """What a killed or a failed write left: it has no use, and takes the room of the next one."""
    for path in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _stored(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of an item, by flat name."""
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = flatten(checkpointer.metadata(item).item_metadata.tree)
    return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}


def _check_fits(item: Path, wanted: Mapping[str, Any]) -> None:
    stored = {name: shape for name, (shape, _) in _stored(item).items()}
    asked = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    wrong = sorted(
        name for name in stored.keys() | asked.keys() if stored.get(name) != asked.get(name)
    )
    if wrong:
        raise UserError(
            f"{item}: does not fit this config; {len(wrong)} arrays differ, the first is "
            f"{wrong[0]}. Use another --workdir"
        )


def _student(state: TrainState) -> dict[str, Any]:
    # One flat dict of trained and other arrays; their names are disjoint.
    return flatten(state.params["student"]) | flatten(state.rest["student"])


def _of(parts: Mapping[str, Arrays], name: str) -> Arrays:
    return parts.get(name, {})


def _without_empty(items: dict[str, Any]) -> dict[str, Any]:
    return {
        name: item
        for name, item in items.items()
        if not isinstance(item, dict) or num_parameters(item)
    }
