"""The images that a user names: found in folders, read ahead by threads, grouped by canvas.

Letters: B images of a batch, H W pixels of an image.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from drkd_jax.data.batch import image_batch, placed
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.errors import UserError
from drkd_jax.types import Batch
from drkd_jax.words import counted

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif"),
    *(".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_LONGEST = 255  # bytes of a name, by most file systems
# How images begin, to recognise those without a usual extension.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")


# Marks a drawing as such, so that the next call does not use it as an image.
_MARK = b"tEXtSoftware\0drkd_jax predict"
_MARK_AT = 33  # after a PNG's first chunk


class Inputs(NamedTuple):
    """The images to process.

    Attributes:
        paths: the images, each file once.
        notes: messages about files that were left out.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def find_images(named: Sequence[str | Path], out: Path | None = None) -> Inputs:
    """The named files, and all images in the named folders.

    A named file is always used; in a folder and its subfolders only files that look like images,
    in the order of their paths. Hidden files and folders, and drawings of earlier calls, are left
    out; links to folders are followed, each folder once. The notes name unreadable folders.

    Args:
        named: files and folders.
        out: the folder of the results; if it is inside one of them, its drawings are left out.

    Raises:
        UserError: there are no images.
    """
    own = out.resolve() if out is not None else None
    paths: dict[str, Path] = {}
    notes: list[str] = []
    twice = 0
    for each in map(Path, named):
        files, aside, drawings = [each], 0, 0
        if each.is_dir():
            files = []
            skip = own if own is not None and own != each.resolve() else None
            for path in _walk(each, skip, notes):
                if _is_drawing(path):
                    drawings += 1
                elif _looks_like_image(path):
                    files.append(path)
                else:
                    aside += 1
            if not files:
                notes.append(f"{each}: holds no image")
        if aside:
            notes.append(f"{each}: {counted(aside, 'file', 'are left out (no image)')}")
        if drawings:
            notes.append(f"{each}: {counted(drawings, 'earlier drawing', 'are left out')}")
        for path in files:
            twice += paths.setdefault(os.path.abspath(path), path) is not path
    if twice:
        notes.append(f"{counted(twice, 'file', 'are named more than once, and used once')}")
    if not paths:
        raise UserError("; ".join(notes) or "no image is named")
    return Inputs(tuple(paths.values()), tuple(notes))


def drawing_names(paths: Sequence[Path], out: Path) -> list[str]:
    """A file name in `out` for the drawing of each image: STEM.png, or STEM_2.png and so on.

    All are different, even on a file system that ignores case or composes letters differently, and
    none is the name of an image to be read or of another file in `out`, except drawings of an
    earlier call. Stems that are too long are shortened.
    """
    room = _LONGEST - len(f"_{len(paths) + 1}.png")
    stems = [shortened(path.stem, room) for path in paths]
    keys = [_key(stem) for stem in stems]
    folder = out.resolve()
    inside = {parent for parent in {path.parent for path in paths} if parent.resolve() == folder}
    taken = {_key(path.name) for path in paths if path.parent in inside}
    count: dict[str, int] = {}
    for key in keys:
        count[key] = count.get(key, 0) + 1

    def is_taken(name: str) -> bool:
        return _key(name) in taken or _would_be_lost(out / name)

    # A stem that only one image has is kept, whatever the other names.
    single = [(stem, key) for stem, key in zip(stems, keys, strict=True) if count[key] == 1]
    free = {key for stem, key in single if not is_taken(f"{stem}.png")}
    taken |= {f"{key}.png" for key in free}
    number: dict[str, int] = {}
    names = []
    for stem, key in zip(stems, keys, strict=True):
        name = f"{stem}.png"
        while key not in free and is_taken(name):
            number[key] = number.get(key, 1) + 1
            name = f"{stem}_{number[key]}.png"
        taken.add(_key(name))
        names.append(name)
    return names


def shortened(stem: str, room: int) -> str:
    """A stem shortened to at most `room` bytes, cut between characters."""
    data = os.fsencode(stem)
    if len(data) <= room:
        return stem
    while data[room] & 0xC0 == 0x80:  # inside a UTF-8 character
        room -= 1
    return os.fsdecode(data[:room])


