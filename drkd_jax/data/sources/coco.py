"""``coco:IMAGES_DIR:INSTANCES_JSON``: a folder of images and an instances file of COCO's form.

Some tools write paths of their own machine, Windows backslashes, or URLs. A name that exists
literally is never changed; any other is interpreted differently only if exactly one file matches,
and no other entry claims that file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from drkd_jax.data.decode import Scan, decode_image, scan
from drkd_jax.data.header import what_is
from drkd_jax.data.sources.instances import Fault, parse_instances
from drkd_jax.data.sources.records import Record, Source
from drkd_jax.errors import UserError
from drkd_jax.words import counted

_SHARE = 0.01  # largest share of faulty entries that may be left out
_NAMED = 3  # most files in a hint
_DRIVE = re.compile(r"^[A-Za-z]:/")

# Keys that identify other tools' files.
_OTHERS = {
    "imagePath": "a LabelMe file (one per image): convert the set to COCO's JSON first",
    "_via_img_metadata": "a project of VGG Image Annotator: export it as COCO",
    "features": "GeoJSON: convert it to COCO's JSON first",
    "info_list": "a file of another tool",
}


class CocoSource(Source):
    """Images of a folder, boxes of an instances file.

    Args:
        images_dir: folder of the images; ``file_name`` of the json is relative to it.
        instances_json: COCO's instances file.
        on_error: "stop" refuses a file with a fault. "skip" leaves out faulty entries (see
            ``faults``), up to 1 % of all entries, but never a class. "list" is "skip" without these
            two limits, to collect all faults.
        exif: "auto", "stored" or "turned", see ``decode_image``. With "turned" a stated size may
            be that of the stored or of the rotated image.
        depth: bits that 16-bit images use, see ``decode_image``.

    Attributes:
        faults: entries of the instances file that were left out.
        mended: corrections made while reading, one line per kind.

    Raises:
        UserError: a folder or file is missing, or the json has a fault; the message names it.
    """

    faults: list[Fault]
    mended: list[str]

    def __init__(
        self,
        images_dir: str | Path,
        instances_json: str | Path,
        on_error: str = "stop",
        exif: str = "auto",
        depth: int = 0,
    ):
        self.exif, self.depth = exif, depth
        self.images_dir, self.instances_json = Path(images_dir), Path(instances_json)
        if not self.images_dir.is_dir():
            what = "is a file" if self.images_dir.exists() else "does not exist"
            raise UserError(
                f"image folder {self.images_dir} {what}; the form is coco:IMAGES_DIR:INSTANCES_JSON"
            )
        self.spec = f"coco:{images_dir}:{instances_json}"
        content, name = load_json(self.instances_json), str(self.instances_json)
        self.faults = []
        self._stems: dict[Path, dict[str, list[str]]] = {}  # by folder: file names by their stem
        self._near: list[Path] | None = None  # folders that may be meant; listed on demand
        self._paths, self.mended = find_files(self.images_dir, _file_names(content))
        faults = None if on_error == "stop" else self.faults
        self.table = parse_instances(content, name, faults, self._paths, self.mended)
        self.categories = self.table.categories
        if on_error == "skip":
            self._check_faults(len(content["images"]) + len(content["annotations"]))
        if exif == "turned":
            self._turn_sizes()

    def _check_faults(self, entries: int) -> None:
        classes = [fault for fault in self.faults if fault.kind == "category"]
        if classes:
            raise UserError(f"{self.instances_json}: {classes[0]}; a class cannot be skipped")
        count = sum(not fault.follows for fault in self.faults)
        if count > _SHARE * entries:
            raise UserError(
                f"{self.instances_json}: {count} of {entries} entries have a fault, "
                f"more than {_SHARE:.0%}; the first: {self.faults[0]} (`prepare --check "
                "SOURCE` lists all faults)"
            )

    def _turn_sizes(self) -> None:
        """Gives images rotated by 90 degrees the size of the rotated image."""
        sizes = self.table.sizes.copy()
        lying = (self.scan.sizes == sizes).all(axis=1)
        sizes[lying] = sizes[lying, ::-1]
        self.table = dataclasses.replace(self.table, sizes=sizes)

    @functools.cached_property
    def scan(self) -> Scan:  # type: ignore[override]  # made once, where wanted
        """What the image files say of themselves."""
        return scan([self.path(index) for index in range(len(self))])

    def path(self, index: int) -> Path:
        """The path of image ``index``."""
        name = self.table.names[index]
        return self.images_dir / self._paths.get(name, name)

    def record(self, index: int) -> Record:
        """Reads image ``index``.

        Raises:
            UserError: the file is missing, not an image, or of another size than the json says.
        """
        path = self.path(index)
        meta = self.table.meta(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            hint = self._of_same_stem(path) if isinstance(error, FileNotFoundError) else ""
            raise UserError(
                f"image {path} (id {meta.image_id} in {self.instances_json}) cannot be read: "
                f"{error.strerror}{hint}"
            ) from error
        image = decode_image(
            data, str(path), meta.height, meta.width, exif=self.exif, depth=self.depth
        )
        return Record(image, *self.table.boxes(index), meta.image_id, str(path))

    def _of_same_stem(self, path: Path) -> str:
        """Names files beside a missing one that differ only in extension or capitalisation."""
        folder = path.parent
        # Listed once, since a converted set lacks every image.
        if folder not in self._stems:
            listed: dict[str, list[str]] = {}
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(folder)):
                    listed.setdefault(_loose(Path(name).stem), []).append(name)
            self._stems[folder] = listed
        names = self._stems[folder].get(_loose(path.stem), [])
        if not names:
            return self._elsewhere(path)
        others = " and ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
        return f"; the folder holds {others}: correct 'file_name', or rename the file"

    def _elsewhere(self, path: Path) -> str:
        """Names the folder near the image folder that holds a missing image."""
        # Folders without the first missing image are not searched again: often all are missing.
        near = _near(self.images_dir) if self._near is None else self._near
        name = path.relative_to(self.images_dir)
        self._near = [folder for folder in near if (folder / name).is_file()]
        return f"; {self._near[0]} holds it: is that IMAGES_DIR?" if self._near else ""


def _near(folder: Path) -> list[Path]:
    """The subfolders of a folder to depth two, its parent, and its siblings."""
    inner = sorted(folder.glob("*/"))
    return [*inner, *sorted(folder.glob("*/*/")), folder.parent, *sorted(folder.parent.glob("*/"))]


def _file_names(content: dict[str, Any]) -> list[str]:
    images = content.get("images")
    rows = images if isinstance(images, list) else []
    names = (row.get("file_name") for row in rows if isinstance(row, dict))
    return [name for name in names if isinstance(name, str) and name.strip()]


def load_json(path: Path) -> dict[str, Any]:
    """Reads a json object (UTF-8, UTF-16 or UTF-32, with or without a byte order mark).

    Raises:
        UserError: there is no such file, or it is not a json object; other known kinds of files are
            named.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"annotations {path} cannot be read: {error.strerror}{_holds(path)}"
        ) from error
    if not data.strip():
        raise UserError(f"annotations {path}: the file is empty ({len(data)} bytes)")
    kind = what_is(data)
    if kind is not None:
        raise UserError(f"annotations {path} are not valid json: the file is {kind}")
    try:
        content = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(
            f"annotations {path} are not valid json: not {error.encoding} text ({error.reason} at "
            f"byte {error.start}); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        lines = _json_lines(data)
        hint = "; it is JSON Lines, one object per line: COCO's file is one object" if lines else ""
        raise UserError(f"annotations {path} are not valid json: {error}{hint}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"annotations {path} hold a {type(content).__name__}, not a json object{_list(content)}"
        )
    if "images" not in content:
        for key, other in _OTHERS.items():
            if key in content:
                raise UserError(f"{path}: no list 'images'; it is {other}")
    return content


def _holds(path: Path) -> str:
    """What a folder of annotations seems to contain."""
    if not path.is_dir():
        return ""
    endings = {child.suffix.lower() for child in path.iterdir()}
    for ending, kind in {".txt": "YOLO label", ".xml": "Pascal VOC", ".json": "JSON"}.items():
        if ending in endings:
            return f"; it holds {kind} files; name one instances file in COCO's form"
    return ""


def _json_lines(data: bytes) -> bool:
    """Whether each of the first two lines is an object."""
    lines = [line for line in data.splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def _list(content: Any) -> str:
    if not (isinstance(content, list) and content and isinstance(content[0], dict)):
        return ""
    first = content[0]
    if "bbox" in first and "file_name" not in first:
        return "; it looks like a list of results, not like annotations"
    if "annotations" in first and "data" in first:
        return "; it is Label Studio's own JSON: export as COCO there"
    if "file_name" in first and "annotations" in first:
        return "; it is a list of Detectron2's records: COCO's file is one object"
    return "; COCO's file is one object with 'images', 'annotations' and 'categories'"


def find_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Finds files for names that do not exist literally.

    Args:
        folder: the folder of the images.
        names: the names in the instances file.

    Returns:
        (name to path relative to the folder, for each reinterpreted name; one line for each kind of
        reinterpretation, with the number of names and an example).
    """
    names = list(dict.fromkeys(names))
    listed: dict[str, set[str]] = {}
    literal = {name for name in names if _is_there(folder, name, listed)}
    missing = [name for name in names if name not in literal]
    if not missing:
        return {}, []
    files = _Files(folder)
    found = {name: answer for name in missing if (answer := next(files.ways(name), None))}
    claims = Counter(PurePosixPath(name).as_posix() for name in literal)
    claims.update(path for path, _ in found.values())
    found = {name: answer for name, answer in found.items() if claims[answer[0]] == 1}
    ways: dict[str, list[str]] = {}
    for name, (_, way) in found.items():
        ways.setdefault(way, []).append(name)
    lines = [
        f"{counted(len(those), 'file name', 'are')} not there as written and read {way}: "
        f"{those[0]} as {found[those[0]][0]}"
        for way, those in ways.items()
    ]
    return {name: path for name, (path, _) in found.items()}, lines


class _Files:
    """All files of a folder, by alternative spellings."""

    def __init__(self, folder: Path):
        self.exact: set[str] = set()
        self.loose: dict[str, str | None] = {}  # None: two files match
        for root, _, files in os.walk(folder):
            for file in files:
                path = Path(root, file).relative_to(folder).as_posix()
                self.exact.add(path)
                key = _loose(path)
                self.loose[key] = None if key in self.loose else path

    def ways(self, name: str) -> Iterator[tuple[str, str]]:
        """(path, interpretation) of each file that matches a name, the closest first."""
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
    """Uses one listing per folder, since checking each file is slow over a network."""
    if "\0" in name:
        return True  # reported as a separate fault
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
