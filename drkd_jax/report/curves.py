"""Loss and AP over the steps, as a PNG and as inline SVG, from the ``metrics.jsonl`` of each run.

A line of it is one JSON object with ``step`` and flat keys: ``cls_loss`` and the other losses of
the detector, ``distill/TERM`` (unweighted), ``share/TERM`` (part of the total loss, 0..1).

The SVG needs no script, takes its colours from the style sheet, and is readable on a phone. Lines
differ in their dashes as well as in their colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from drkd_jax.monitoring import metrics
from drkd_jax.report.markup import Html, join, tag

DPI = 120
_RUN_COLOURS = ("#444444", "#1d78dc", "#e8590c", "#2b8a3e", "#862e9c")
_TERM_COLOURS = {
    "pixel_relation": "#0b7285",
    "instance_relation": "#a61e4d",
    "instance_feature": "#5c940d",
}
_WIDTH, _HEIGHT = 360, 240  # of a drawing; about a phone's pixels, so letters keep their size
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 10, 34
_POINTS = 240  # most points of a line
_FEW = 12  # up to this many points are marked individually
DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 2", "1 2")


class Line(NamedTuple):
    """One curve; `colour` is an index into the palette of the style sheet."""

    name: str
    colour: int
    steps: np.ndarray
    values: np.ndarray


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run, by step.

    A run that was killed and restarted writes some steps twice: for each key the later line is
    used. Other lines than a run's are left out (`monitoring.metrics.read_metrics`).

    Args:
        path: ``metrics.jsonl``; a missing file gives no record.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for record in metrics.read_metrics(path):
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def series(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the sum of ``keys``, for the records that have all of them as finite numbers."""
    rows = [
        (record["step"], math.fsum(float(record[key]) for key in keys))
        for record in records
        if keys and all(isinstance(record.get(key), int | float) for key in keys)
    ]
    table = np.asarray(rows, np.float64).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]


