"""What orbax wrote: the checkpoints of a work folder, and the folder of `export --to=orbax`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from drkd_jax.errors import UserError
from drkd_jax.models.arrays import flatten
from drkd_jax.models.filling import as_tuples
from drkd_jax.weights.ours import About, about_from

# The folders of a work folder.
WHICH = {"last": "checkpoints", "best": "best"}
#: Of an exported folder, beside the arrays.
ABOUT_FILE = "about.json"


def read_run(
    folder: Path, which: str = "best"
) -> tuple[dict[str, np.ndarray], About, dict[str, Any]]:
    """The student of a work folder.

    Args:
        folder: of a training run.
        which: as of `read_checkpoint`.

    Returns:
        (arrays by flat name, what is needed to build their model, config of the run).

    Raises:
        UserError: there is no checkpoint.
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
    """What was exported to a folder: arrays by flat name, and what it says of them.

    Raises:
        UserError: it is damaged.
    """
    try:
        about = about_from(json.loads((folder / ABOUT_FILE).read_text()))
        arrays = _restore(folder.absolute() / "student")
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not a whole export of ours ({error})") from error
    return arrays, about


def _restore(item: Path) -> dict[str, np.ndarray]:
    target = {name: np.empty(*leaf) for name, leaf in stored(item).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(item, target)


def read_checkpoint(workdir: str | Path, which: str = "best") -> tuple[dict[str, Any], dict, int]:
    """The student's arrays, by flat name, from a work folder.

    Args:
        workdir: of a training run.
        which: "best" (or, where nothing was evaluated, the last) or "last".

    Returns:
        (NumPy arrays by name, the part `about`, step).

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
        arrays = _restore(item)
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        manager.close()
        return arrays, about["about"], step
    raise UserError(f"{workdir}: holds no checkpoint yet; train there first (train.py --workdir)")


def stored(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of one item of a checkpoint, by flat name.

    Args:
        item: its folder, as `checkpoints/8000/student`.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = flatten(checkpointer.metadata(item).item_metadata.tree)
    return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}