def marked(png: bytes) -> bytes:
    """A PNG with the mark of our drawings."""
    crc = zlib.crc32(_MARK).to_bytes(4, "big")
    chunk = (len(_MARK) - 4).to_bytes(4, "big") + _MARK + crc
    return png[:_MARK_AT] + chunk + png[_MARK_AT:]


def mark(drawing: Path) -> None:
    """Adds the mark of our drawings to a PNG on the disk.

    Raises:
        OSError: it cannot be read or written.
    """
    drawing.write_bytes(marked(drawing.read_bytes()))


class ReadImage(NamedTuple):
    """An image that was read, or why it could not be.

    Attributes:
        position: its index among all images.
        image: RGB; None if there is a fault.
        fault: a message, or "".
    """

    position: int
    image: UInt8[np.ndarray, "H W 3"] | None
    fault: str = ""


def read_images(
    paths: Sequence[Path],
    decode: Callable[[bytes, str], np.ndarray],
    threads: int = 4,
    ahead: int = 16,
) -> Iterator[ReadImage]:
    """Reads images in their order, some of them ahead; a broken one does not stop it.

    Args:
        paths: paths of the files.
        decode: converts a file's bytes and its name to RGB.
        threads: number of reading threads; 0 reads in the caller's.
        ahead: the most images held in memory.
    """

    def read(index: int) -> ReadImage:
        path = paths[index]
        try:
            return ReadImage(index, decode(path.read_bytes(), str(path)))
        except OSError as error:
            return ReadImage(index, None, f"{path}: cannot be read ({error.strerror or error})")
        except (UserError, MemoryError) as error:
            return ReadImage(index, None, str(error) or f"{path}: not enough memory for it")

    if not threads:
        yield from map(read, range(len(paths)))
        return
    waiting: deque[Future[ReadImage]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(len(paths)):
                waiting.append(pool.submit(read, index))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batched(
    read: Iterable[ReadImage], config: PipelineConfig
) -> Iterator[tuple[Batch, list[ReadImage]]]:
    """Batches of one canvas each, as soon as one is full; the last ones may not be.

    Args:
        read: images without a fault.
        config: canvases, sizes and the images of a batch.

    Yields:
        (batch, its images by row). `index` of the batch is the image's position.
    """
    waiting: dict[int, list[ReadImage]] = {}

    def batch_of(group: list[ReadImage]) -> tuple[Batch, list[ReadImage]]:
        images = [each.image for each in group if each.image is not None]
        batch = image_batch(images, config, config.batch_size)
        batch.index[: len(group)] = [each.position for each in group]
        return batch, group

    for one in read:
        assert one.image is not None
        canvas, _ = placed(one.image, config)
        group = waiting.setdefault(canvas, [])
        group.append(one)
        if len(group) == config.batch_size:
            yield batch_of(waiting.pop(canvas))
    for _, group in sorted(waiting.items()):
        yield batch_of(group)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_drawing(path: Path) -> bool:
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_MARK_AT + 4 + len(_MARK)).endswith(_MARK)
    except OSError:  # it is reported when it is read
        return False


def _would_be_lost(path: Path) -> bool:
    """Whether there is a file that was not made by an earlier call."""
    return path.is_file() and path.stat().st_size > 0 and not _is_drawing(path)


def _walk(folder: Path, skip: Path | None, notes: list[str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        notes.append(f"{error.filename}: cannot be read ({error.strerror})")

    seen = {folder.resolve()} | ({skip} if skip is not None else set())

    def is_new(path: Path) -> bool:
        """Whether a folder is visited for the first time, since links may form cycles."""
        real = path.resolve()
        return real not in seen and not seen.add(real)  # type: ignore[func-returns-value]

    for place, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        named = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in named if is_new(Path(place, name))]
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place, name)


def _looks_like_image(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return True
    if not path.is_file():  # reading a pipe would block
        return False
    try:
        with path.open("rb") as file:
            beginning = file.read(12)
    except OSError:
        return False
    webp = beginning[:4] == b"RIFF" and beginning[8:] == b"WEBP"
    return webp or beginning.startswith(_BEGINNINGS)