def detection_losses(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the detector's own losses in a run, which plain and distilled runs share."""
    names = {key for record in records for key in record}
    return sorted(key for key in names if key.endswith("_loss") and "/" not in key)


def term_shares(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the distillation terms' shares in a run."""
    return sorted({key for record in records for key in record if key.startswith("share/")})


def curves(
    path: str | Path,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    levels: Mapping[str, float] | None = None,
) -> None:
    """Detection loss and validation AP of every run, and the shares of the distillation terms.

    The detection loss leaves the distillation terms out, so the runs can be compared.

    Args:
        path: PNG to write.
        runs: The results of ``read_metrics``, by name.
        levels: AP (0..1) of runs without records, drawn as a horizontal line.
    """
    distilled = {name: keys for name, records in runs.items() if (keys := term_shares(records))}
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
        axes[0].plot(steps, _running_mean(values), color=colour, lw=2, label=name)
        steps, values = series(records, ["AP"])
        axes[1].plot(steps, 100 * values, color=colour, lw=2, marker="o", ms=4, label=name)
        top = max(top, 100 * float(values.max(initial=0.0)))
    axes[0].set_title("Detection loss in training (thin: as logged, thick: running mean)")
    axes[0].set_ylabel("sum of the detector's own losses")
    axes[1].set_title("AP on the validation images")
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


def charts(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html | None:
    """Detection loss, AP and the shares of the distillation; None if no run has a log.

    Args:
        runs: The results of ``read_metrics``, by name.
    """
    losses, precisions, shares = [], [], []
    for i, (name, records) in enumerate(runs.items()):
        steps, values = series(records, detection_losses(records))
        losses.append(Line(name, i, steps, _running_mean(values)))
        steps, values = series(records, ["AP"])
        precisions.append(Line(name, i, steps, 100 * values))
        lines = []
        for j, key in enumerate(term_shares(records)):
            steps, values = series(records, [key])
            lines.append(Line(key.removeprefix("share/").replace("_", " "), j, steps, 100 * values))
        title = f"{name}: each term's share of the total loss, weighted [%]"
        shares.append(chart(title, "share", lines, named=True))
    title = "Detection loss in training: the detector's own losses, running mean"
    drawn = [
        chart(title, "loss", losses),
        chart("AP on the validation images [points]", "AP", precisions),
        *shares,
    ]
    if not any(drawn):
        return None
    key = legend([(name, i) for i, (name, records) in enumerate(runs.items()) if records])
    return join(key, tag("div", drawn, class_="charts"))


def chart(title: str, unit: str, lines: Sequence[Line], *, named: bool = False) -> Html | None:
    """Curves over the training steps, from 0 upwards; None if none has a point.

    Args:
        title: The title above the chart.
        unit: What the values are, for readers who cannot see the drawing.
        lines: The curves.
        named: Whether the chart itself has the names of its lines.
    """
    lines = [line for line in lines if len(line.steps)]
    if not lines:
        return None
    right = max(float(line.steps.max()) for line in lines) or 1.0
    top = max(float(line.values.max()) for line in lines)
    ticks = _ticks(top if top > 0 else 1.0)
    top = ticks[-1]
    plot_w, plot_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return round(_LEFT + plot_w * step / right, 1)

    def y(value: float) -> float:
        return round(_TOP + plot_h * (1 - max(value, 0.0) / top), 1)

    parts = []
    for tick in ticks:
        level = y(tick)
        parts.append(tag("path", d=f"M{_LEFT} {level}H{_WIDTH - _RIGHT}", class_="grid"))
        parts.append(tag("text", f"{tick:g}", x=_LEFT - 5, y=level + 4, class_="y"))
    for tick in [t for t in _ticks(right, 4) if t <= right]:
        # The last number would extend beyond the edge.
        kind = "x" if x(tick) < _WIDTH - 30 else "y"
        place = x(tick) + (0 if kind == "x" else _RIGHT)
        parts.append(tag("text", f"{tick:g}", x=place, y=_HEIGHT - _BOTTOM + 15, class_=kind))
    parts.append(tag("text", "training step", x=_LEFT + plot_w / 2, y=_HEIGHT - 4, class_="x"))
    for line in lines:
        points = list(zip(map(x, line.steps), map(y, line.values), strict=True))
        path = "M" + "L".join(f"{px} {py}" for px, py in _thinned(points))
        style = f"stroke:var(--c{line.colour % len(DASHES)})"
        dashes = DASHES[line.colour % len(DASHES)]
        name = tag("title", line.name)
        parts.append(
            tag("path", name, d=path, class_="line", style=style, stroke_dasharray=dashes or None)
        )
        if len(points) <= _FEW:
            fill = f"fill:var(--c{line.colour % len(DASHES)})"
            parts += [tag("circle", cx=px, cy=py, r=3, style=fill) for px, py in points]
    ends = ", ".join(f"{line.name} {line.values[-1]:.3g}" for line in lines)
    drawing = tag(
        "svg",
        parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}. At the end, {unit}: {ends}.",
    )
    names = legend([(line.name, line.colour) for line in lines]) if named else None
    return tag("figure", tag("figcaption", title), drawing, names)


def legend(names: Sequence[tuple[str, int]]) -> Html:
    """Names with a sample of their line.

    Args:
        names: Each with its index into the palette.
    """
    items = []
    for name, colour in names:
        piece = tag(
            "path",
            d="M1 6H31",
            class_="line",
            style=f"stroke:var(--c{colour % len(DASHES)})",
            stroke_dasharray=DASHES[colour % len(DASHES)] or None,
        )
        swatch = tag("svg", piece, viewBox="0 0 32 12", class_="swatch", aria_hidden="true")
        items.append(tag("li", swatch, name))
    return tag("ul", items, class_="legend")


def _ticks(top: float, number: int = 5) -> list[float]:
    """Round values from 0 to the first at or past `top`."""
    rough = top / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [float(f"{i * step:.10g}") for i in range(math.ceil(top / step - 1e-9) + 1)]


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The running mean over a tenth of the curve, narrower at both ends."""
    half = max(1, len(values) // 20)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    return [points[i] for i in kept]
