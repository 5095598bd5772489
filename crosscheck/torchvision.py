"""`crosscheck --torchvision`: runs whole detectors and torchvision's own, and compares them.

Both start from the same padded tensor with the same weights; see
crosscheck/reference/torchvision.py. Both sides' gradients are computed in float64: by rounding
alone, float32 gradients differ from these by up to one thousandth (torchvision) and four (ours).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.compare import Row
from crosscheck.network import Answers, Network, load
from crosscheck.reference.seeded import Model
from crosscheck.stages import batch
from drkd_jax.errors import UserError

# Few classes: with many, scores lie so close that few images have 20 well-separated ones.
# `first` is the seed of a batch found by search; other versions of torch may search on from there.
_BATCH = ((256, 320), [(250, 320), (256, 290)])
FULL = (
    Model("faster_rcnn R50", "faster_rcnn", 8, [_BATCH], first=[23]),
    Model("retinanet R50", "retinanet", 8, [_BATCH], first=[7]),
)


def check(model: Model, answers: Answers, options: Mapping[str, Any] | None = None) -> list[Row]:
    """Compares every stage of a model, on every batch, with the other side's answers.

    Gradients are in float64, everything else in float32.

    Args:
        model: the model that was run.
        answers: the other side's tensors.
        options: compiler options.
    """
    network = Network(model, *load(model, answers), options)
    rows: list[Row] = []
    for i, (canvas, _) in enumerate(model.batches):
        one = batch(network, answers, i)
        where = f"{model.name} {canvas[0]}x{canvas[1]}"
        rows += [Row(where, *row) for row in (*one.inference(), *one.training())]
    return rows


def live(folder: Path, python: str, only: str) -> tuple[list[Row], str]:
    """Runs torchvision's side of the full-size networks in another interpreter, then ours.

    Args:
        folder: folder for the exchanged files.
        python: an interpreter with torch and torchvision.
        only: run only the networks with this text in their name.

    Returns:
        All compared tensors, and the versions of the other side.

    Raises:
        UserError: the other side fails, or `only` matches no network.
    """
    chosen = [model for model in FULL if only in model.name]
    if not chosen:
        raise UserError(f"--only {only}: no network has that in its name")
    request = json.dumps([dataclasses.asdict(model) for model in chosen], indent=1)
    (folder / "request.json").write_text(request)
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "crosscheck.reference.torchvision", str(folder)]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--torch-python {python}: cannot be started ({error})") from error
    if run.returncode:
        lines = run.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"torchvision's side in {python} stopped: {lines[-1]}")
    rows: list[Row] = []
    for model in chosen:
        with np.load(folder / f"{model.name}.npz") as answers:
            rows += check(model, dict(answers))
    return rows, run.stdout.strip()


def table(rows: Sequence[Row], everything: bool) -> list[str]:
    """One line per tensor; without `everything`, the worst of each stage of each batch.

    For wrong counts, scores and pixels, the column of the relative error shows the value that the
    tolerance applies to.
    """
    shown: dict[tuple[str, str], Row] = {}
    for row in rows:
        stage = row.tensor if everything else row.tensor.replace(":", ".", 1).split(".")[0]
        unit = row.tensor.rpartition(", ")[2] if row.tensor.startswith("detections") else ""
        key = row.component, row.tensor if everything or not row.passes else f"{stage}{unit}"
        if key not in shown or not row.relative <= shown[key].relative:
            shown[key] = row
    wide = max(len(row.component) for row in rows)
    long = max(len(row.tensor) for row in shown.values())
    return [f"{'network':{wide}}  {'tensor':{long}}  absolute  relative  tolerance  verdict"] + [
        f"{row.component:{wide}}  {row.tensor:{long}}  {row.absolute:8.1e}  {row.relative:8.1e}  "
        f"{row.tolerance:9.0e}  {'ok' if row.passes else 'FAILS'}"
        for row in shown.values()
    ]
