"""Checkouts of other people's repositories: which there are, and classes out of their files.

Nothing of theirs is imported: a file is parsed, the definitions that are asked for are taken out of
its syntax tree, and those alone are run, with names from us in the place of its imports. So neither
mmcv nor mmengine is needed. Needs no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN = "nizhenliang/Dual-Relation-Knowledge-Distillation"
_RAZOR = "mmrazor/models"
_CROSSKD = "mmdet/models"

# The first file tells the repository; docs/tests.md names the commits that were compared.
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
    """Repositories by the files that the folders hold.

    Args:
        folders: checkouts, in any order.

    Returns:
        The folder of each repository, by the repository's name, as in `FILES`.

    Raises:
        ValueError: one line: a folder of no known repository, of one without a file that is needed,
            or of one that another folder holds as well.
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
    """What stands in for the registries that their classes are entered in."""

    def register_module(self) -> Any:
        return lambda found: found


def take(path: Path, names: Sequence[str], space: dict[str, Any]) -> None:
    """Runs single definitions of a file.

    Args:
        path: a Python file.
        names: classes and functions at its top level, to be run in the file's order.
        space: names that they may use; the definitions are added.

    Raises:
        LookupError: one is not there.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    kinds = (ast.ClassDef, ast.FunctionDef)
    wanted: list[ast.stmt] = [n for n in tree.body if isinstance(n, kinds) and n.name in names]
    lacking = set(names) - {getattr(node, "name", "") for node in wanted}
    if lacking:
        raise LookupError(f"{path} does not define {', '.join(sorted(lacking))}")
    for registry in ("MODELS", "DISTILL_LOSSES", "TASK_UTILS"):
        space.setdefault(registry, _Registry())
    # Annotations stay text: what they name is not there.
    flags = annotations.compiler_flag
    exec(compile(ast.Module(wanted, []), str(path), "exec", flags, dont_inherit=True), space)
