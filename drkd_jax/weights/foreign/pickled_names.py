"""The names that a pickle may refer to, and how their objects are built, or why they are not.

`unpickler` looks up every name of a file here. Objects in `BUILDERS` are built by functions of this
file; those in `INERT` are bookkeeping that real checkpoints have beside their weights, and become
empty markers; every other name ends the reading.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class NotPlainError(Exception):
    """The file asks for something other than tensors, containers, numbers and strings."""


class Inert(NamedTuple):
    """A marker in place of an object that is not needed; nothing was built."""

    name: str


class Storage(NamedTuple):
    """A contiguous block of numbers that tensors refer to; `view` is a part of another storage."""

    key: str
    dtype: np.dtype[Any]
    size: int  # numbers
    view: tuple[int, int] | None = None  # first number and count, within the storage of `key`


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The position of a tensor's numbers in its storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class Kind:
    """A NumPy dtype, which its pickle completes in a second step."""

    dtype: np.dtype[Any] | None  # None: not numeric

    def complete(self, state: Any) -> None:
        """Sets the byte order from a pickled dtype's state."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.dtype is not None and order in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(order)
        elif order not in ("<", ">", "=", "|"):
            self.dtype = None


@dataclasses.dataclass
class Block:
    """The numbers of a pickled NumPy array, as bytes until `array` is called."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None
    data: bytes = b""
    by_columns: bool = False

    def complete(self, state: Any) -> None:
        """Sets a pickled array's state: version, shape, dtype, order, bytes.

        An array of objects or text stays empty, since it cannot hold weights.

        Raises:
            NotPlainError: the bytes do not fill the array.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise NotPlainError("a NumPy array in an unknown form")
        _, shape, kind, by_columns, data = state
        self.fill(data, kind, shape, bool(by_columns))

    def fill(self, data: Any, kind: Any, shape: Any, by_columns: bool) -> None:
        """Checks and stores the parts of an array."""
        if isinstance(data, str):  # of Python 2, or of protocol 2
            data = data.encode("latin-1")
        sizes = _whole(shape)
        dtype = kind.dtype if isinstance(kind, Kind) else None
        if dtype is None or not isinstance(data, (bytes, bytearray)):
            return
        if min((*sizes, 0)) < 0 or math.prod(sizes) * dtype.itemsize != len(data):
            raise NotPlainError(f"a NumPy array of shape {sizes} with {len(data)} bytes")
        self.shape, self.dtype, self.by_columns = sizes, dtype, by_columns
        self.data = bytes(data) if isinstance(data, bytearray) else data

    def array(self) -> np.ndarray:
        """The array, read-only."""
        if self.dtype is None:
            return np.zeros(0, np.float32)
        flat = np.frombuffer(self.data, self.dtype)
        return flat.reshape(self.shape, order="F" if self.by_columns else "C")


class Config(dict[Any, Any]):
    """The values of a pickled `Config` of mmcv or mmengine."""

    def complete(self, state: Any) -> None:
        """Sets the values; the state also has the file's name and text after them."""
        if isinstance(state, tuple) and state and isinstance(state[0], dict):
            self.update(state[0])


# Most dimensions of arrays, and items of tuples that are keys.
_DIMENSIONS = 64
FARTHEST = 1 << 58
_KEY = 16

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

