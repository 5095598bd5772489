"""The tables of `gain.md`, from the content of `gain.json`. Scores in points, 0..100."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from drkd_jax.report.paired import METRICS


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        results: See `results.gather`, with `table`, `arms`, `machine`, `versions`, `commit`,
            `command` and `draws`.
    """
    runs = results["runs"]
    done = sum(run["state"] == "done" for run in runs)
    blocks = [
        f"# {results['table']}",
        f"`{results['command']}`",
        f"{done} of {len(runs)} runs are done. A difference is the mean over pairs of one seed, "
        f"arm minus {results['reference']}, on the same images. First its 95 % interval over the "
        "seeds (Student's t), then over seeds and images (both drawn again "
        f"{results['draws']} times). *Above 0* is yes where both are.",
    ]
    groups = dict.fromkeys((c["set"], c["detector"], c["budget"]) for c in results["comparisons"])
    for group in groups:
        blocks += _group(results, *group)
    blocks += _unfinished(runs)
    blocks += ["## Arms", _arms(results["arms"]), "## Made with", _made_with(results)]
    return "\n\n".join(blocks) + "\n"


def _group(results: Mapping[str, Any], name: str, detector: str, budget: int) -> list[str]:
    place = {"set": name, "detector": detector, "budget": budget}
    rows = _of(results["comparisons"], place)
    blocks = [f"## {name}, {detector}, {budget} steps"]
    for gap in _of(results["gaps"], place):
        blocks.append(
            f"Teacher minus {results['reference']}: {_signed(gap['AP'])} AP"
            f"{_between(gap['AP']['low'], gap['AP']['high'])}, {_signed(gap['AP_S'])} AP_S; the "
            "interval is over the images."
        )
    lines = [
        "| arm | seeds | AP | AP50 | AP_S | AP_M |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for teacher in _of(results["teachers"], {"set": name, "detector": detector, "state": "done"}):
        cells = (_points(teacher["scores"][metric]) for metric in METRICS)
        own = teacher["teacher_detector"]
        who = "teacher" if own == detector else f"teacher, {own}"
        lines.append(f"| *{who}* | 1 | {' | '.join(cells)} |")
    for row in rows:
        cells = (_spread(row["scores"][metric]) for metric in METRICS)
        lines.append(f"| {row['arm']} | {len(row['seeds'])} | {' | '.join(cells)} |")
    blocks.append("\n".join(lines))
    compared = [row for row in rows if "difference" in row]
    if compared:
        lines = [
            f"| arm - {results['reference']} | pairs | | difference | over seeds | over seeds and "
            "images | above 0 | each pair |",
            "|---|---:|---|---:|---:|---:|---|---|",
        ]
        for row in compared:
            for metric in ("AP", "AP_S", "AP_M"):
                lines.append(_difference(row, metric))
        blocks.append("\n".join(lines))
    return blocks


def _of(rows: Iterable[Mapping[str, Any]], place: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in place.items())]


def _difference(row: Mapping[str, Any], metric: str) -> str:
    found = row["difference"][metric]
    cells = [
        row["arm"],
        str(len(row["paired_seeds"])),
        metric,
        f"**{_signed(found)}**" if metric == "AP" else _signed(found),
        _between(found["t_low"], found["t_high"]).strip(" ()") or "-",
        _between(found["low"], found["high"]).strip(" ()") or "-",
        "yes" if found["above_zero"] else "no",
        ", ".join(f"{100 * v:+.1f}" if math.isfinite(v) else "-" for v in found["each"]),
    ]
    return f"| {' | '.join(cells)} |"


def _unfinished(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    failed = [run for run in runs if run["state"] == "failed"]
    if not failed:
        return []
    lines = [
        f"- {run['set']}, {run['detector']}, {run['arm']}, {run['budget']} steps, seed "
        f"{run['seed']}: {run['error']}"
        for run in failed
    ]
    return ["## Runs that failed", "\n".join(lines)]


def _arms(arms: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| arm | teacher | overrides |", "|---|---|---|"]
    for name, arm in arms.items():
        words = ", ".join(f"`{key}={value}`" for key, value in arm["overrides"].items())
        lines.append(f"| {name} | {'yes' if arm['distilled'] else 'no'} | {words or 'none'} |")
    return "\n".join(lines)


def _made_with(results: Mapping[str, Any]) -> str:
    machines = {_machine(run["machine"]) for run in results["runs"] if run.get("machine")}
    commits = {_short(run["commit"]) for run in results["runs"] if run.get("commit")}
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join(
        [
            f"- trained on: {'; '.join(sorted(machines)) or 'unknown'}",
            f"- commits of the runs: {', '.join(sorted(commits)) or 'unknown'}",
            f"- report: {_machine(results['machine'])}, {_short(results['commit'])}, {versions}",
        ]
    )


def _short(commit: str) -> str:
    return commit[:12] + ("+" if commit.endswith("+") else "")


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['devices']} ({machine['platform']}), {machine['cores']} CPU cores"


def _points(value: float) -> str:
    return "-" if not math.isfinite(value) or value < 0 else f"{100 * value:.1f}"


def _signed(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:+.2f}" if math.isfinite(found["mean"]) else "-"


def _spread(found: Mapping[str, float]) -> str:
    sd = f" ± {100 * found['sd']:.1f}" if math.isfinite(found["sd"]) else ""
    return f"{_points(found['mean'])}{sd}"


def _between(low: float, high: float) -> str:
    return f" ({100 * low:+.2f} to {100 * high:+.2f})" if math.isfinite(low + high) else ""
