"""The kernels that the profiler saw on the GPU, summed by part of the program.

A kernel is assigned by the HLO instruction that the profiler names with it, else by its own name,
which XLA derives from the instruction's. A library's kernel inside a replayed graph has neither: it
counts for the part that has nearly all of the graph's other assigned time, else as "rest".
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.h100.counting import Walk
from benchmarks.h100.hlo import Module, read_module
from benchmarks.h100.parts import PARTS, REST

_GRAPH = "command_buffer"  # XLA's name of a replayed graph
_NEARLY = 0.9  # share of a graph's assigned time


@dataclasses.dataclass
class Seen:
    """All runs of one kernel.

    Attributes:
        name: its name in CUDA.
        op: the HLO instruction, or the replayed graph, that the profiler names, or "".
        times: how often it ran.
        ms: total of all runs.
    """

    name: str
    op: str
    times: int
    ms: float


class Place(NamedTuple):
    """A place in the program: its part, and the line of this package or ""."""

    part: str
    where: str


def kernels_of(folder: Path) -> list[Seen]:
    """The GPU's kernels and copies in a folder of `jax.profiler.start_trace`, the longest first."""
    from jax.profiler import ProfileData

    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for file in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if "XLA" in line.name:  # repeats the kernels, by module and operation
                    continue
                for event in line.events:
                    op = str(dict(event.stats).get("hlo_op", ""))
                    found[event.name, op].append(event.duration_ns / 1e6)
    rows = [Seen(name, op, len(times), sum(times)) for (name, op), times in found.items()]
    return sorted(rows, key=lambda row: -row.ms)


def by_part(hlo: str, kernels: Sequence[Seen], steps: int, top: int = 25) -> dict[str, Any]:
    """Milliseconds and kernels per step by part, and the longest kernels.

    Args:
        hlo: the compiled step's text.
        kernels: the kernels of all steps.
        steps: the number of profiled steps.
        top: how many of the longest kernels to list.

    Returns:
        "parts", "busy_ms" of all of them, and "longest".
    """
    found = place(read_module(hlo), kernels)
    parts: dict[str, dict[str, float]] = {part: {"ms": 0.0, "kernels": 0.0} for part in PARTS}
    for seen, at in zip(kernels, found, strict=True):
        parts[at.part]["ms"] += seen.ms / steps
        parts[at.part]["kernels"] += seen.times / steps
    longest = [
        {
            "kernel": seen.name[:120],
            "op": seen.op,
            "part": at.part,
            "where": at.where,
            "times": seen.times / steps,
            "ms": seen.ms / steps,
        }
        for seen, at in list(zip(kernels, found, strict=True))[:top]
    ]
    return {
        "parts": {part: row for part, row in parts.items() if row["kernels"]},
        "busy_ms": sum(row["ms"] for row in parts.values()),
        "longest": longest,
    }


def place(module: Module, kernels: Sequence[Seen]) -> list[Place]:
    """The place of each kernel."""
    known = _known(module)
    places = [known.get(_plain(seen.op)) or known.get(_plain(seen.name)) for seen in kernels]
    graphs: dict[str, Counter[str]] = defaultdict(Counter)
    for seen, at in zip(kernels, places, strict=True):
        if at is not None and seen.op.startswith(_GRAPH):
            graphs[seen.op][at.part] += seen.ms
    return [
        at or Place(_of_graph(graphs.get(seen.op, Counter())), "")
        for seen, at in zip(kernels, places, strict=True)
    ]


def _known(module: Module) -> Mapping[str, Place]:
    """Places by kernel name: names of instructions, and of the roots of fused ones."""
    walked = {one.name: Place(one.part, one.where) for one in Walk(module).kernels}
    known = {_plain(name): at for name, at in walked.items()}
    for computation in module.computations.values():
        for one in computation.instructions:
            body = module.computations.get(one.called("calls"))
            if body is not None and one.name in walked:
                known.setdefault(_plain(body.root.name), walked[one.name])
    return known


def _of_graph(placed: Counter[str]) -> str:
    if not placed:
        return REST
    part, most = placed.most_common(1)[0]
    return part if most >= _NEARLY * placed.total() else REST


def _plain(name: str) -> str:
    # "__2" and the like: the passes of one sort.
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"__\d+$", "", name.lower()))
