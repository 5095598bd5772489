"""Reads files of torch.save without torch: the zip form, the form before torch 1.6, and pickles.

Numbers are not copied: every array is a view of the memory-mapped file.

Source: pytorch/pytorch torch/serialization.py (`_save`, `_legacy_save`), torch/_utils.py.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.weights.foreign.pickled_names import Block, NotPlainError, Storage, Tensor
from drkd_jax.weights.foreign.unpickler import read_pickle

# What Python's zipfile raises for a truncated or damaged file.
DAMAGED = (
    *(zipfile.BadZipFile, struct.error, ArithmeticError, EOFError, NotImplementedError),
    *(OSError, ValueError),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LARGEST_PICKLE = 1 << 28  # bytes; a detector's has some 100 kB


class Saved(NamedTuple):
    """A file's content: plain values, with a `Tensor` for each array, and the arrays' bytes."""

    content: Any
    buffers: Mapping[str, np.ndarray]  # bytes of each storage
    big_endian: bool
    form: str  # "zip", "legacy" or "pickle"
    inert: tuple[str, ...]  # names of objects that were not built

    def array(self, tensor: Tensor | Block) -> np.ndarray:
        """The numbers of a tensor as a read-only view of the file."""
        if isinstance(tensor, Block):
            return tensor.array()
        storage = tensor.storage
        dtype = storage.dtype.newbyteorder(">") if self.big_endian else storage.dtype
        flat = self.buffers[storage.key][: storage.size * dtype.itemsize].view(dtype)
        if storage.view is not None:
            first, count = storage.view
            flat = flat[first : first + count]
        strides = [step * dtype.itemsize for step in tensor.strides]
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], tensor.shape, strides, writeable=False
        )


def read_torch_file(path: Path) -> Saved:
    """Reads a file of torch.save, or a pickle of NumPy arrays.

    Raises:
        UserError: it cannot be read, is truncated, or has anything but tensors, containers,
            numbers and strings; the reading of such a file stops there.
    """
    try:
        with path.open("rb") as stream:
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is empty"
        raise UserError(f"{path}: cannot be read ({reason})") from error
    try:
        return _read_zip(whole, path) if whole[:2] == b"PK" else _read_legacy(whole)
    except NotPlainError as error:
        raise UserError(f"{path}: refused: {error}") from error


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename: entry for entry in archive.infolist()}
    except DAMAGED as error:
        raise NotPlainError(f"cut short or damaged ({error})") from error


def _read_zip(whole: mmap.mmap, path: Path) -> Saved:
    data, entries = np.frombuffer(whole, np.uint8), _entries(path)
    pickles = [name for name in entries if name.split("/")[-1] == "data.pkl"]
    if any(name.split("/")[-1] == "constants.pkl" for name in entries):
        raise NotPlainError("a TorchScript program; save the state_dict of the model instead")
    if len(pickles) != 1:
        raise NotPlainError("a zip file that torch.save did not write")
    root = pickles[0].removesuffix("data.pkl")
    spans = {name: _span(entry, data) for name, entry in entries.items()}

    def content(name: str) -> bytes:
        start, size = spans[name]
        if size > LARGEST_PICKLE:
            raise NotPlainError(f"{name} has {size} bytes; no checkpoint's has")
        return data[start : start + size].tobytes()

    inert: set[str] = set()
    value = read_pickle(io.BytesIO(content(pickles[0])), inert)
    order = content(root + "byteorder") if root + "byteorder" in spans else b"little"
    if order not in (b"little", b"big"):
        raise NotPlainError(f"the byte order {order[:20]!r}")
    buffers = {}
    storages = _storages(value)
    for storage in storages:
        name = f"{root}data/{storage.key}"
        if name in spans:
            start, size = spans[name]
            buffers[storage.key] = data[start : start + size]
    _check(storages, buffers)
    return Saved(value, buffers, order == b"big", "zip", tuple(sorted(inert)))


def _span(entry: zipfile.ZipInfo, data: np.ndarray) -> tuple[int, int]:
    """First byte and size of an entry, which torch.save never compresses."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise NotPlainError(f"{entry.filename} is compressed, which torch.save never does")
    head = data[entry.header_offset : entry.header_offset + 30].tobytes()
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise NotPlainError(f"damaged: {entry.filename} is not where it should be")
    name_size, extra_size = struct.unpack("<HH", head[26:30])
    start = entry.header_offset + 30 + name_size + extra_size
    if start + entry.file_size > len(data):
        raise NotPlainError(f"cut short: {entry.filename} reaches past its end")
    return start, entry.file_size


def _read_legacy(whole: mmap.mmap) -> Saved:
    inert: set[str] = set()
    whole.seek(0)
    magic = read_pickle(whole, inert) if whole[:1] == b"\x80" else None
    if isinstance(magic, dict) and whole.tell() == len(whole):  # Detectron2's model zoo
        return Saved(magic, {}, False, "pickle", tuple(sorted(inert)))
    if magic != LEGACY_MAGIC:
        raise NotPlainError("neither a file of torch.save nor safetensors")
    protocol = read_pickle(whole, inert)
    if protocol != LEGACY_PROTOCOL:
        raise NotPlainError(f"written in a form other than {LEGACY_PROTOCOL}, the known one")
    read_pickle(whole, inert)  # describes the writing machine; numbers are little-endian on all
    value = read_pickle(whole, inert)
    keys = read_pickle(whole, inert)
    if not isinstance(keys, list):
        raise NotPlainError("its list of storages is none")
    storages = _storages(value)
    wanted: dict[Any, Storage] = {storage.key: storage for storage in storages}
    data, position = np.frombuffer(whole, np.uint8), whole.tell()
    buffers = {}
    for key in keys:
        if not isinstance(key, str) or key not in wanted:
            raise NotPlainError("a storage that no tensor uses")
        storage = wanted[key]
        size = storage.size * storage.dtype.itemsize
        start = position + 8
        if start + size > len(data):
            raise NotPlainError(
                f"cut short: storage {key} reaches {start + size - len(data)} bytes past its end"
            )
        (count,) = struct.unpack("<q", data[position:start].tobytes())
        if count != storage.size:
            raise NotPlainError(f"damaged: storage {key} has {count} numbers, not {storage.size}")
        buffers[storage.key] = data[start : start + size]
        position = start + size
    _check(storages, buffers)
    return Saved(value, buffers, False, "legacy", tuple(sorted(inert)))


def _storages(value: Any) -> list[Storage]:
    """Every storage that a tensor uses; containers may contain one another in cycles."""
    found: list[Storage] = []
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            found.append(item.storage)
        elif isinstance(item, (dict, list, tuple, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            todo += item.values() if isinstance(item, dict) else item
    return found


def _check(storages: list[Storage], buffers: Mapping[str, np.ndarray]) -> None:
    """Checks that every storage in the file is as large as the tensors require."""
    for key, dtype, size, _ in storages:
        if key not in buffers:
            raise NotPlainError(f"cut short: storage {key[:40]} is not in it")
        if len(buffers[key]) < size * dtype.itemsize:
            raise NotPlainError(
                f"storage {key[:40]} has {len(buffers[key])} bytes, too few for {size} {dtype}"
            )
