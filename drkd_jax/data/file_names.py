"""Where the pictures of an instances file lie, also where its names are not spelt as the files are.

Tools write paths of their own machine, Windows' backslashes, URLs. A name that is there as it
stands is never touched; any other is read another way only where one file answers to it, and no
other entry claims that file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_DRIVE = re.compile(r"^[A-Za-z]:/")


def find_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Finds names that are not there literally.

    Args:
        folder: of the pictures.
        names: as the instances file has them.

    Returns:
        (name to path relative to the folder, for each name that is read another way; one line for
        each way, with how many names and an example).
    """
    names = list(dict.fromkeys(names))
    listed: dict[str, set[str]] = {}
    literal = {name for name in names if _is_there(folder, name, listed)}
    missing = [name for name in names if name not in literal]
    if not missing:
        return {}, []
    files = _Files(folder)
    found: dict[str, tuple[str, str]] = {}
    for name in missing:
        answer = next((a for a in files.ways(name)), None)
        if answer is not None:
            found[name] = answer
    claims: dict[str, int] = {}
    for path in [PurePosixPath(name).as_posix() for name in literal]:
        claims[path] = claims.get(path, 0) + 1
    for path, _ in found.values():
        claims[path] = claims.get(path, 0) + 1
    found = {name: answer for name, answer in found.items() if claims[answer[0]] == 1}
    ways: dict[str, list[str]] = {}
    for name, (_, way) in found.items():
        ways.setdefault(way, []).append(name)
    lines = [
        f"{len(those)} file names are not there as they stand and are read {way}: "
        f"{those[0]} as {found[those[0]][0]}"
        for way, those in ways.items()
    ]
    return {name: path for name, (path, _) in found.items()}, lines


class _Files:
    """All files of a folder, by ways to spell them."""

    def __init__(self, folder: Path):
        self.exact: set[str] = set()
        self.loose: dict[str, str | None] = {}  # None: two files answer
        for root, _, files in os.walk(folder):
            for file in files:
                path = Path(root, file).relative_to(folder).as_posix()
                self.exact.add(path)
                key = _loose(path)
                self.loose[key] = None if key in self.loose else path

    def ways(self, name: str) -> Iterator[tuple[str, str]]:
        """(path, how it was read) of each file that answers to a name, the nearest first."""
        spellings = {
            "with / for \\": name.replace("\\", "/"),
            "with %20 and the like decoded": unquote(name),
            "with / for \\ and %20 and the like decoded": unquote(name.replace("\\", "/")),
        }
        for way, text in spellings.items():
            path = PurePosixPath(text).as_posix()
            if text != name and path in self.exact:
                yield path, way
        text = re.sub(r"^[a-z]+://", "/", name.replace("\\", "/"))
        address, _, query = text.partition("?")
        # Label Studio's local files are /data/local-files/?d=FOLDER/NAME
        named = query.partition("d=")[2] if address.endswith("/local-files/") else address
        parts = PurePosixPath(_DRIVE.sub("/", unquote(named))).parts
        ends = [] if ".." in parts else range(len(parts))
        paths = ["/".join(parts[start:]) for start in ends if parts[start].strip("/")]
        for path in paths:
            if path in self.exact:
                yield path, "without the folders in front"
        for path in paths:
            loose = self.loose.get(_loose(path))
            if loose is not None:
                yield loose, "with other capital letters or accents"


def _is_there(folder: Path, name: str, listed: dict[str, set[str]]) -> bool:
    """Looks into one listing a folder: a question for each file is slow over a network."""
    if "\0" in name:
        return True  # a fault of its own
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    parent = path.parent.as_posix()
    if parent not in listed:
        try:
            listed[parent] = set(os.listdir(folder / parent))
        except (OSError, ValueError):
            listed[parent] = set()
    return path.name in listed[parent]


def _loose(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
