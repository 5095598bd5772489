"""The forest plot: each arm's difference from the reference with its interval, one per row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Two hues that also differ in lightness. The background is white, not transparent, to keep the
# contrast on dark pages.
_INK, _GROUND, _FAINT = "#1f2328", "#ffffff", "#8b949e"
_SHOWN = {"AP": ("#0b5cad", "o", -0.17), "AP_S": ("#c2500b", "s", 0.17)}


def forest(path: str | Path, results: Mapping[str, Any]) -> bool:
    """Draws AP and AP_S of every arm: a dot, both intervals, and every pair of seeds.

    Args:
        path: The PNG to write.
        results: See `markdown.markdown`.

    Returns:
        False if there is nothing to draw yet; then no file is written.
    """
    rows = [row for row in results["comparisons"] if "difference" in row]
    if not rows:
        return False
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["detector"], row["budget"]), []).append(row)
    num_lines = sum(len(of_group) + 1 for of_group in groups.values())
    figure = Figure(figsize=(9.6, 0.42 * num_lines + 1.5), layout="constrained", facecolor=_GROUND)
    ax = figure.subplots()
    at, ticks, names = 0.0, [], []
    for (name, detector, budget), of_group in groups.items():
        gap = _gap(results, name, detector, budget)
        ax.text(
            0.0,
            at,
            f"{name}, {detector}, {budget} steps{gap}",
            transform=ax.get_yaxis_transform(),
            va="center",
            weight="bold",
            color=_INK,
            zorder=3,
            bbox={"facecolor": _GROUND, "edgecolor": "none", "pad": 1.5},
        )
        for row in of_group:
            at += 1
            ticks.append(at)
            names.append(f"{row['arm']} (n = {len(row['paired_seeds'])})")
            for metric in _SHOWN:
                _row(ax, at, metric, row["difference"][metric])
        at += 1
    ax.axvline(0, color=_INK, linewidth=1)
    ax.set_ylim(at - 0.4, -0.6)
    ax.set_yticks(ticks, names, color=_INK)
    ax.tick_params(colors=_INK, left=False)
    ax.set_xlabel(f"points above {results['reference']} of the same seed", color=_INK)
    ax.grid(axis="x", color=_FAINT, alpha=0.3)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, linewidth=3, label=metric)
        for metric, (colour, marker, _) in _SHOWN.items()
    ]
    handles += [
        Line2D([], [], color=_INK, linewidth=3, label="95 % over seeds and images"),
        Line2D([], [], color=_INK, linewidth=1, label="95 % over seeds"),
        Line2D([], [], color=_INK, marker="|", linewidth=0, label="each pair"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130, facecolor=_GROUND)
    return True


def _row(ax: Axes, at: float, metric: str, found: Mapping[str, Any]) -> None:
    colour, marker, shift = _SHOWN[metric]
    y, mean = at + shift, 100 * found["mean"]
    if not math.isfinite(mean):
        return
    for low, high, width in (("t_low", "t_high", 1), ("low", "high", 3)):
        ends = [100 * found[low], 100 * found[high]]
        if all(map(math.isfinite, ends)):
            ax.plot(ends, [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    each = [100 * value for value in found["each"]]
    ax.plot(each, [y] * len(each), "|", color=_INK, markersize=7, zorder=3)
    ax.plot(mean, y, marker, color=colour, markeredgecolor=_GROUND, markersize=7, zorder=4)
    words = f"{mean:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
    ax.text(
        1.01,
        y,
        words,
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color=colour,
    )


def _gap(results: Mapping[str, Any], name: str, detector: str, budget: int) -> str:
    for row in results["gaps"]:
        if (row["set"], row["detector"], row["budget"]) == (name, detector, budget):
            ahead = 100 * row["AP"]["mean"]
            return f": teacher {abs(ahead):.1f} AP {'ahead' if ahead >= 0 else 'behind'}"
    return ""
