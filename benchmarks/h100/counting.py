"""Walks through a compiled program kernel by kernel, and sums the costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.h100.hlo import Computation, Instruction, Module
from benchmarks.h100.machine import RATES, Rates
from benchmarks.h100.parts import BETWEEN, PARTS, REST, is_backward, own_frames, part_of
from benchmarks.h100.work import Sent, Work, sent, work

_FAR, _WIDE = 4, 8  # search for neighbours: maximum steps, and instructions followed per step
LARGE = 10**6  # bytes above which a collective is listed separately

_NO_KERNEL = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}


@dataclasses.dataclass
class Kernel:
    """One launch in the schedule.

    Attributes:
        name: name of its instruction.
        part: its part of the program.
        backward: whether it belongs to the gradient.
        times: how often it runs.
        work: the work of one run.
        sent: what one run sends, if it is a collective.
        where: the line of this package, "file:line function", or "".
    """

    name: str
    part: str
    backward: bool
    times: int
    work: Work
    sent: Sent | None
    where: str

    def seconds(self, rates: Rates = RATES) -> float:
        """The least time of all its runs."""
        moved = (self.work.read + self.work.written) / rates.memory
        counted = self.work.flops / getattr(rates, self.work.factors) if self.work.factors else 0.0
        links = self.sent.sent / rates.links if self.sent else 0.0
        return self.times * (max(moved, counted, links) + rates.launch)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop whose number of trips is known only at run time.

    Attributes:
        name: name of its instruction.
        part: its part of the program.
        times: how often it is entered.
        trips: the assumed number of trips.
        where: as in `Kernel`.
    """

    name: str
    part: str
    times: int
    trips: int
    where: str


class _Place(NamedTuple):
    part: str
    where: str
    backward: bool


class Walk:
    """All kernels of a module; those in loops are counted once per trip.

    Args:
        module: the module of the whole step.
        trips: by part of the program, for loops whose trips the text does not state; else 1.

    Attributes:
        kernels: the kernels in the order of the schedule.
        loops: the loops whose trips the text does not state.
    """

    def __init__(self, module: Module, trips: Mapping[str, int] | None = None):
        self._module, self._trips = module, trips or {}
        self.loops: list[Loop] = []
        self.kernels = list(self._kernels(module.entry, 1))

    def _kernels(self, inside: Computation, times: int) -> Iterator[Kernel]:
        for one in inside.instructions:
            if one.opcode in _NO_KERNEL or one.opcode.endswith(("-done", "-update")):
                continue
            if one.opcode == "while":
                yield from self._loop(inside, one, times)
            elif one.opcode == "conditional":
                yield from self._branches(one, times)
            elif one.opcode in ("call", "async-start"):
                body = one.called("to_apply") or one.called("calls")
                yield from self._kernels(self._module.computations[body], times)
            else:
                yield self._kernel(inside, one, times)

    def _kernel(self, inside: Computation, one: Instruction, times: int) -> Kernel:
        place, between = self._place(inside, one), sent(self._module, inside, one)
        return Kernel(
            name=one.name,
            part=BETWEEN if between else place.part,
            backward=place.backward,
            times=times,
            work=work(self._module, inside, one),
            sent=between,
            where=place.where,
        )

    def _loop(self, inside: Computation, one: Instruction, times: int) -> Iterator[Kernel]:
        known = one.find(r'"known_trip_count":\{"n":"(\d+)"')
        body = self._module.computations[one.called("body")]
        if known:
            yield from self._kernels(body, times * int(known))
            return
        place = self._place(inside, one)
        trips = self._trips.get(place.part, 1)
        self.loops.append(Loop(one.name, place.part, times, trips, place.where))
        yield from self._kernels(body, times * trips)
        # The condition is computed and read before every trip, and once at the end.
        condition = self._module.computations[one.called("condition")]
        yield from self._kernels(condition, times * (trips + 1))

    def _branches(self, one: Instruction, times: int) -> Iterator[Kernel]:
        """The kernels of the cheapest branch of a conditional."""
        names = one.find(r"branch_computations=\{([^}]*)\}").replace("%", "").split(", ")
        if names == [""]:
            names = [one.called("true_computation"), one.called("false_computation")]
        each = [list(self._kernels(self._module.computations[name], times)) for name in names]
        yield from min(each, key=lambda found: sum(kernel.seconds() for kernel in found))

    def _place(self, inside: Computation, one: Instruction) -> _Place:
        """The place of an instruction, or of its nearest neighbour if the compiler created it."""
        for near in self._near(inside, one):
            stack = self._module.stack(near)
            frames = own_frames(stack)
            if frames:
                # Skips the function that all convolutions pass through.
                own = next((one for one in frames if one[0] != "ops/conv"), frames[0])
                where = f"{own[0]}.py:{own[2]} {own[1]}"
                return _Place(part_of(stack), where, is_backward(near.op_name))
        return _Place(REST, "", False)

    def _near(self, inside: Computation, one: Instruction) -> Iterator[Instruction]:
        yield one
        if one.opcode == "fusion":
            yield from reversed(self._module.computations[one.called("calls")].instructions)
        yield from _around(one, lambda near: inside.operands(near))
        yield from _around(one, lambda near: inside.users[near.name])


