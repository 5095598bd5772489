"""Results as plain values and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.h100.machine import RATES
from benchmarks.h100.parts import PARTS

_UNITS = {
    "memory": ("TB/s read and written", 1e12),
    "bfloat16": ("TFLOP/s of 16-bit products", 1e12),
    "tensor_float32": ("TFLOP/s of float32 products in TF32", 1e12),
    "float32": ("TFLOP/s of float32 products at the highest precision", 1e12),
    "links": ("GB/s from GPU to GPU", 1e9),
    "launch": ("us a kernel", 1e-6),
}


def assumed() -> dict[str, float]:
    """The assumptions behind every "ms", in SI units."""
    return dataclasses.asdict(RATES)


def markdown(results: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """All tables.

    Args:
        results: "cases", each with its description and the result of `counting.count`; "assumed".
        before: earlier results; their milliseconds are shown next to those of the same cases.
    """
    cases = results["cases"]
    old = {_key(case): case for case in (before or {}).get("cases", ())}
    blocks = [_promise(results["assumed"]), _summary(cases, old)]
    blocks += [_overview(cases)] if len(cases) > 1 else []
    for case in cases:
        blocks += [f"## {name(case)}", _parts(case, old.get(_key(case)))]
        blocks += [_loops(case["loops"])] if case["loops"] else []
        blocks += [_collectives(case["collectives"])] if case["collectives"]["kinds"] else []
    return "\n\n".join(blocks) + "\n"


def name(case: Mapping[str, Any]) -> str:
    """A case as text."""
    if not case.get("recipe"):
        return str(case["file"])
    plain = ", without distillation" if case["plain"] else ""
    gpus = f"{case['devices']} GPU" + ("s" if case["devices"] > 1 else "")
    return f"{case['recipe']}{plain}, {gpus}, {case['batch']} images each, {case['precision']}"


def _key(case: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = ("recipe", "plain", "devices", "batch", "precision")
    return tuple(case.get(key) for key in keys) if case.get("recipe") else (case["file"],)


def _promise(rates: Mapping[str, float]) -> str:
    listed = ", ".join(
        f"{rates[key] / scale:g} {unit}" for key, (unit, scale) in _UNITS.items() if key in rates
    )
    return (
        "Counted in the program that XLA made for an H100, not measured on one. ms is a lower "
        f"bound, not a measurement: {listed}; a kernel takes the longest of its memory traffic, "
        "its products and its sending, and kernels run one after the other. A sort counts as one "
        "kernel and one pass. What runs several times, as in a loop, counts as often."
    )


def _summary(cases: Sequence[Mapping[str, Any]], old: Mapping[Any, Mapping[str, Any]]) -> str:
    rows = [
        "| | | kernels | TFLOP | GB | ms | temporary GB | arguments GB | between GPUs, MB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, case in enumerate(cases, start=1):
        whole, buffers = case["whole"], case.get("buffers") or {}
        earlier = old.get(_key(case))
        moved = sum(kind["mb"] for kind in case["collectives"]["kinds"].values())
        cells = [
            *(str(number), name(case)),
            str(whole["kernels"]),
            f"{whole['tflop']:.2f}",
            f"{whole['gb']:.1f}",
            f"**{whole['ms']:.1f}**" + (f" (was {earlier['whole']['ms']:.1f})" if earlier else ""),
            *(
                f"{buffers[key] / 1e9:.2f}" if buffers else "-"
                for key in ("temporary", "arguments")
            ),
            f"{moved:.1f}" if moved else "-",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _overview(cases: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds of all cases by part."""
    numbers = [str(number) for number in range(1, len(cases) + 1)]
    rows = [f"| ms | {' | '.join(numbers)} |", f"|---|{'---:|' * len(cases)}"]
    for part in PARTS:
        found = [case["parts"].get(part) for case in cases]
        if any(found):
            cells = (f"{row['ms']:.2f}" if row else "-" for row in found)
            rows.append(f"| {part} | {' | '.join(cells)} |")
    cells = (f"{case['whole']['ms']:.2f}" for case in cases)
    rows.append(f"| **whole** | {' | '.join(cells)} |")
    return "\n".join(rows)


def _parts(case: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> str:
    was, line = (" was |", "---:|") if earlier else ("", "")
    rows = [
        f"| part of the program | kernels | TFLOP | GB | ms |{was} of it backward |",
        f"|---|---:|---:|---:|---:|{line}---:|",
    ]
    found = {part: case["parts"][part] for part in PARTS if part in case["parts"]}
    for part, row in [*found.items(), ("**whole**", case["whole"])]:
        cells = [
            *(part, str(row["kernels"]), f"{row['tflop']:.3f}", f"{row['gb']:.2f}"),
            f"{row['ms']:.2f}",
        ]
        if earlier:
            before = earlier["whole"] if part == "**whole**" else earlier["parts"].get(part)
            cells.append(f"{before['ms']:.2f}" if before else "-")
        cells.append(f"{row['ms_backward']:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _loops(loops: Sequence[Mapping[str, Any]]) -> str:
    listed = "; ".join(f"{loop['part']} ({loop['where']}) {loop['trips']} x" for loop in loops)
    return f"Loops whose trips only the data decides, counted with so many: {listed}."


def _collectives(found: Mapping[str, Any]) -> str:
    kinds = ", ".join(
        f"{row['number']} {kind} of {row['mb']:.2f} MB together"
        for kind, row in found["kinds"].items()
    )
    rows = [
        f"Between the GPUs: {kinds}; over 1 MB:",
        "",
        "| | MB | times | ms | where |",
        "|---|---:|---:|---:|---|",
    ]
    for one in found["large"]:
        rows.append(
            f"| {one['kind']} | {one['payload_mb']:.2f} | {one['times']} | {one['ms']:.2f} | "
            f"{one['where']} |"
        )
    return "\n".join(rows if found["large"] else [f"Between the GPUs: {kinds}; none over 1 MB."])
