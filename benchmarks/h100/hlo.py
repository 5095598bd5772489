"""Reads the text of an optimised HLO module: computations, instructions and their origin.

The text is from `jax.stages.Compiled.as_text()`. This module does not need JAX.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property

from drkd_jax.errors import UserError

_BITS = {
    **dict.fromkeys(("token", "opaque"), 0),
    **dict.fromkeys(("s4", "u4"), 4),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 8),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: the name of its type, and its dimensions."""

    kind: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return -(-self.elements * _BITS.get(self.kind, 0) // 8)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A line of Python that an instruction comes from."""

    file: str
    function: str
    line: int


@dataclasses.dataclass
class Instruction:
    """One line of a computation.

    Attributes:
        name: its name without the per cent sign.
        opcode: such as `fusion` or `dot`.
        shapes: shapes of the result; several for a tuple.
        operands: names of the operands.
        argument: the text in the brackets; for a parameter its number.
        attributes: the rest of the line.
        is_root: whether it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    @cached_property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(shape.size for shape in self.shapes)

    @cached_property
    def elements(self) -> int:
        """Number of elements of the result."""
        return sum(shape.elements for shape in self.shapes)

    def find(self, pattern: str) -> str:
        """The first group of a pattern in the attributes, or ""."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    def called(self, key: str) -> str:
        """The computation named by an attribute, or ""."""
        return self.find(rf"\b{key}=%?([\w.\-]+)")

    @property
    def op_name(self) -> str:
        """JAX's own path of the operation."""
        return self.find(r'op_name="([^"]*)"')


@dataclasses.dataclass
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: list[Instruction]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {one.name: one for one in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read an instruction, by its name."""
        found: dict[str, list[Instruction]] = {one.name: [] for one in self.instructions}
        for one in self.instructions:
            for operand in dict.fromkeys(one.operands):
                found.get(operand, []).append(one)
        return found

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        return {int(one.argument): one for one in self.instructions if one.opcode == "parameter"}

    @cached_property
    def root(self) -> Instruction:
        """Its result."""
        return next(one for one in self.instructions if one.is_root)

    def operands(self, one: Instruction) -> Iterator[Instruction]:
        """The operands of an instruction that belong to this computation."""
        return (self.by_name[name] for name in one.operands if name in self.by_name)


class Module:
    """A whole program.

    Attributes:
        computations: by name.
        entry: the computation that is run.
        gpus: the number of GPUs that run it together.
    """

    def __init__(
        self,
        computations: dict[str, Computation],
        entry: str,
        tables: dict[str, dict],
        gpus: int = 1,
    ):
        self.computations = computations
        self.entry = computations[entry]
        self.gpus = gpus
        self._tables = tables
        self._stacks: dict[int, tuple[Frame, ...]] = {}

    def stack(self, one: Instruction) -> tuple[Frame, ...]:
        """The lines of Python that an instruction comes from, innermost first; () if unknown."""
        number = int(one.find(r"stack_frame_id=(\d+)") or 0)
        if number:
            return self._stack(number)
        file = one.find(r'source_file="([^"]*)"')
        return (Frame(file, "", int(one.find(r"source_line=(\d+)") or 0)),) if file else ()

    def _stack(self, number: int) -> tuple[Frame, ...]:
        if number not in self._stacks:
            found = self._tables["StackFrames"].get(number)
            if found is None:
                return ()
            # Parents are numbered from 1; the frame's own number means that it has none.
            parent = _field(found, "parent_frame_id") - 1
            outer = self._stack(parent) if 0 < parent < number else ()
            self._stacks[number] = (self._frame(_field(found, "file_location_id")), *outer)
        return self._stacks[number]

    def _frame(self, number: int) -> Frame:
        place = self._tables["FileLocations"][number]
        file = self._tables["FileNames"][_field(place, "file_name_id")]
        function = self._tables["FunctionNames"][_field(place, "function_name_id")]
        return Frame(file.strip('"'), function.strip('"'), _field(place, "line"))


def read_module(text: str, where: str = "the text") -> Module:
    """Reads a module.

    Args:
        text: the text of an optimised HLO module.
        where: the source of the text, for messages.

    Raises:
        UserError: it is not a module.
    """
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    entry, table, current, gpus = "", None, None, 1
    for line in text.splitlines():
        if current is not None:
            if line.startswith("}"):
                current = None
                continue
            found = _INSTRUCTION.match(line)
            if found:
                current.instructions.append(_instruction(found))
            continue
        if line.startswith("HloModule "):
            gpus = max(1, _field(line, "num_partitions"))
        elif line in tables:
            table = tables[line]
        elif table is not None and line[:1].isdigit():
            number, _, value = line.partition(" ")
            table[int(number)] = value
        elif header := _HEADER.match(line):
            table, current = None, Computation(header[2], [])
            computations[header[2]] = current
            entry = header[2] if header[1] else entry
        elif line:
            table = None
    if not entry:
        raise UserError(
            f"{where}: no HLO module; it should be the text of a compiled program, as "
            "--hlo=FOLDER writes it"
        )
    return Module(computations, entry, tables, gpus)


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Parses the arrays of a type, such as ``(f32[2,3]{1,0}, s32[])``."""
    return tuple(
        Shape(kind, tuple(int(side.lstrip("<=")) for side in dims.split(",") if side))
        for kind, dims in _SHAPE.findall(text)
        if kind in _BITS
    )


def _instruction(found: re.Match[str]) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", found[3])
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : end - 1]
    return Instruction(
        name=found[2],
        opcode=opcode,
        shapes=read_shapes(kind),
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)) if opcode != "constant" else (),
        argument=argument,
        attributes=rest[end:],
        is_root=bool(found[1]),
    )


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _field(text: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", text)
    return int(found[1]) if found else 0
