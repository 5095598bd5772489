"""The page's tables: the runs, COCO's numbers, object sizes, classes, differing settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from drkd_jax.fault_tolerance.same_run import differing_keys, value_at
from drkd_jax.report.comparison import Comparison
from drkd_jax.report.markup import Child, Html, join, table, tag
from drkd_jax.report.paired import METRICS, Interval
from drkd_jax.report.runs import RunFiles, Truth, same_images, shared_images

_TITLES = {
    "AP": "mean over overlaps 0.50 to 0.95",
    "AP50": "overlap 0.50",
    "AP75": "overlap 0.75",
    "AP_S": "small objects",
    "AP_M": "medium objects",
    "AP_L": "large objects",
    "AR1": "recall of 1 box per image",
    "AR10": "recall of 10 boxes",
    "AR_S": "recall, small objects",
    "AR_M": "recall, medium objects",
    "AR_L": "recall, large objects",
}
# COCO's bounds of an object's area, square pixels.
_SIZES = (
    ("small", "S", "under 32 x 32 pixels", 0.0, 32.0**2),
    ("medium", "M", "32 x 32 to 96 x 96", 32.0**2, 96.0**2),
    ("large", "L", "from 96 x 96", 96.0**2, 1e10),
)
_LONG = 60  # longest setting that a cell shows unfolded, characters


def points(value: float | None, signed: bool = False) -> str:
    """A score in points with one decimal; "-" for pycocotools' -1 and for NaN."""
    if value is None or not math.isfinite(value) or (value < 0 and not signed):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def trained(runs: Sequence[RunFiles]) -> Html:
    """Table of the runs: detector, size, length, data, machine, as far as they are recorded."""

    def at(key: str) -> list[Any]:
        return [value_at(run.config, key) for run in runs]

    def backbone(run: RunFiles) -> str | None:
        depth, width = (
            value_at(run.config, f"student.backbone.{key}") for key in ("depth", "width")
        )
        return None if depth is None else f"{depth} layers" + (f", width {width}" if width else "")

    def parameters(run: RunFiles) -> str | None:
        number = (run.summary.get("parameters") or {}).get("student")
        return None if number is None else f"{number / 1e6:.2f} M"

    def seconds(run: RunFiles) -> str | None:
        value = run.summary.get("seconds")
        return None if value is None else f"{value:.0f} s"

    def versions(run: RunFiles) -> str | None:
        known = run.about.get("versions") or {}
        return ", ".join(f"{name} {known[name]}" for name in ("drkd_jax", "jax") if name in known)

    facts: list[tuple[str, list[Any]]] = [
        ("detector", at("student.detector")),
        ("backbone", [backbone(run) for run in runs]),
        ("parameters", [parameters(run) for run in runs]),
        ("learns from", at("data.train")),
        ("its teacher", at("teacher.checkpoint")),
        ("seed", at("seed")),
        ("steps", [run.summary.get("steps") for run in runs]),
        ("best step", [run.summary.get("best_step") for run in runs]),
        ("training took", [seconds(run) for run in runs]),
        ("machine", [(run.about.get("machine") or {}).get("devices") for run in runs]),
        ("versions", [versions(run) for run in runs]),
        ("folder", [str(run.folder) for run in runs]),
    ]
    rows = [
        [name, *(_long("–" if value in (None, "") else str(value)) for value in values)]
        for name, values in facts
        if any(value not in (None, "") for value in values)
    ]
    return table("The runs", ["", *(run.name for run in runs)], rows)


def numbers(runs: Sequence[RunFiles], comparison: Comparison | None) -> Html:
    """Table of COCO's twelve numbers in points, with intervals if ground truth is available."""
    rows: list[list[Child]] = []
    for key in runs[0].scores:
        title = _TITLES.get(key, f"recall of {key[2:]} boxes")
        cells: list[Child] = []
        for i, run in enumerate(runs):
            value = points(run.scores.get(key))
            # An interval is valid only for a run that was scored on exactly the resampled images.
            spread = comparison.scores[i].get(key) if comparison and comparison.own[i] else None
            cells.append(join(value, _between(spread, signed=False) if value != "-" else None))
        rows.append([join(key, " ", tag("small", title)), *cells])
    if not same_images(runs):
        rows.append(["images", *(str(run.images or "all") for run in runs)])
    caption = "COCO's numbers in points"
    if comparison:
        caption += "; in brackets the middle 95 % over draws of the validation images"
    return table(caption, ["", *(run.name for run in runs)], rows, class_="numbers")


