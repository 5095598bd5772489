"""Reads a pickle as data: a small stack machine that builds plain values and runs no code.

Python's own unpickler imports and calls whatever a file names. This one does neither: it accepts
only the names of `pickled_names`, and stops at any other.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable
from typing import Any

from drkd_jax.weights.foreign.pickled_names import (
    BUILDERS,
    DTYPES,
    FARTHEST,
    INERT,
    Block,
    Config,
    Inert,
    Kind,
    Name,
    NotPlainError,
    Storage,
    Tensor,
    plain_key,
)

_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: Any, inert: set[str]) -> Any:
    """Reads one pickle and leaves the stream positioned after it.

    Args:
        stream: with `read`, `readline` and `tell`; read exactly to the pickle's end.
        inert: receives the names that became `Inert`.

    Returns:
        dicts, lists, tuples, sets, numbers, strings, bytes, None, `Tensor`, `Block`, `Inert`.

    Raises:
        NotPlainError: a name is in no table, or the bytes are not a valid pickle.
    """
    machine, start = _Machine(inert), stream.tell()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.read = stream.tell() - start
            machine.step(opcode.name, argument)
    except NotPlainError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise NotPlainError(f"its pickle is broken ({error})") from error
    raise NotPlainError("its pickle has no end")


class _Machine:
    def __init__(self, inert: set[str]):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.inert = inert
        self.handled = 0  # letters, bytes and items passed to calls
        self.read = 0  # bytes of the stream so far

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction."""
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise NotPlainError("its pickle takes more than it holds")
            stack[-count:] = [tuple(stack[-count:])]
        elif do := getattr(self, f"_do_{name.lower()}", None):
            do(argument)
        elif name not in ("PROTO", "FRAME"):
            raise NotPlainError(f"the pickle instruction {name}, which no checkpoint needs")

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _do_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _do_pop(self, _: Any) -> None:
        self.stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._marked()

    def _do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _do_list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _do_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(plain_key, self._marked())))

    def _do_dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append({})
        self._set(items)

    def _do_setitem(self, _: Any) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set(items)

    def _do_setitems(self, _: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict):
            raise NotPlainError("keys that are put into something else than a dict")
        target.update(zip(map(plain_key, items[::2]), items[1::2], strict=True))

    def _do_append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._marked())

    _do_additems = _do_appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(plain_key, items))
        elif not isinstance(target, Inert):
            raise NotPlainError("items that are put into something else than a list or a set")

    def _do_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _do_binget = _do_long_binget = _do_get

    def _do_global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _do_stack_global(self, _: Any) -> None:
        module, name = self.stack[-2:]
        del self.stack[-2:]
        self._push_name(module, name)

    def _push_name(self, module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise NotPlainError("a name that is no string")
        name = f"{module}.{attribute}"
        kind = name.removeprefix("torch.").removeprefix("cuda.")
        if name in INERT:
            self.inert.add(name)
            self.stack.append(Inert(name))
        elif name in BUILDERS or (name.startswith("torch.") and kind in DTYPES):
            self.stack.append(Name(kind if kind in DTYPES else name))
        else:
            raise NotPlainError(
                f"it asks for {name[:120]}, which is no tensor, dict, number or string; "
                "save the state_dict of a model, and none of its objects"
            )

    def _do_inst(self, argument: str) -> None:
        arguments = tuple(self._marked())
        self._push_name(*argument.split(" ", 1))
        self._apply(arguments)

    def _do_obj(self, _: Any) -> None:
        first, *arguments = self._marked()
        self.stack.append(first)
        self._apply(tuple(arguments))

    def _do_reduce(self, _: Any) -> None:
        self._apply(self.stack.pop())

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        if self.stack.pop():
            raise NotPlainError("an object made with named arguments")
        self._apply(self.stack.pop())

    def _apply(self, arguments: Any) -> None:
        target = self.stack.pop()
        if isinstance(target, Inert):
            self.stack.append(target)
        elif isinstance(target, Name) and target.name in BUILDERS:
            self._count(arguments)
            self.stack.append(BUILDERS[target.name](*arguments))
        else:
            raise NotPlainError("a call of something that is no function")

    def _count(self, arguments: Any) -> None:
        """Stops at a file that passes the same data to calls over and over, each time a copy."""
        self.handled += sum(len(item) for item in arguments if hasattr(item, "__len__"))
        if self.handled > 4 * self.read + 10_000:
            raise NotPlainError("calls that copy what it holds over and over")

    def _do_build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (Block, Kind, Config)):
            self._count(state if isinstance(state, tuple) else ())
            target.complete(state)
        # Otherwise these are attributes: a state_dict stores its version numbers in them.
        elif not isinstance(target, (dict, Inert, Tensor)):
            raise NotPlainError("attributes that are set on a plain value")

    def _do_persid(self, argument: Any) -> None:
        raise NotPlainError(f"the foreign object {reprlib.repr(argument)}")

    def _do_binpersid(self, _: Any) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise NotPlainError("a foreign object that is no storage")
        _, kind, key, _place, size, *view = identity
        if not isinstance(kind, Name) or kind.name not in DTYPES:
            raise NotPlainError("a storage of unknown type")
        if not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise NotPlainError("a storage without name or size")
        if size > FARTHEST:  # a number that could not even be printed, perhaps
            raise NotPlainError("a storage that no memory could hold")
        part = None
        if view and view[0] is not None:
            _, first, count = view[0]
            if min(int(first), int(count), size - int(first) - int(count)) < 0:
                raise NotPlainError("a storage that reaches past the one that it is part of")
            part = (int(first), int(count))
        self.stack.append(Storage(key, DTYPES[kind.name], size, part))
