"""The results of benchmarks/gpu.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.h100.parts import PARTS


def markdown(result: Mapping[str, Any], counted: Mapping[str, Any] | None) -> str:
    """The tables: ours against PyTorch, and by part of the program.

    Args:
        result: the results of a run.
        counted: results of `h100_count.py`, for the same recipes; or None.
    """
    cases = {name: case for name, case in result["cases"].items() if "ms" in case}
    blocks = [_about(result, cases)]
    if cases:
        blocks += [_steps(cases, result.get("torch") or {}), _parts(cases, counted)]
    blocks += [
        f"**{name} failed**: {case['failed'].splitlines()[-1]}"
        for name, case in result["cases"].items()
        if "failed" in case
    ]
    return "\n\n".join(blocks) + "\n"


def _about(result: Mapping[str, Any], cases: Mapping[str, Any]) -> str:
    torch, ceilings = result.get("torch") or {}, result.get("ceilings") or {}
    one = next(iter(cases.values()), {})
    reached = ", ".join(
        f"{key.replace('_tb_per_s', ' TB/s').replace('_tflop_per_s', ' TFLOP/s')} {value:.4g}"
        for key, value in ceilings.items()
        if isinstance(value, float)
    )
    return (
        f"{one.get('device', '-')}, jax {one.get('jax', '-')}, {one.get('precision', '-')}, batch "
        f"{'x'.join(map(str, one.get('batch', [])[:3]))}; torch {torch.get('torch', '-')}, "
        f"torchvision {torch.get('torchvision', '-')} on {torch.get('device', '-')}; reached: "
        f"{reached or '-'}"
    )


def _steps(cases: Mapping[str, Any], torch: Mapping[str, Any]) -> str:
    rows = [
        "| a step, ms | ours | in a row | GPU busy | peak GB | PyTorch | peak GB | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in cases.items():
        recipe, kind = name.rsplit("-", 1)
        other = torch.get("cases", {}).get(f"{recipe.split('_r50')[0]} {kind}")
        busy = f"{case['busy_ms']:.1f}" if "busy_ms" in case else "-"
        cells = [name, f"{case['ms']:.1f}", f"{case['in_a_row_ms']:.1f}", busy]
        cells.append(f"{case['peak_gb']:.1f}")
        if other:
            cells += [f"{other['ms']:.1f}", f"{other.get('peak_gb', 0):.1f}"]
            cells.append(f"**{other['ms'] / case['ms']:.2f}**")
        else:
            cells += ["-", "-", "-"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _parts(cases: Mapping[str, Any], counted: Mapping[str, Any] | None) -> str:
    """Milliseconds by part: measured, and counted in brackets."""
    names = [name for name, case in cases.items() if case.get("parts")]
    counts = [_counted(name, counted) for name in names]
    rows = [f"| GPU busy, ms (by count) | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for part in PARTS:
        cells = []
        for name, count in zip(names, counts, strict=True):
            row, by_count = cases[name]["parts"].get(part), count.get(part)
            cell = f"{row['ms']:.2f}" if row else "-"
            cells.append(cell + (f" ({by_count['ms']:.2f})" if by_count else ""))
        if any(cell != "-" for cell in cells):
            rows.append(f"| {part} | {' | '.join(cells)} |")
    kernels = (
        f"{sum(row['kernels'] for row in cases[name]['parts'].values()):.0f}" for name in names
    )
    rows.append(f"| kernels and copies | {' | '.join(kernels)} |")
    return "\n".join(rows)


def _counted(name: str, counted: Mapping[str, Any] | None) -> Mapping[str, Any]:
    recipe, kind = name.rsplit("-", 1)
    for case in (counted or {}).get("cases", ()):
        wanted = recipe if kind == "drkd" else recipe.removesuffix("_drkd")
        if case.get("recipe") == wanted and case["devices"] == 1:
            found: Mapping[str, Any] = case["parts"]
            return found
    return {}
