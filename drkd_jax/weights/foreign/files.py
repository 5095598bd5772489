"""The arrays of a foreign file by their paths from its root, whatever the file's form.

| form | how it begins |
|---|---|
| torch.save, since torch 1.6 | a zip file |
| torch.save, before | a pickle of a magic number |
| a pickle of NumPy arrays (Detectron2's model zoo) | a pickle of a dict |
| safetensors | 8 bytes that count a JSON header |
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from drkd_jax.errors import UserError
from drkd_jax.weights.checksums import check_file
from drkd_jax.weights.foreign.pickled_names import Block, Tensor
from drkd_jax.weights.foreign.torch_file import DAMAGED, Saved, read_torch_file

_DEEPEST = 6  # most nested dicts around a model's own
_LONGEST = 1000  # letters of a path; a model's have less than a hundred
_AGAIN = "not the weights; download the file again"
# First bytes, and the format that begins with them.
_BEGINNINGS = (
    (b"\x89PNG", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"GIF8", "an image (GIF)"),
    (b"BM", "an image (BMP)"),
    (b"II*\x00", "an image (TIFF)"),
    (b"MM\x00*", "an image (TIFF)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf", "an archive (7z); unpack it first"),
    (b"Rar!", "an archive (RAR); unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?), which is not read"),
    (b"GGUF", "a GGUF file, which is not read"),
    (b"\x93NUMPY", "a single NumPy array, no weights by name"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"FLV", "a video (FLV)"),
    (b"OggS", "a video or sound (Ogg)"),
    (b"\x00\x00\x01\xba", "a video (MPEG)"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)"),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (WMV)"),
    (b'\x04"M\x18', "compressed by lz4; unpack it first"),
    (b"#!", "a script"),
)
_LFS = (b"version https://git-lfs", b"version https://hawser")
# The same for formats whose signature is not at the first byte.
_WITHIN = (
    (4, b"TFL3", "a model of TensorFlow Lite, which is not read"),
    *((4, kind, "a video (QuickTime)") for kind in (b"moov", b"mdat", b"wide", b"free")),
    (4, b"pytorch", "an ONNX model, which is not read; save the state_dict"),
)


class ForeignFile(NamedTuple):
    """A file's arrays by their paths, and its other content."""

    arrays: dict[str, np.ndarray]
    meta: Mapping[str, Any]  # plain values, unchecked
    form: str  # "zip", "legacy", "pickle" or "safetensors"
    left_out: Mapping[str, str]  # paths of values that are not arrays, and what they are
    inert: tuple[str, ...]  # names of objects that were not built

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array."""
        return {key: tuple(array.shape) for key, array in self.arrays.items()}


def read_foreign(path: Path) -> ForeignFile:
    """Reads a file of torch.save, a pickle of arrays or a safetensors file.

    Raises:
        UserError: it cannot be read, has another format, would run code, or has no weights.
    """
    if what := what_it_is(path):
        raise UserError(f"{path}: {what}")
    found = _of_torch(path, read_torch_file(path)) if not is_safetensors(path) else _safe(path)
    if not found.arrays:
        raise UserError(f"{path}: holds no weights: no array at any depth")
    return found


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like one of safetensors.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    # The header's size must be plausible; the first letters of a text would be far too large.
    size = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and size < 1 << 40


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked_name(path: Path, digest: str) -> str:
    """Whether the hash agrees with the one that both libraries put into a file's name."""
    found = re.search(r"-([0-9a-f]{8})\.(pth|pt)$", path.name)
    if not found:
        return "the name holds no hash"
    return "as its name says" if digest.startswith(found[1]) else f"its name says {found[1]}"


def _of_torch(path: Path, saved: Saved) -> ForeignFile:
    root = saved.content
    if not isinstance(root, dict):
        raise UserError(
            f"{path}: holds no dict of weights but a {type(root).__name__}; save the model's "
            "state_dict alone"
        )
    arrays: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    seen: set[int] = set()
    todo: list[tuple[str, dict[Any, Any], int]] = [("", root, 0)]
    while todo:
        start, place, depth = todo.pop(0)
        if id(place) in seen or depth > _DEEPEST:
            continue
        seen.add(id(place))
        others = {}
        for key, value in place.items():
            if len(start) + _letters(key) > _LONGEST:
                raise UserError(
                    f"{path}: refused: a name of more than {_LONGEST} letters, which no model has"
                )
            name = f"{start}{key}"
            if isinstance(value, Tensor) or (isinstance(value, Block) and value.dtype is not None):
                if name in arrays:
                    raise UserError(f"{path}: refused: two arrays are called {name}")
                arrays[name] = saved.array(value)
            elif isinstance(value, dict):
                todo.append((f"{name}.", value, depth + 1))
            else:
                others[name[:80]] = f"no array but a {type(value).__name__}"
        if len(others) < len(place) and start:
            left_out |= others
    meta = _meta(root)
    beside = {key: value for key, value in root.items() if isinstance(key, str)}
    return ForeignFile(
        arrays, meta if isinstance(meta, dict) else beside, saved.form, left_out, saved.inert
    )