def _around(
    one: Instruction, onwards: Callable[[Instruction], Iterable[Instruction]]
) -> Iterator[Instruction]:
    """Neighbours on one side, the nearest first, through a few views and copies."""
    row = [one]
    for _ in range(_FAR):
        row = list({near.name: near for last in row[:_WIDE] for near in onwards(last)}.values())
        yield from row


def count(module: Module, trips: Mapping[str, int] | None = None, top: int = 20) -> dict[str, Any]:
    """The counted costs of a step, as plain values.

    Args:
        module: the module of the step on one GPU.
        trips: see `Walk`.
        top: how many of the longest kernels to list.

    Returns:
        "whole" and, in "parts", each part of the program: "kernels", "tflop" of products and
        convolutions, "gb" read and written, "ms", of which "ms_backward". The parts add up to the
        whole. "loops", "collectives" (all of them by kind, and those of more than 1 MB),
        "longest" (kernels).
    """
    walk = Walk(module, trips)
    rows = {part: _empty() for part in PARTS}
    for kernel in walk.kernels:
        _add(rows[kernel.part], kernel)
    whole = {key: sum(row[key] for row in rows.values()) for key in _empty()}
    longest = sorted(walk.kernels, key=lambda kernel: -kernel.seconds())[:top]
    return {
        "whole": whole,
        "parts": {part: row for part, row in rows.items() if row["kernels"]},
        "loops": [dataclasses.asdict(loop) for loop in walk.loops],
        "collectives": _collectives(walk.kernels),
        "longest": [_described(kernel) for kernel in longest],
    }


def _empty() -> dict[str, Any]:
    return {"kernels": 0, "tflop": 0.0, "gb": 0.0, "ms": 0.0, "ms_backward": 0.0}


def _add(row: dict[str, Any], kernel: Kernel) -> None:
    seconds = kernel.seconds()
    row["kernels"] += kernel.times
    row["tflop"] += kernel.times * kernel.work.flops / 1e12
    row["gb"] += kernel.times * (kernel.work.read + kernel.work.written) / 1e9
    row["ms"] += 1e3 * seconds
    row["ms_backward"] += 1e3 * seconds if kernel.backward else 0.0


def _collectives(kernels: list[Kernel]) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        if kernel.sent:
            kind = kernel.work.kind.removesuffix("-start")
            row = kinds.setdefault(kind, {"number": 0, "mb": 0.0})
            row["number"] += kernel.times
            row["mb"] += kernel.times * kernel.sent.payload / 1e6
    large = [kernel for kernel in kernels if kernel.sent and kernel.sent.payload > LARGE]
    large.sort(key=lambda kernel: -kernel.sent.payload if kernel.sent else 0)
    return {"kinds": kinds, "large": [_described(kernel) for kernel in large]}


def _described(kernel: Kernel) -> dict[str, Any]:
    found = {
        "name": kernel.name,
        "kind": kernel.work.kind,
        "part": kernel.part,
        "where": kernel.where,
        "times": kernel.times,
        "ms": 1e3 * kernel.seconds(),
        "mb": (kernel.work.read + kernel.work.written) / 1e6,
        "gflop": kernel.work.flops / 1e9,
    }
    return found | ({"payload_mb": kernel.sent.payload / 1e6} if kernel.sent else {})