# Histories of losses, NumPy scalars, the arguments of a training script.
INERT = frozenset(
    {
        "argparse.Namespace",
        "collections.Counter",
        "collections.deque",
        "easydict.EasyDict",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.ndarray",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
        "torch.device",
        "types.SimpleNamespace",
        "typing.Any",
    }
    | {f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")}
    | {  # names in the pickle of a `DictConfig`
        f"omegaconf.{name}"
        for name in (
            *("base.ContainerMetadata", "base.Metadata", "dictconfig.DictConfig"),
            *("listconfig.ListConfig", "nodes.AnyNode", "nodes.BooleanNode", "nodes.EnumNode"),
            *("nodes.FloatNode", "nodes.IntegerNode", "nodes.PathNode", "nodes.StringNode"),
        )
    }
    | {
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in (
            *("bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "long"),
            *("set", "slice", "str", "tuple"),
        )
    }
    | {  # Python 3.13 has them in a submodule
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    }
    | {f"numpy.dtypes.{name}DType" for name in ("Bool", "Float32", "Float64", "Int32", "Int64")}
    | {f"torch.{name}" for name in ("bfloat16", "float16", "float32", "float64", "int64")}
)


class Name(NamedTuple):
    """A name of `BUILDERS` or of the storage types, on the stack before it is applied."""

    name: str


def _tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise NotPlainError("a tensor without a storage")
    sizes, steps = _whole(shape), _numbers(strides)
    offset, held = int(offset), storage.view[1] if storage.view else storage.size
    if len(sizes) != len(steps) or offset < 0 or min((*sizes, *steps, 0)) < 0:
        raise NotPlainError(f"a tensor of shape {sizes} with strides {steps} at {offset}")
    count = math.prod(sizes)
    reach = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) + 1
    if count and (reach > held or count > held):
        raise NotPlainError(
            f"a tensor of shape {sizes} that needs {max(reach, count)} numbers of a storage of "
            f"{held}"
        )
    return Tensor(storage, offset, sizes, steps)


def _whole(sides: Any) -> tuple[int, ...]:
    """The shape of an array, checked for a valid number of dimensions and valid sizes."""
    found = _numbers(sides)
    if math.prod(max(n, 1) for n in found) > FARTHEST:
        raise NotPlainError("an array that no memory could hold")
    return found


def _numbers(numbers: Any) -> tuple[int, ...]:
    """A shape or the strides of an array."""
    if len(numbers) > _DIMENSIONS:
        raise NotPlainError(f"an array of {len(numbers)} dimensions")
    found = tuple(int(n) for n in numbers)
    if any(abs(n) > FARTHEST for n in found):
        raise NotPlainError("an array that no memory could hold")
    return found


def _mapping(items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {plain_key(key): value for key, value in pairs}


def plain_key(item: Any) -> Any:
    """Checks a key of a dict or a member of a set: deep nesting could crash hashing."""
    if isinstance(item, tuple) and not isinstance(item, Inert):
        flat = len(item) <= _KEY and not any(
            isinstance(part, (tuple, frozenset, Tensor)) or _is_long(part) for part in item
        )
    else:
        flat = not isinstance(item, (list, set, frozenset, dict, Tensor)) and not _is_long(item)
    if not flat:
        raise NotPlainError("a key that is neither a number nor a string")
    return item


def _is_long(item: Any) -> bool:
    """Whether a number would take long to hash repeatedly, or to print."""
    return isinstance(item, int) and item.bit_length() > 128


def _kind(name: Any = "", *_: Any) -> Kind:
    """A numeric dtype by its code, such as "f4"; arrays of other dtypes cannot be weights."""
    if isinstance(name, str) and (name[:1] in "fiub" and name[1:].isdigit()) and len(name) < 4:
        try:
            return Kind(np.dtype(name))
        except TypeError:
            return Kind(None)
    return Kind(None)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Decodes bytes as protocol 2 stores them: as text in a given encoding."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise NotPlainError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> Block:
    block = Block()
    block.fill(data, kind, shape, order == "F")
    return block


BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "numpy.dtype": _kind,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "addict.addict.Dict": _mapping,
    "mmcv.utils.config.ConfigDict": _mapping,
    "mmengine.config.config.ConfigDict": _mapping,
    "mmcv.utils.config.Config": lambda *_: Config(),
    "mmengine.config.config.Config": lambda *_: Config(),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}


def _attribute(target: Any, name: Any) -> Inert:
    """An attribute of an unbuilt object is not built either: histories store their own methods."""
    if not isinstance(target, Inert) or not isinstance(name, str):
        raise NotPlainError("it asks for getattr, on something that could have attributes")
    return Inert(target.name)


for _core in ("numpy.core", "numpy._core"):
    BUILDERS[f"{_core}.multiarray._reconstruct"] = lambda *_: Block()
    BUILDERS[f"{_core}.numeric._frombuffer"] = _from_buffer
# Protocol 2 writes empty bytes as a call without arguments.
BUILDERS |= {f"{module}.bytes": lambda: b"" for module in ("builtins", "__builtin__")}
BUILDERS |= {f"{module}.getattr": _attribute for module in ("builtins", "__builtin__")}
