"""How much one kernel must read, write, multiply and send, from its HLO."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.h100.hlo import Computation, Instruction, Module, Shape

_COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "reduce-scatter"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
# Kinds of a fusion, the costliest first.
_HEROES = ("dot", "scatter", "sort", "reduce", "reduce-window", "gather", "transpose")
_LIBRARIES = {"conv": "convolution", "gemm": "product", "matmul": "product"}


class Work(NamedTuple):
    """The work of one run of a kernel.

    Attributes:
        kind: its main operation.
        read: bytes read.
        written: bytes written.
        flops: of products and convolutions; a multiplication and an addition count as two.
        factors: type of the factors: "bfloat16", "tensor_float32", "float32", or "" for none.
    """

    kind: str
    read: int
    written: int
    flops: int = 0
    factors: str = ""


class Sent(NamedTuple):
    """The traffic of a collective.

    Attributes:
        payload: bytes of the whole result on one GPU, or of its operands if these are more.
        sent: bytes that one GPU sends, around a ring.
        gpus: the number of GPUs that take part.
    """

    payload: int
    sent: int
    gpus: int


def work(module: Module, inside: Computation, one: Instruction) -> Work:
    """The work of an instruction that becomes a kernel, a copy or a library call."""
    if one.opcode == "fusion":
        return _of_fusion(module, module.computations[one.called("calls")])
    if one.opcode == "custom-call":
        return _of_library(inside, one)
    read = sum(
        math.ceil(_share(one, place, operand) * operand.size)
        for place, operand in _once(inside, one)
    )
    flops, factors = _product(inside, one) if one.opcode == "dot" else (0, "")
    return Work(one.opcode, read, _written(inside, one), flops, factors)


def sent(module: Module, inside: Computation, one: Instruction) -> Sent | None:
    """The traffic of a collective; None for other instructions."""
    kind = one.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    given = sum(operand.size for _, operand in _once(inside, one))
    # The first half of their result is their input.
    both = one.opcode in ("all-gather-start", "collective-permute-start")
    payload = max(given, one.size - given if both else one.size)
    gpus = _group(one) or module.gpus
    share = {"all-reduce": 2 * (gpus - 1) / gpus, "collective-permute": 1.0}
    return Sent(payload, round(payload * share.get(kind, (gpus - 1) / gpus)), gpus)


def _once(inside: Computation, one: Instruction) -> list[tuple[int, Instruction]]:
    """Operands with their positions, each once."""
    names: dict[str, int] = {}
    for place, name in enumerate(one.operands):
        names.setdefault(name, place)
    return [(at, inside.by_name[name]) for name, at in names.items() if name in inside.by_name]


def _of_fusion(module: Module, body: Computation) -> Work:
    results = _results(body)
    shares = _shares(body, results)
    read = sum(math.ceil(shares[one.name] * one.size) for one in body.parameters.values())
    written = sum(_written(body, one) for one in results)
    read += sum(_written(body, one) for one in results if one.opcode == "scatter")
    flops, factors = 0, ""
    opcodes = set()
    for inner in _all(module, body):
        for one in inner.instructions:
            opcodes.add(one.opcode)
            if one.opcode == "dot":
                more, factors = _product(inner, one)
                flops += more
    hero = next((kind for kind in _HEROES if kind in opcodes), "elementwise")
    return Work(f"fused {hero}", read, written, flops, factors)


def _all(module: Module, body: Computation) -> list[Computation]:
    """A fused computation and the fusions inside it."""
    inner = [one.called("calls") for one in body.instructions if one.opcode == "fusion"]
    return [body, *(found for name in inner for found in _all(module, module.computations[name]))]


def _results(body: Computation) -> list[Instruction]:
    """The results that a fused computation writes, without views of them."""
    root = body.root
    outputs = list(body.operands(root)) if root.opcode == "tuple" else [root]
    return list({one.name: one for one in (_under(body, one) for one in outputs)}.values())


def _under(body: Computation, one: Instruction) -> Instruction:
    while one.opcode == "bitcast" and one.operands[0] in body.by_name:
        one = body.by_name[one.operands[0]]
    return one


def _shares(body: Computation, results: list[Instruction]) -> dict[str, float]:
    """The least share of each instruction's elements that its users need.

    Users that read only a part are assumed to need different parts; all others need the same.
    """
    roots = {one.name for one in results}
    shares: dict[str, float] = {}
    for one in reversed(body.instructions):
        whole, parts = (1.0 if one.name in roots or one.is_root else 0.0), 0.0
        for user in body.users[one.name]:
            if user.opcode == "tuple" and user.is_root:
                continue
            for place, name in enumerate(user.operands):
                if name == one.name:
                    share = _share(user, place, one, in_place=user.name in roots)
                    needed = shares[user.name] * share
                    if share < 1:
                        parts += needed
                    else:
                        whole = max(whole, needed)
        shares[one.name] = min(1.0, max(whole, parts))
    return shares


def _share(user: Instruction, place: int, one: Instruction, *, in_place: bool = True) -> float:
    """The share of an operand's elements that its user reads."""
    if place == 0 and user.opcode in ("slice", "dynamic-slice", "gather"):
        return min(1.0, user.elements / max(1, one.elements))
    if place == 0 and in_place and user.opcode in ("dynamic-update-slice", "scatter"):
        return 0.0
    return 1.0


