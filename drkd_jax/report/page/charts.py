"""Line charts as inline SVG: no script, colours from the style sheet, readable on a phone.

A line is told apart by its dashes as well as by its colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drkd_jax.report.curves import detection_losses, series
from drkd_jax.report.page.markup import Html, join, tag
from drkd_jax.report.page.runs import RunFiles

_WIDTH, _HEIGHT = 360, 240  # of a drawing; about the pixels of a phone, so letters keep their size
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 10, 34
_POINTS = 240  # of a line, at most
_FEW = 12  # points that are marked each
DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 2", "1 2")


class Line(NamedTuple):
    """One curve; `colour` is a position in the palette of the style sheet."""

    name: str
    colour: int
    steps: np.ndarray
    values: np.ndarray


def curves(runs: Sequence[RunFiles]) -> Html | None:
    """Detection loss, AP and the shares of the distillation; None where no run left a log."""
    drawn = [
        chart(
            "Detection loss in training: the detector's own losses, running mean",
            "loss",
            [
                Line(run.name, i, *_running_mean(*series(run.records, names)))
                for i, run in enumerate(runs)
                if (names := detection_losses(run.records))
            ],
        ),
        chart(
            "AP on the validation pictures [points]",
            "AP",
            [
                Line(run.name, i, steps, 100 * values)
                for i, run in enumerate(runs)
                for steps, values in [series(run.records, ["AP"])]
            ],
        ),
    ]
    for run in runs:
        shares = sorted({key for r in run.records for key in r if key.startswith("share/")})
        lines = [
            Line(key.removeprefix("share/").replace("_", " "), i, steps, 100 * values)
            for i, key in enumerate(shares)
            for steps, values in [series(run.records, [key])]
        ]
        title = f"{run.name}: each term's share of the total loss, weighted [%]"
        drawn.append(chart(title, "share", lines, named=True))
    kept = [each for each in drawn if each is not None]
    if not kept:
        return None
    told = legend([(run.name, i) for i, run in enumerate(runs) if run.records])
    return join(told, tag("div", kept, class_="charts"))


def chart(title: str, unit: str, lines: Sequence[Line], *, named: bool = False) -> Html | None:
    """Curves over the training steps, from 0 upwards; None where none has a point.

    Args:
        title: Stands above it.
        unit: What the values are, for who cannot see the drawing.
        lines: What is drawn.
        named: Whether the chart names its lines itself.
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
        # The last number would run over the edge.
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
    return tag("figure", tag("figcaption", title), drawing, _names(lines) if named else None)


def legend(names: Sequence[tuple[str, int]]) -> Html:
    """Names with a piece of their line.

    Args:
        names: Each with its position in the palette.
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


def _names(lines: Sequence[Line]) -> Html:
    return legend([(line.name, line.colour) for line in lines])


def _ticks(top: float, number: int = 5) -> list[float]:
    """Round values from 0 to the first at or past `top`."""
    rough = top / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(top / step - 1e-9) + 1)]


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over a tenth of the curve, narrower at both ends."""
    half = max(1, len(values) // 20)
    means = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    return steps, np.array(means)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    return [points[i] for i in kept]
