"""Loss and AP over the steps, read from the ``metrics.jsonl`` that every run leaves.

A line is one JSON object with ``step`` and flat keys: ``cls_loss`` and the other losses of the
detector, ``distill/TERM`` (unweighted), ``share/TERM`` (part of the total loss, 0..1), .
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

DPI = 120
_RUN_COLOURS = ("#444444", "#1d78dc", "#e8590c", "#2b8a3e", "#862e9c")
_TERM_COLOURS = {
    "pixel_relation": "#0b7285",
    "instance_relation": "#a61e4d",
    "instance_feature": "#5c940d",
}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run, by step.

    A run that was killed and started again writes some steps twice: for each key the later line
    counts. A last line that was cut off is left out.

    Args:
        path: ``metrics.jsonl``; a missing file gives no record.
    """
    path = Path(path)
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            by_step.setdefault(int(record["step"]), {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def series(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the sum of ``keys``, of the records that have them all as finite numbers."""
    rows = [
        (record["step"], math.fsum(float(record[key]) for key in keys))
        for record in records
        if keys and all(isinstance(record.get(key), int | float) for key in keys)
    ]
    table = np.asarray(rows, np.float64).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]


def detection_losses(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the detector's own losses in a run: what a plain run and a distilled share."""
    names = {key for record in records for key in record}
    return sorted(key for key in names if key.endswith("_loss") and "/" not in key)


def curves(
    path: str | Path,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    levels: Mapping[str, float] | None = None,
) -> None:
    """Detection loss and validation AP of every run, and the shares of the distillation terms.

    The detection loss leaves the distillation terms out, so the runs can be compared.

    Args:
        path: PNG to write.
        runs: What ``read_metrics`` gave, by name.
        levels: AP (0..1) of runs without records, drawn as a level.
    """
    distilled = {
        name: sorted({k for r in records for k in r if k.startswith("share/")})
        for name, records in runs.items()
    }
    distilled = {name: keys for name, keys in distilled.items() if keys}
    figure = Figure(figsize=(5.6 * (3 if distilled else 2), 4.6), layout="constrained")
    axes = figure.subplots(1, 3 if distilled else 2)
    top = 0.0
    for i, (name, records) in enumerate(runs.items()):
        colour = _RUN_COLOURS[i % len(_RUN_COLOURS)]
        level = (levels or {}).get(name)
        if level is not None:
            axes[1].axhline(100 * level, color=colour, lw=2, ls="--", label=name)
            top = max(top, 100 * level)
        if not records:
            continue
        steps, values = series(records, detection_losses(records))
        axes[0].plot(steps, values, color=colour, alpha=0.25, lw=1)
        axes[0].plot(steps, _smooth(values), color=colour, lw=2, label=name)
        steps, values = series(records, ["AP"])
        axes[1].plot(steps, 100 * values, color=colour, lw=2, marker="o", ms=4, label=name)
        top = max(top, 100 * float(values.max(initial=0.0)))
    axes[0].set_title("Detection loss in training (thin: as logged, thick: running mean)")
    axes[0].set_ylabel("sum of the detector's own losses")
    axes[1].set_title("AP on the validation pictures")
    axes[1].set_ylabel("AP [%], mean over overlaps 0.50 to 0.95")
    axes[1].set_ylim(0, max(1.0, 1.1 * top))
    if distilled:
        for style, (name, keys) in zip(("-", "--", ":", "-."), distilled.items(), strict=False):
            for key in keys:
                steps, values = series(runs[name], [key])
                term = key.removeprefix("share/")
                label = term.replace("_", " ") + (f" ({name})" if len(distilled) > 1 else "")
                axes[2].plot(steps, 100 * values, style, color=_TERM_COLOURS.get(term), label=label)
        axes[2].set_title("What distillation is of the total loss")
        axes[2].set_ylabel("share of the total loss, weighted [%]")
        axes[2].set_ylim(bottom=0)
    for ax, place in zip(axes, ("upper right", "lower right", "best"), strict=False):
        ax.set_xlabel("training step")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(11)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, loc=place)
    figure.savefig(path, dpi=DPI)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a tenth of the curve, narrower at both ends."""
    half = max(1, len(values) // 20)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])
