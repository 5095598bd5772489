"""Recognises checkouts of other repositories, and runs single definitions from their files.

Their modules are never imported: a file is parsed, and only the requested definitions are run, with
our names in place of its imports. So neither mmcv nor mmengine is needed, nor torch.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN = "nizhenliang/Dual-Relation-Knowledge-Distillation"
_RAZOR = "mmrazor/models"
_CROSSKD = "mmdet/models"

# The first file identifies the repository; docs/tests.md names the compared commits.
FILES: dict[str, tuple[str, ...]] = {
    OWN: (
        "mmdet/models/detectors/GloRe.py",
        "mmdet/models/detectors/two_stage.py",
    ),
    "open-mmlab/mmrazor": (
        f"{_RAZOR}/losses/pkd_loss.py",
        f"{_RAZOR}/losses/cwd.py",
        f"{_RAZOR}/losses/l2_loss.py",
        f"{_RAZOR}/losses/mgd_loss.py",
        f"{_RAZOR}/architectures/connectors/mgd_connector.py",
    ),
    "irfanICMLL/TorchDistiller": ("SemSeg-distill/utils/criterion.py",),
    "pppppM/mmdetection-distiller": ("mmdet/distillation/losses/cwd.py",),
    "yzd-v/MGD": ("det/mmdet/distillation/losses/mgd.py",),
    "yzd-v/FGD": ("mmdet/distillation/losses/fgd.py",),
    "jbwang1997/CrossKD": (
        f"{_CROSSKD}/detectors/crosskd_retinanet.py",
        f"{_CROSSKD}/losses/kd_loss.py",
        f"{_CROSSKD}/losses/pkd_loss.py",
        f"{_CROSSKD}/losses/iou_loss.py",
        f"{_CROSSKD}/losses/utils.py",
        f"{_CROSSKD}/task_modules/coders/base_bbox_coder.py",
        f"{_CROSSKD}/task_modules/coders/delta_xywh_bbox_coder.py",
        "mmdet/structures/bbox/bbox_overlaps.py",
    ),
}


def recognised(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Identifies repositories by the files in the folders.

    Args:
        folders: checkouts, in any order.

    Returns:
        The folder of each repository, by the repository's name, as in `FILES`.

    Raises:
        ValueError: a folder is no known repository, lacks a needed file, or is of the same
            repository as another folder. The message has one line.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        here = [name for name, files in FILES.items() if (folder / files[0]).is_file()]
        if not here:
            raise ValueError(
                f"{folder}: a checkout of none of the known repositories, {', '.join(FILES)} "
                "(docs/tests.md)"
            )
        for name in here:
            lacking = [file for file in FILES[name] if not (folder / file).is_file()]
            if lacking:
                raise ValueError(f"{folder}: {name} without {', '.join(lacking)}")
            if name in found:
                raise ValueError(f"{folder}: {name} is in {found[name]} already; name one of them")
            found[name] = folder
    return found


class _Registry:
    """Replaces the registries that their classes register in."""

    def register_module(self) -> Any:
        return lambda found: found


def take(path: Path, names: Sequence[str], space: dict[str, Any]) -> None:
    """Runs single definitions from a file.

    Args:
        path: a Python file.
        names: classes and functions at its top level; they run in the file's order.
        space: names that they may use; the definitions are added to it.

    Raises:
        LookupError: the file does not define one of them.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    kinds = (ast.ClassDef, ast.FunctionDef)
    wanted: list[ast.stmt] = [n for n in tree.body if isinstance(n, kinds) and n.name in names]
    lacking = set(names) - {getattr(node, "name", "") for node in wanted}
    if lacking:
        raise LookupError(f"{path} does not define {', '.join(sorted(lacking))}")
    for registry in ("MODELS", "DISTILL_LOSSES", "TASK_UTILS"):
        space.setdefault(registry, _Registry())
    # Annotations stay text, since the names in them are not defined.
    flags = annotations.compiler_flag
    exec(compile(ast.Module(wanted, []), str(path), "exec", flags, dont_inherit=True), space)
