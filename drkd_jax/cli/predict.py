"""``python -m drkd_jax predict``: runs a trained detector on the user's own images.

Boxes are written to `detections.json` as they are found, so that neither memory nor time per
image grows; the file gets its name when it is complete.

Letters: H W pixels of an image, n its boxes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Float64, Int, UInt8
from tqdm import tqdm

from drkd_jax.cli.arguments import Parser, positive, score_limit
from drkd_jax.cli.deep import DeepWatch, add_depth, with_depth
from drkd_jax.cli.detector import Trained, add_arguments, load_named
from drkd_jax.cli.found_file import FoundFile, found_file
from drkd_jax.cli.inputs import (
    ReadImage,
    batched,
    drawing_names,
    find_images,
    marked,
    read_images,
)
from drkd_jax.data.decode import decode_image
from drkd_jax.draw import draw_detections
from drkd_jax.errors import EXIT_USER, UserError
from drkd_jax.evaluation import found_in
from drkd_jax.fault_tolerance.writing import as_user_error, make_folder
from drkd_jax.step.sharding import put_batch
from drkd_jax.types import Batch, Detections
from drkd_jax.words import counted


class Found(NamedTuple):
    """An image and its detections, best first."""

    read: ReadImage
    boxes: Float64[np.ndarray, "n 4"]  # xyxy, pixels of the image
    scores: Float64[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]


def main(argv: Sequence[str]) -> int:
    """Draws the detections on each image and writes `detections.json`.

    `detections.json` has COCO's form: `images`, `categories`, and `annotations` with `bbox`
    (x, y, width, height in the image's own pixels), `category_id`, `area` and `score`. A
    photograph is rotated according to its EXIF orientation, also in the drawing. `drawing` of an
    image is the name of its drawing; `skipped` lists what could not be read.

    Drawings and lines come as images are done. After Ctrl-C or where the disk is full,
    `detections.json` holds what was found until then.

    Returns:
        0, or 2 if an image could not be read.

    Raises:
        UserError: wrong arguments, no checkpoint, no image, or a place that cannot be written.
    """
    parser = Parser("predict", "Detects objects on images: drawn PNGs and COCO-style JSON.")
    add_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--score", type=score_limit, default=0.3, help="lowest score that is drawn")
    parser.add_argument(
        "--keep",
        type=score_limit,
        default=0.0,
        metavar="SCORE",
        help="lowest score in detections.json; 0, all that the detector gives, by default",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder of all images, from which detections.json names them: with it "
        "coco:DIR:OUT/detections.json is a set to train on",
    )
    parser.add_argument("--no-drawings", action="store_true", help="write detections.json alone")
    parser.add_argument(
        "--max", type=positive, help="boxes of an image; what the detector gives by default"
    )
    add_depth(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders")
    arguments = parser.parse_args(list(argv))

    _not_a_work_folder(Path(arguments.out))
    out = make_folder(arguments.out, "--out")
    paths, notes = find_images(arguments.images, out)
    for note in notes:
        print(note, file=sys.stderr)
    names = _names(paths, arguments.root)
    trained = with_depth(load_named(arguments, arguments.max or 0), arguments)
    writer = _Writer(out, paths, names, trained.classes, arguments)
    broken = 0
    with (
        found_file(out / "detections.json", trained.classes) as file,
        # None: shown on a terminal only, where the lines of the images are written above it
        tqdm(total=len(paths), unit="image", disable=None) as bar,
    ):
        try:
            for item in detect(trained, paths, arguments.max, _warn):
                if isinstance(item, Found):
                    tqdm.write(writer.write(item, file))
                    sys.stdout.flush()
                else:
                    broken += 1
                    file.skip(str(paths[item.position]), item.fault)
                    tqdm.write(f"error: {item.fault}", file=sys.stderr)
                bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{writer.done} of {len(paths)} images are done; what was found is in {out}"
            ) from None
    if broken:
        print(f"{broken} of {len(paths)} images could not be read", file=sys.stderr)
    return EXIT_USER if broken else 0


def detect(
    trained: Trained,
    paths: Sequence[Path],
    most: int | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[Found | ReadImage]:
    """Reads images, and finds objects on them; in batches, so not quite in their order.

    Args:
        trained: the detector.
        paths: paths of the images.
        most: keep only this many best boxes per image; None: all that the detector gives.
        warn: called once if 16-bit images are dark.

    Yields:
        The detections on each image, or the image with its fault.
    """
    batch_size = max(1, min(trained.pipeline.batch_size, len(paths)))
    devices = trained.mesh.size
    config = dataclasses.replace(trained.pipeline, batch_size=-(-batch_size // devices) * devices)
    decode = functools.partial(decode_image, exif="turned", depth=config.depth)
    broken: list[ReadImage] = []
    watch = DeepWatch(paths, config.depth)

    def whole() -> Iterator[ReadImage]:
        ahead = 2 * config.batch_size
        for one in read_images(paths, decode, config.num_threads, ahead):
            if one.image is None:
                broken.append(one)
                continue
            if told := watch.look(one.position, one.image):
                warn(told)
            yield one

    def read(batch: Batch, group: list[ReadImage], detections: Detections) -> Iterator[Found]:
        detections = Detections(*jax.device_get(tuple(detections)))
        for row, one in enumerate(group):
            yield Found(one, *found_in(detections, batch, row, most=most))

    waiting: tuple[Batch, list[ReadImage], Detections] | None = None
    for batch, group in batched(whole(), config):
        detections = trained.predict(trained.arrays, put_batch(batch, trained.mesh))
        yield from _taken(broken)
        if waiting is not None:  # read one batch late, to keep the device busy
            yield from read(*waiting)
        waiting = batch, group, detections
    yield from _taken(broken)
    if waiting is not None:
        yield from read(*waiting)


def _warn(text: str) -> None:
    tqdm.write(f"warning: {text}", file=sys.stderr)


def _taken(broken: list[ReadImage]) -> Iterator[ReadImage]:
    while broken:
        yield broken.pop(0)


def _names(paths: Sequence[Path], root: str | None) -> list[str]:
    """The names of the images in `detections.json`.

    Raises:
        UserError: one is outside the folder that the names are relative to.
    """
    if root is None:
        return [str(path) for path in paths]
    names = [os.path.relpath(path, root) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if name.split(os.sep)[0] == os.pardir:
            raise UserError(f"--root={root}: {path} does not lie in it")
    return names


def _not_a_work_folder(out: Path) -> None:
    """Refuses a folder whose detections.json belongs to a run."""
    if (out / "checkpoints").is_dir() or (out / "best").is_dir():
        raise UserError(
            f"--out {out}: is the work folder of a run, whose detections.json would be replaced; "
            "name another folder"
        )


class _Writer:
    """Draws an image, and records its detections."""

    def __init__(
        self,
        out: Path,
        paths: Sequence[Path],
        names: Sequence[str],
        categories: Sequence[Any],
        arguments: Namespace,
    ):
        self._out, self._paths, self._file_names = out, paths, names
        self._lowest, self._least = max(arguments.score, arguments.keep), arguments.keep
        self._draws = not arguments.no_drawings
        self._ids = [number for number, _ in categories]
        self._names = [name for _, name in categories]
        self._drawings = drawing_names(paths, out)
        self.done = 0

    def write(self, found: Found, file: FoundFile) -> str:
        """Returns a line about it.

        Raises:
            UserError: the drawing cannot be written.
        """
        index, image = found.read.position, found.read.image
        assert image is not None
        path, drawing = self._paths[index], self._out / self._drawings[index]
        kept = found.scores >= self._least
        found = Found(found.read, found.boxes[kept], found.scores[kept], found.labels[kept])
        height, width = image.shape[:2]
        name = self._file_names[index]
        about = {"id": index + 1, "file_name": name, "height": height, "width": width}
        if self._draws:
            self._draw(found, image, drawing)
            about["drawing"] = drawing.name
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        corners = np.concatenate([found.boxes[:, :2], sides], axis=1)
        file.add(
            about,
            [
                {"category_id": self._ids[label], "bbox": box, "score": score}
                for label, box, score in zip(
                    found.labels, corners.tolist(), found.scores.tolist(), strict=True
                )
            ],
        )
        self.done += 1
        above = int((found.scores >= self._lowest).sum())
        where = f", {drawing}" if self._draws else ""
        return f"{path}: {counted(above, 'object')} above {self._lowest:g}{where}"

    def _draw(self, found: Found, image: UInt8[np.ndarray, "H W 3"], drawing: Path) -> None:
        shown = found.scores >= self._lowest
        drawn = draw_detections(
            image,
            found.boxes[shown].astype(np.float32),
            found.labels[shown],
            found.scores[shown].astype(np.float32),
            self._names,
        )
        done, data = cv2.imencode(".png", drawn[..., ::-1])
        if not done:
            raise UserError(f"{drawing}: a drawing of this size cannot be written as PNG")
        with as_user_error(drawing):
            drawing.write_bytes(marked(data.tobytes()))