def _written(body: Computation, one: Instruction) -> int:
    """Bytes written; for in-place writes, only the new ones."""
    if one.opcode == "dynamic-update-slice":
        return body.by_name[one.operands[1]].size if one.operands[1] in body.by_name else 0
    if one.opcode == "scatter":
        updates = one.operands[len(one.operands) // 2 + 1 :]
        return sum(body.by_name[name].size for name in updates if name in body.by_name)
    return one.size


def _of_library(inside: Computation, one: Instruction) -> Work:
    target = one.find(r'custom_call_target="([^"]*)"')
    kind = next((name for part, name in _LIBRARIES.items() if part in target.lower()), target)
    operands = [operand for _, operand in _once(inside, one)]
    read = sum(operand.size for operand in operands)
    if kind == target or not operands:
        return Work(kind, read, one.size)
    # The other shapes are the library's working memory.
    result = one.shapes[0]
    factors = _factors(operands[0].shapes[0], one.attributes)
    flops = (_convolution if kind == "convolution" else _library_product)(inside, one, target)
    activation = one.find(r'"activation_mode":"k?(\w+)"')
    fused = "BiasActivation" in target and activation
    if fused:
        kind += " with bias" + ("" if activation == "None" else f" and {activation}")
    return Work(kind, read, result.size, flops, factors)


def _convolution(inside: Computation, one: Instruction, target: str) -> int:
    """Twice the elements of the side that every filter tap meets, times the taps per element."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if labels is None:
        return 0
    first, second = (inside.by_name[name].shapes[0] for name in one.operands[:2])
    result = one.shapes[0]
    if "BackwardFilter" in target:
        kernel, met = result, second
    elif "BackwardInput" in target:
        kernel, met = second, first
    else:
        kernel, met = second, result
    sides = dict(zip(labels[2], kernel.dims, strict=True))
    taps = math.prod(size for label, size in sides.items() if label != "o")  # "i" is per group
    return 2 * met.elements * taps


def _library_product(inside: Computation, one: Instruction, target: str) -> int:
    sides = one.find(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    left = inside.by_name[one.operands[0]].shapes[0]
    summed = math.prod(left.dims[int(side)] for side in re.findall(r"\d+", sides))
    return 2 * one.shapes[0].elements * summed


def _product(inside: Computation, one: Instruction) -> tuple[int, str]:
    left = inside.by_name[one.operands[0]].shapes[0]
    sides = re.findall(r"\d+", one.find(r"lhs_contracting_dims=\{([\d,]*)\}"))
    summed = math.prod(left.dims[int(side)] for side in sides)
    return 2 * one.elements * summed, _factors(left, one.attributes)


def _factors(left: Shape, attributes: str) -> str:
    if left.kind not in ("f32", "f64"):
        return "bfloat16"
    found = re.search(r'"?operand_precision"?[=:][\[{]"?(\w+)', attributes)
    return "float32" if found and found[1].lower() == "highest" else "tensor_float32"


def _group(one: Instruction) -> int:
    """How many GPUs one collective joins; 0: all."""
    listed = one.find(r"replica_groups=\{\{([\d,]*)\}")
    if listed:
        return len(listed.split(","))
    grid = one.find(r"replica_groups=\[([\d,]*)\]")
    if grid:
        return int(grid.split(",")[-1])
    mesh = dict(re.findall(r"'(\w+)'=(\d+)", one.find(r"replica_groups=mesh\[([^\]]*)\]")))
    joined = re.findall(r"'(\w+)'", one.find(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}"))
    return math.prod(int(mesh[axis]) for axis in joined if axis in mesh) if joined else 0
