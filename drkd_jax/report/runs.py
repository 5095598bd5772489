"""Reads work folders for the page, and checks whether their runs can be compared."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drkd_jax.data.sources import Source, open_source
from drkd_jax.errors import UserError, one_line
from drkd_jax.evaluation import COCO_MAX
from drkd_jax.paths import expand_home
from drkd_jax.renamed import read_content
from drkd_jax.report.curves import read_metrics
from drkd_jax.weights.ours import WHICH

_TRACES = ("config.json", "eval.json", "summary.json", *WHICH.values())  # of a training
MOST_RUNS = 6  # more would be hard to tell apart by colours and columns


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A finished run.

    Attributes:
        name: Its name on the page.
        folder: Its work folder.
        scores: COCO's numbers of its last evaluation, 0..1.
        data: The source that they were measured on.
        images: The number of its first images that were scored; 0: unknown, assumed to be all.
        found: Detections in COCO's format; None if the folder has none.
        config: Config of the run; empty if the folder has none.
        summary: Summary of the training; empty likewise.
        about: Machine and versions; empty likewise.
        records: Lines of its log, by step.
    """

    name: str
    folder: Path
    scores: dict[str, float]
    data: str
    images: int
    found: list[dict[str, Any]] | None
    config: dict[str, Any]
    summary: dict[str, Any]
    about: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def max_detections(self) -> int:
        """The number of counted detections per class and image, from the numbers' names."""
        counts = [key[2:] for key in self.scores if key.startswith("AR") and key[2:].isdecimal()]
        return max((int(count) for count in counts if int(count) > 10), default=COCO_MAX)


class Truth(NamedTuple):
    """The data that the runs were measured on.

    Attributes:
        source: The source of the images.
        coco: COCO's instances dict of the scored images.
    """

    source: Source
    coco: dict[str, Any]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The annotations that are not crowd regions."""
        return [row for row in self.coco["annotations"] if not row.get("iscrowd")]


def named_folders(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Names and folders from arguments of the form WORKDIR or NAME=WORKDIR.

    Without a given name, the folder's name is used; for equal folder names, the part of the paths
    in which they differ.

    Raises:
        UserError: Two runs have the same name, or there are too many.
    """
    if len(arguments) > MOST_RUNS:
        raise UserError(f"{len(arguments)} runs are named; a report holds {MOST_RUNS} at most")
    given: list[tuple[str, Path]] = []
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        is_path = not equals or not name or os.sep in name or Path(argument).is_dir()
        given.append(("", Path(argument)) if is_path else (name, Path(expand_home(folder))))
    paths = [Path(os.path.abspath(path)) for name, path in given if not name]
    short = dict(zip(paths, _short_names(paths), strict=True))
    named = [(name or short[Path(os.path.abspath(path))], path) for name, path in given]
    for name, times in Counter(name for name, _ in named).items():
        if times > 1:
            raise UserError(f"two runs are called {name}: name them, as in NAME=WORKDIR")
    return named


def read_runs(named: Sequence[tuple[str, Path]]) -> list[RunFiles]:
    """Reads the work folders.

    Raises:
        UserError: A folder has no evaluated run, a file in it is broken, or two runs were evaluated
            on different data.
    """
    runs = [read_run(name, folder) for name, folder in named]
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = _measured(run), _measured(first)
        if ours != theirs:
            raise UserError(
                f"{run.folder} was evaluated on {ours}, {first.folder} on {theirs}: such numbers "
                f"cannot be compared. `python -m drkd_jax evaluate --workdir={run.folder} "
                f"--data={first.data}` makes them the same"
            )
    return runs