def differences(
    runs: Sequence[RunFiles], reference: int, comparison: Comparison | None
) -> Html | None:
    """Each run minus the reference; None if there is only one run, or no common images."""
    others = [i for i in range(len(runs)) if i != reference]
    if not others or not (comparison or same_images(runs)):
        return None
    rows: list[list[Child]] = []
    for key in METRICS:
        cells: list[Child] = []
        for i in others:
            pair = runs[i].scores.get(key, -1.0), runs[reference].scores.get(key, -1.0)
            if comparison is None:
                cells.append("-" if min(pair) < 0 else points(pair[0] - pair[1], signed=True))
            else:
                spread = comparison.differences[i][key]
                whole = join(points(spread.value, signed=True), _between(spread))
                cells.append(tag("strong", whole) if spread.settled else whole)
        rows.append([join(key, " ", tag("small", _TITLES[key])), *cells])
    caption = f"Points more than {runs[reference].name}"
    if not same_images(runs):
        caption += f" on the first {shared_images(runs)} images"
    if comparison:
        caption += "; in brackets the middle 95 %, bold where it leaves out 0"
    return table(caption, ["", *(runs[i].name for i in others)], rows, class_="numbers")


def sizes(runs: Sequence[RunFiles], truth: Truth | None) -> Html:
    """AP and recall by object size, with the number of objects of each size."""
    areas = [] if truth is None else [row["area"] for row in truth.objects]
    rows: list[list[Child]] = []
    for name, letter, bounds, low, high in _SIZES:
        cells: list[Child] = [
            f"{points(run.scores.get(f'AP_{letter}'))} / {points(run.scores.get(f'AR_{letter}'))}"
            for run in runs
        ]
        if truth is not None:
            # COCO counts an object on the bound in both ranges; here it counts in the smaller one.
            first = low if low else -1.0
            cells.append(str(sum(first < area <= high for area in areas)))
        rows.append([join(name, " ", tag("small", bounds)), *cells])
    head = ["", *(run.name for run in runs), *(["objects"] if truth is not None else [])]
    return table("AP / recall by size of the object", head, rows, class_="numbers")


def classes(runs: Sequence[RunFiles], reference: int, other: int, comparison: Comparison) -> Html:
    """AP of each class, sorted by gain, largest first."""

    def change(name: str) -> float:
        pair = [comparison.class_ap[i].get(name, -1.0) for i in (reference, other)]
        return pair[1] - pair[0] if min(pair) >= 0 else math.nan

    names = list(comparison.objects)
    compared = reference != other
    if compared:
        names.sort(key=lambda name: -change(name) if not math.isnan(change(name)) else math.inf)
    rows: list[list[Child]] = []
    for name in names:
        row: list[Child] = [name, points(change(name), signed=True)] if compared else [name]
        row += [points(each.get(name)) for each in comparison.class_ap]
        rows.append([*row, str(comparison.objects[name])])
    head = ["class", *(["change"] if compared else []), *(run.name for run in runs), "objects"]
    caption = "AP by class"
    if compared:
        caption += f"; change from {runs[reference].name} to {runs[other].name}, largest gain first"
    return table(caption, head, rows, class_="numbers")


def settings(runs: Sequence[RunFiles]) -> Html | None:
    """Table of the config keys that differ; None if fewer than two runs have a config."""
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return None
    keys = sorted({key for run in known[1:] for key in differing_keys(known[0].config, run.config)})
    # A section that one run lacks is one difference; the keys inside it are not listed.
    keys = [key for key in keys if not any(key.startswith(f"{other}.") for other in keys)]
    if not keys:
        return tag("p", "The configs are the same.")
    rows = [[key, *(_value(run.config, key) for run in known)] for key in keys]
    return table("Settings that differ", ["key", *(run.name for run in known)], rows)


def _value(config: Mapping[str, Any], key: str) -> Child:
    value = value_at(config, key)
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        inside = tag("pre", json.dumps(value, indent=1, ensure_ascii=False))
        return tag("details", tag("summary", f"{len(value)} keys"), inside)
    return _long(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _long(text: str) -> Child:
    """Folds a long path or list."""
    if len(text) <= _LONG:
        return text
    return tag("details", tag("summary", f"…{text[-_LONG // 2 :]}"), text)


def _between(spread: Interval | None, signed: bool = True) -> Html | None:
    if spread is None or math.isnan(spread.low):
        return None
    low, high = points(spread.low, signed), points(spread.high, signed)
    return tag("small", f" ({low} to {high})", class_="between")