def _letters(key: Any) -> int:
    """The length of a key as text; a short file can reuse one long text in many keys."""
    if isinstance(key, tuple):
        return sum(map(_letters, key))
    return len(key) if isinstance(key, (str, bytes)) else 0


def _meta(root: dict[Any, Any]) -> Any:
    """The dict "meta" of a checkpoint, which may itself be inside another dict."""
    places = [root]
    for _ in range(_DEEPEST):
        for place in places:
            if isinstance(place.get("meta"), dict):
                return place["meta"]
        inner = {id(v): v for place in places for v in place.values() if isinstance(v, dict)}
        places = list(inner.values())
    return None


def _safe(path: Path) -> ForeignFile:
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            meta = stream.metadata() or {}
    except AttributeError as error:  # NumPy has no type of that name
        raise UserError(
            f"{path}: holds numbers of a kind that is not read ({error}); save it in float32, "
            "float16 or bfloat16"
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); cut short? Download it again"
        ) from error
    try:
        check_file(arrays, meta)  # of `convert --to`
    except ValueError as error:
        raise UserError(f"{path}: {error}; copy it again") from error
    return ForeignFile(arrays, meta, "safetensors", {}, ())


def what_it_is(path: Path) -> str:
    """What a file is, if it certainly has no weights; "" if it may have some.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        if path.is_dir():
            return "a folder; name a file in it, or the work folder of a run"
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(2048)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not size:
        return "an empty file; download it again"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= size - 8:
        return ""  # safetensors: its first bytes, a size, may be any
    head = head.removeprefix(b"\xef\xbb\xbf")
    if b"/annex/objects/" in head[:200] and size < 2048:
        return "a git-annex pointer to the weights, not the weights; run: git annex get"
    if head.startswith(b"outs:") and b"md5:" in head:
        return "a DVC pointer to the weights, not the weights; run: dvc pull"
    if head.startswith(_LFS):
        size_line = next((line for line in head.split(b"\n") if line.startswith(b"size ")), b"")
        there = size_line.removeprefix(b"size ").decode("ascii", "replace").strip()
        of = f" of {there} bytes" if there else ""
        return f"a Git LFS pointer to the weights{of}, not the weights; run: git lfs pull"
    for start, what in _BEGINNINGS:
        if head.startswith(start):
            return what
    for place, start, what in _WITHIN:
        if head[place : place + len(start)] == start:
            return what
    if head[:4] == b"RIFF":
        return "an image (WebP)" if head[8:12] == b"WEBP" else "a video or sound (RIFF)"
    if head[4:8] == b"ftyp":
        return "an image (AVIF or HEIC) or a video (MP4)"
    if head[257:262] == b"ustar":
        return "a tar file: unpack it, or, of torch before 0.1.10, save it with a newer torch"
    if head[:2] == b"PK":
        return _zip(path)
    if not head.strip(b"\x00"):
        return "only zeros in what was read of it; its download did not finish"
    return _text(path, head, size)


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGED:
        return ""  # truncated or damaged, which its reader reports
    ends = [name.rsplit("/", 1)[-1] for name in names]
    if "data.pkl" in ends or "constants.pkl" in ends:
        return ""
    if not names:
        return "an empty zip file"
    if all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz), which is not read; save it as safetensors"
    if any(end in ("config.json", "metadata.json") for end in ends) and any(
        end.endswith(".h5") for end in ends
    ):
        return "a model of Keras, which is not read"
    inside = next((name for name in names if name.endswith((".pth", ".pt", ".safetensors"))), "")
    if inside:
        return f"a zip archive around {inside}; unpack it first"
    return f"a zip file that torch.save did not write (no data.pkl; it holds {names[0]!r}" + (
        f" and {len(names) - 1} others)" if len(names) > 1 else ")"
    )


def _text(path: Path, head: bytes, size: int) -> str:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head[: len(head) // 2 * 2].decode("utf-16", "replace").encode()
    try:
        words = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return ""
        words = head[: error.start].decode("utf-8-sig", "replace")
    if any(ord(letter) < 9 for letter in words):
        return ""
    start = words.lstrip().lower()
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in start):
        return "an image (SVG)"
    if start.startswith("<?xml") and "<net " in start:
        return "a network of OpenVINO, which is not read"
    if start.startswith("<?xml") and "<html" not in start:
        return f"an XML document (an error of the server?), {_AGAIN}"
    if start.startswith("<"):
        return f"a web page (HTML), {_AGAIN}"
    if start[:1] in ("{", "["):
        if '"weight_map"' in words:
            return "the index of a model in several safetensors files; join them into one"
        try:
            json.loads(path.read_text("utf-8-sig") if size < 1 << 26 else "")
            return "a JSON document, no weights"
        except (ValueError, OSError, RecursionError):
            return "text that begins as JSON does, no weights"
    first = words.strip().splitlines()[0][:60] if words.strip() else ""
    printable = sum(letter.isprintable() or letter in "\r\n\t" for letter in words)
    if printable == len(words) and len(words) > 8:
        if path.suffix == ".py":
            return "a Python file, no weights; name the checkpoint (.pth) that belongs to it"
        return f"text ({first!r}), no weights"
    return ""
