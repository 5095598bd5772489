"""Checkpoints of a run, written and read by orbax; other commands use `weights.load`.

A work folder contains `checkpoints/STEP` (the last few, with everything a run needs to continue)
and `best/STEP` (the student with the highest AP so far). Both store the student separately, so
that a reader who only wants the detector reads nothing else. The teacher is never saved.

| item | content |
|---|---|
| `student` | every array of the student, by flat name; its moving average, if there is one |
| `training` | distiller, optimiser, step and unaveraged parameters (only in `checkpoints`) |
| `about` | JSON: config, classes, data position, numbers of the evaluation, checksums, ... |
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.writing import (
    as_user_error,
    collect_unraisable,
    is_refused_write,
    make_folder,
    reason,
)
from drkd_jax.models.arrays import flatten, unflatten
from drkd_jax.renamed import read_about
from drkd_jax.step.state import Arrays, TrainState, num_parameters
from drkd_jax.weights.checksums import CHECKSUMS, check_unchanged, checksums
from drkd_jax.weights.ours import WHICH, stored
from drkd_jax.words import counted


class Checkpoints:
    """The two folders of checkpoints of one work folder.

    Args:
        workdir: the run's folder.
        keep: how many of the last checkpoints to keep.
        read_only: whether nothing is made or removed there, since a run may be writing. Without it
            the caller holds the folder's lock.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, keep: int, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs every file it touches
        with as_user_error(workdir):
            if jax.process_index() == 0 and not read_only:
                for name in WHICH.values():
                    _remove_unfinished(make_folder(workdir / name))
            self._last = _manager(workdir / WHICH["last"], keep, read_only)
            self._best = _manager(workdir / WHICH["best"], 1, read_only)
        self._under_way: dict[str, int] = {}  # steps that a thread may still be writing, by folder

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._last.latest_step()

    def about(self) -> dict[str, Any]:
        """The JSON part of the newest checkpoint; if there is none, of the best one; else empty.

        Raises:
            UserError: it is damaged.
        """
        for manager in (self._last, self._best):
            step = manager.latest_step()
            if step is not None:
                return _about(manager, step)
        return {}

    def save(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes a checkpoint of the state.

        Args:
            state: the finite state after a step.
            about: JSON values: `config`, `categories`, `data`, ...

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        self._write(self._last, int(state.step), _items(state), about)

    def save_best(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes the student as the best so far; `about` also holds its `numbers`."""
        self.wait()
        step = int(state.step)
        # The best checkpoint is the folder's latest, so a later one of a killed run is removed.
        for old in self._best.all_steps():
            if old >= step:
                self._best.delete(old)
        self._write(self._best, step, {"student": _student(state)}, about)

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Step and COCO numbers of the best checkpoint.

        Raises:
            UserError: it is damaged.
        """
        step = self._best.latest_step()
        return None if step is None else (step, _about(self._best, step)["numbers"])

    def restore(self, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Reads the newest checkpoint's state.

        Args:
            like: a state of the same structure, shapes and dtypes.
            sharding: the sharding of every array.

        Raises:
            UserError: the checkpoint holds other arrays than the config asks for, or is damaged.
        """
        wanted = _items(like)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), wanted
        )
        step = self.latest_step()
        assert step is not None
        folder = Path(self._last.directory) / str(step)
        items = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        with _whole(self._last, step):
            for name, item in wanted.items():
                _check_fits(folder / name, flatten(item))
            restored = self._last.restore(step, args=ocp.args.Composite(**items))
            said = _about(self._last, step)
            for name in items:
                check_unchanged(name, restored[name], said)
        student, training = restored["student"], restored["training"]
        params, others = dict(like.params), dict(like.model_state)
        own = training["trained"] if like.average else student
        average = unflatten(student, like.average) if like.average else like.average
        params["student"] = unflatten(own, like.params["student"])
        others["student"] = unflatten(student, like.model_state["student"])
        if "distiller" in params:
            # Some distillers have no arrays: PKD with equal widths and an unscaled teacher.
            pair = unflatten(training.get("distiller", {}), _distiller(like))
            params["distiller"], others["distiller"] = pair
        optimiser = unflatten(training.get("optimiser", {}), like.opt_state)
        return TrainState(training["step"], params, others, optimiser, average)

    def wait(self) -> None:
        """Waits until everything is on the disk.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        for manager in (self._last, self._best):
            step = self._under_way.pop(str(manager.directory), None)
            if step is not None:
                self._refused(manager, step, manager.wait_until_finished)

    def close(self) -> None:
        """Ends orbax's threads; call `wait` first to see errors of pending writes."""
        for manager in (self._last, self._best):
            with contextlib.suppress(ValueError):  # a failed write was reported when it failed
                manager.close()

    def _write(
        self,
        manager: ocp.CheckpointManager,
        step: int,
        items: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self.wait()  # so that a failed write is reported for its own step
        self._under_way[str(manager.directory)] = step
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        said = {**about, CHECKSUMS: checksums(items)}
        all_items = ocp.args.Composite(**arrays, about=ocp.args.JsonSave(said))
        self._refused(manager, step, lambda: manager.save(step, args=all_items, force=True))
        if jax.default_backend() == "cpu":
            # On a CPU host and device share memory, so the next step would overwrite it.
            self.wait()

    def _refused(self, manager: ocp.CheckpointManager, step: int, write: Callable[[], Any]) -> None:
        """Calls `write`; raises `UserError` if the system refuses."""
        with collect_unraisable() as said:
            try:
                write()
            except Exception as error:
                if not is_refused_write(error):
                    raise
                folder = Path(manager.directory)
                self._under_way.clear()
                _remove_unfinished(folder, quiet=1.0)
                said[:] = [each for each in said if not _echoes(each.exc_value)]
                raise UserError(
                    f"{folder}: step {step} cannot be written ({reason(error)}); "
                    "the checkpoints before it are whole"
                ) from error


def _about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    only = ocp.args.Composite(about=ocp.args.JsonRestore())
    with _whole(manager, step):
        return read_about(manager.restore(step, args=only)["about"])


@contextlib.contextmanager
def _whole(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turns any `Exception` raised by reading a damaged checkpoint into a `UserError`.

    A damaged checkpoint is not skipped silently: that would undo steps which the user saw finished.
    """
    words = ""
    with collect_unraisable() as said:
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):  # the latter: out of memory
            raise
        except Exception as error:
            cause = error.__cause__ or error  # orbax's own message is a page long
            words = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        if words:
            gc.collect()  # triggers the errors of the other readers' threads
            said.clear()
    if words:
        folder = Path(manager.directory)
        before = [other for other in manager.all_steps() if other < step]
        from_there = f"from step {max(before)}" if before else "without it"
        raise UserError(
            f"{folder / str(step)}: not a whole checkpoint ({words}). Copy it again; or move it "
            f"out of {folder.name}/, and the same command goes on {from_there}"
        )


def _manager(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    writing = {"max_to_keep": keep, "create": True, "cleanup_tmp_directories": True}
    options = ocp.CheckpointManagerOptions(**({"read_only": True} if read_only else writing))
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _remove_unfinished(folder: Path, quiet: float = 0.0) -> None:
    """Removes the remains of a killed or failed write: they are useless and take up disk space.

    After a failed write, threads may still be writing its other arrays and re-create their folders:
    it waits until nothing has reappeared for `quiet` seconds (at most ten times as long in all).
    """
    begun = seen = time.monotonic()
    while True:
        for path in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
            seen = time.monotonic()
        now = time.monotonic()
        if now - seen >= quiet or now - begun >= 10 * quiet:
            return
        time.sleep(quiet / 10)


def _echoes(error: BaseException | None) -> bool:
    """Whether an unraisable error of a thread is a consequence of a refused write.

    After the first error, the threads that write the other arrays find their event loop closed.
    """
    if isinstance(error, RuntimeError) and "Event loop is closed" in str(error):
        return True
    return isinstance(error, Exception) and is_refused_write(error)


def _check_fits(item: Path, wanted: Mapping[str, Any]) -> None:
    there = {name: shape for name, (shape, _) in stored(item).items()}
    asked = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    wrong = sorted(
        name for name in there.keys() | asked.keys() if there.get(name) != asked.get(name)
    )
    if wrong:
        raise UserError(
            f"{item}: does not fit this config; {counted(len(wrong), 'array', 'differ')}, the "
            f"first is {wrong[0]}. Use another --workdir"
        )


def _student(state: TrainState) -> dict[str, Any]:
    # One flat dict of trained and other arrays; their names are disjoint.
    params, model_state = state.student
    return flatten(params) | flatten(model_state)


def _distiller(state: TrainState) -> tuple[Arrays, Arrays]:
    return state.params.get("distiller", {}), state.model_state.get("distiller", {})


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """All arrays of a state by item; items without arrays are left out."""
    training = {
        "distiller": flatten(_distiller(state)),
        "optimiser": flatten(state.opt_state),
        "trained": flatten(state.params["student"]) if state.average else {},
    }
    kept = {name: part for name, part in training.items() if num_parameters(part)}
    return {"student": _student(state), "training": {**kept, "step": state.step}}
