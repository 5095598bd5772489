"""Models written by this program: the arrays by our names, and the settings to rebuild the model.

These are a safetensors file, whose metadata holds one JSON text under "drkd_jax" with the keys of
`About`, and checksums beside it; the folder of `export --to=orbax`; or the work folder of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.models.arrays import flatten
from drkd_jax.models.filling import as_tuples
from drkd_jax.paths import link_target
from drkd_jax.renamed import read_about
from drkd_jax.weights.checksums import CHECKSUMS, check_file, check_unchanged, with_checksums

KEY = "drkd_jax"
PARTS = ("detector", "pyramid", "backbone")
# The folders of a work folder.
WHICH = {"last": "checkpoints", "best": "best"}
_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
# What readers raise for corrupted values; AttributeError: a number type that NumPy lacks, or no
# arrays at all.
DAMAGED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# The types of the fields of `About`, if present.
_KINDS = {"settings": dict, "num_classes": int, "source": dict, "data": dict}
#: The file beside the arrays in an exported folder.
ABOUT_FILE = "about.json"


@dataclasses.dataclass(frozen=True)
class About:
    """The description that a file of ours has of its arrays.

    Attributes:
        part: "detector", "pyramid" (backbone and FPN) or "backbone".
        settings: settings of the model, as in a config; a backbone's under "backbone".
        num_classes: number of classes of the data; 0 without a head.
        categories: [id, name] of each class; [] if unknown.
        source: plain values: the file and its SHA-256, or the work folder and its step.
        data: sizes of images, mean and std of the training, if known.
    """

    part: str
    settings: Mapping[str, Any]
    num_classes: int = 0
    categories: tuple[tuple[int | str, str], ...] = ()
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_ours(path: Path, arrays: Mapping[str, np.ndarray], about: About) -> None:
    """Writes a file of ours; an existing one is replaced atomically.

    Raises:
        UserError: it cannot be written.
    """
    write_safetensors(path, arrays, {KEY: json.dumps(dataclasses.asdict(about), sort_keys=True)})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file with checksums; an existing one is replaced atomically.

    A link stays, and what it leads to is replaced.

    Raises:
        UserError: it cannot be written.
    """
    part = None
    whole = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    try:
        target = link_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        save_file(whole, part, with_checksums(whole, metadata))
        with part.open("rb") as file:
            os.fsync(file.fileno())  # before it is renamed
        part.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            if part:
                part.unlink()
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be written ({reason})") from error


def is_ours(path: Path) -> bool:
    """Whether a safetensors file is one of ours; False for any other file."""
    try:
        with safe_open(path, framework="numpy") as stream:
            return KEY in (stream.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_ours(path: Path) -> tuple[dict[str, np.ndarray], About]:
    """The arrays of a file of ours and their description; half precision becomes single.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = stream.metadata()
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        check_file(arrays, metadata)
        about = about_from(json.loads(metadata[KEY]))
    except (SafetensorError, OSError, *DAMAGED) as error:
        raise UserError(
            f"{path}: not a whole file of ours ({error}); copy or export it again"
        ) from error
    return {name: _single(array) for name, array in arrays.items()}, about


def about_from(said: Mapping[str, Any]) -> About:
    """An `About` from JSON values.

    Raises:
        LookupError, TypeError, ValueError: the values are not those of an `About`.
    """
    for key, kind in _KINDS.items():
        if not isinstance(said.get(key, kind()), kind):
            raise TypeError(f"its {key} is a {type(said[key]).__name__}")
    if not isinstance(said["settings"].get("backbone") or {}, dict):
        raise TypeError("its settings hold no backbone")
    if said["part"] not in PARTS:
        raise ValueError(f"a {said['part']!r}; known: {', '.join(PARTS)}")
    categories = (
        (n if isinstance(n, str) else int(n), str(name)) for n, name in said["categories"]
    )
    return About(**{**said, "categories": tuple(categories)})


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in _HALF else array


def read_run(
    folder: Path, which: str = "best"
) -> tuple[dict[str, np.ndarray], About, dict[str, Any]]:
    """The student of a work folder.

    Args:
        folder: work folder of a training run.
        which: see `read_checkpoint`.

    Returns:
        (arrays by flat name, their description, config of the run).

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    arrays, about, step = read_checkpoint(folder, which)
    config = as_tuples(about["config"])
    source = {"workdir": folder.name, "which": which, "step": step}
    if about.get("numbers"):
        source["numbers"] = about["numbers"]
    categories = about["categories"]
    of = {
        "part": "detector",
        "settings": {key: value for key, value in config["student"].items() if key != "init"},
        "num_classes": len(categories),
        "categories": categories,
        "source": source,
        "data": {key: value for key, value in config["data"].items() if key != "train"},
    }
    return {name: np.asarray(array) for name, array in arrays.items()}, about_from(of), config


def read_export(folder: Path) -> tuple[dict[str, np.ndarray], About]:
    """The content of an exported folder: arrays by flat name, and their description.

    Raises:
        UserError: it is damaged.
    """
    try:
        said = dict(json.loads((folder / ABOUT_FILE).read_text()))
        arrays = _restore(folder.absolute() / "student")
        check_unchanged("student", arrays, said)
        said.pop(CHECKSUMS, None)  # folders of older versions have none
        about = about_from(said)
    except (OSError, *DAMAGED) as error:
        raise UserError(
            f"{folder}: not a whole export of ours ({str(error)[:200]}); copy or export it again"
        ) from error
    return arrays, about


def _restore(item: Path) -> dict[str, np.ndarray]:
    target = {name: np.empty(*leaf) for name, leaf in stored(item).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(item, target)


def read_checkpoint(workdir: str | Path, which: str = "best") -> tuple[dict[str, Any], dict, int]:
    """The student's arrays, by flat name, from a work folder.

    Args:
        workdir: work folder of a training run.
        which: "best" (or, if nothing was evaluated, the last) or "last".

    Returns:
        (NumPy arrays by name, the item `about`, step).

    Raises:
        UserError: there is no checkpoint, or it is damaged.
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
        try:
            arrays = _restore(folder / str(step) / "student")
            only = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = read_about(manager.restore(step, args=only)["about"])
            check_unchanged("student", arrays, about)
        except (OSError, *DAMAGED) as error:
            raise UserError(
                f"{folder / str(step)}: not a whole checkpoint ({str(error)[:200]}); copy the work "
                "folder again, or try again where its run is going on"
            ) from error
        finally:
            manager.close()
        return arrays, about, step
    for above in (workdir.parent, workdir.parent.parent):
        if any((above / name).is_dir() and name in workdir.parts for name in WHICH.values()):
            raise UserError(f"{workdir}: a part of a work folder; name the folder itself, {above}")
    if not (workdir / "config.json").exists():  # a run's first file
        raise UserError(
            f"{workdir}: neither a work folder of a run (train.py --workdir) nor one of export "
            "--to=orbax; name such a folder, or a file of weights"
        )
    raise UserError(f"{workdir}: holds no checkpoint yet; train there first (train.py --workdir)")


def stored(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of one item of a checkpoint, by flat name.

    Args:
        item: its folder, such as `checkpoints/8000/student`.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = flatten(checkpointer.metadata(item).item_metadata.tree)
    return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}