def read_run(name: str, folder: Path) -> RunFiles:
    """Reads one work folder.

    Raises:
        UserError: It has no evaluated run, or a file in it is broken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name a work folder of train.py")
    config, summary = _mapping(folder / "config.json"), _mapping(folder / "summary.json")
    scored = _mapping(folder / "eval.json")
    numbers = scored or summary.get("final") or {}
    scores = {
        key: float(value)
        for key, value in numbers.items()
        if key.startswith("A") and isinstance(value, int | float)
    }
    data = scored.get("data") or (config.get("data") or {}).get("val") or ""
    if "AP" not in scores:
        raise UserError(f"{folder}: {_why_no_score(folder)}")
    path = folder / "detections.json"
    found = _read(path) if path.is_file() else None
    if found is not None and not _is_coco(found):
        raise UserError(
            f"{path}: not a list of detections in COCO's form; `python -m drkd_jax evaluate "
            f"--workdir={folder}` writes it again"
        )
    about, records = _mapping(folder / "about.json"), read_metrics(folder / "metrics.jsonl")
    # `evaluate --max-images` may have scored other images than the config says.
    images = scored.get("images") or (config.get("eval") or {}).get("max_images") or 0
    return RunFiles(
        name, folder, scores, str(data), int(images), found, config, summary, about, records
    )


def _why_no_score(folder: Path) -> str:
    """A message about a folder without scores, and how to correct it."""
    if not any((folder / name).exists() for name in _TRACES):
        runs = sorted(path.name for path in folder.iterdir() if (path / "eval.json").is_file())
        inside = f"; runs in it: {', '.join(runs[:MOST_RUNS])}" if runs else ""
        return f"is no work folder of train.py, name one that is{inside}"
    what = "holds no evaluated run (no eval.json with an AP); let training end"
    if any((folder / name).is_dir() for name in WHICH.values()):
        what += f", or run `python -m drkd_jax evaluate --workdir={folder}`"
    return what


def shared_images(runs: Sequence[RunFiles]) -> int:
    """The number of first images that every run was scored on; 0: all, as far as is known."""
    return min((run.images for run in runs if run.images), default=0)


def same_images(runs: Sequence[RunFiles]) -> bool:
    """Whether no run is known to have been scored on more images than another."""
    return all(run.images in (0, shared_images(runs)) for run in runs)


def open_truth(run: RunFiles, images: int | None = None) -> tuple[Truth | None, str]:
    """The images that a run was evaluated on.

    Args:
        run: The run.
        images: Number of first images, 0: all; None: those that the run was scored on.

    Returns:
        (the images, or None if they can no longer be read; why not).
    """
    settings = run.config.get("data") or {}
    try:
        truth = scored_images(
            run.data,
            settings.get("on_error") or "stop",
            settings.get("exif") or "auto",
            int(settings.get("depth") or 0),
            run.images if images is None else images,
        )
    except UserError as error:
        return None, one_line(error)
    return truth, ""


def scored_images(spec: str, on_error: str, exif: str, depth: int, max_images: int = 0) -> Truth:
    """A source, and COCO's dict of its first `max_images` images; 0: of all.

    Args:
        spec: see `open_source`, also for the next three.
        on_error: what to do with faulty entries.
        exif: which pixels boxes refer to.
        depth: bits that 16-bit images use.
        max_images: as `eval.max_images` of a run.

    Raises:
        UserError: the source cannot be opened.
    """
    source = open_source(spec, on_error, exif=exif, depth=depth)
    coco = source.coco_ground_truth()
    if max_images:
        kept = {source.meta(i).image_id for i in range(min(max_images, len(source)))}
        coco = {
            **coco,
            "images": [row for row in coco["images"] if row["id"] in kept],
            "annotations": [row for row in coco["annotations"] if row["image_id"] in kept],
        }
    return Truth(source, coco)


def _measured(run: RunFiles) -> str:
    """What a run's numbers were measured on, as text."""
    most = "" if run.max_detections == COCO_MAX else f" with {run.max_detections} detections"
    return f"{run.data}{most}"


def _short_names(paths: Sequence[Path]) -> list[str]:
    counts = Counter(path.name for path in paths)
    names = []
    for path in paths:
        alike = [other.parts for other in paths if other.name == path.name]
        if counts[path.name] == 1 or len(set(alike)) == 1:
            names.append(path.name)
            continue
        parts, shortest = path.parts, min(map(len, alike))
        end = next(i for i in range(shortest) if len({p[-1 - i] for p in alike}) > 1)
        start = next(i for i in range(shortest) if len({p[i] for p in alike}) > 1)
        names.append("/".join(parts[start : len(parts) - end]) or path.name)
    return names


def _is_coco(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, Mapping)
        and {"image_id", "category_id", "bbox", "score"} <= row.keys()
        and isinstance(row["bbox"], list)
        and len(row["bbox"]) == 4
        for row in rows
    )


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no file."""
    if not path.is_file():
        return {}
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; remove it, or write it again")
    return read_content(content, path.name)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
