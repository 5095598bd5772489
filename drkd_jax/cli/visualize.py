"""``python -m drkd_jax visualize``: shows how two checkpoints relate pixels and boxes.

Letters: H W pixels of an image, n its boxes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from drkd_jax import distill
from drkd_jax.cli.arguments import Parser, above_0, positive, score_limit, two_numbers
from drkd_jax.cli.deep import add_depth
from drkd_jax.cli.inputs import ReadImage, batched, drawing_names, find_images, mark
from drkd_jax.cli.two_sides import (
    MOST_PIXELS,
    SIDES,
    Boxes,
    ImageBoxes,
    Side,
    boxes_of,
    detected,
    given,
    joint_pipeline,
    middles,
    read_sides,
)
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.decode import decode_image
from drkd_jax.errors import EXIT_USER, UserError
from drkd_jax.fault_tolerance.writing import as_user_error, make_folder, write_json
from drkd_jax.report.figures import draw_boxes, draw_pixels
from drkd_jax.report.relations import pixel_at
from drkd_jax.report.two_models import (
    LEAST_BOXES,
    BoxRelation,
    BoxRelations,
    PixelRelation,
    Seen,
    common_levels,
    relate_pixels,
)
from drkd_jax.types import Batch
from drkd_jax.words import counted


class Item(NamedTuple):
    """An image before anything is computed."""

    path: Path
    stem: str  # of its drawings
    image: UInt8[np.ndarray, "H W 3"]
    truth: ImageBoxes | None


def main(argv: Sequence[str]) -> int:
    """Writes drawings and `relations.json` about two checkpoints on some images.

    For each image and level: STEM_pixels_LEVEL.png, the similarity of every pixel to some marked
    ones, and STEM_boxes_LEVEL.png, the relation matrix of its boxes.

    Returns:
        0, or 2 if an image has too few boxes; its pixels, and the other images, are still drawn.

    Raises:
        UserError: wrong arguments, an image that cannot be read or is not in the json, a pixel
            outside, a level that is not there, no checkpoint, a place that cannot be written.
    """
    arguments = _arguments(argv)
    out = make_folder(arguments.out, "--out")
    paths, notes = find_images(arguments.image, out)
    for note in notes:
        print(note, file=sys.stderr)
    models = read_sides(arguments)
    pipeline = joint_pipeline(*(each.read for each in models))
    items = _items(arguments, paths, out, pipeline)
    levels = _levels(arguments.level, common_levels(models[0].model, models[1].model))
    size = distill.DistillConfig().region_size
    relation = BoxRelations(arguments.temperature, arguments.max, size)
    content: dict[str, Any] = {
        "models": {
            side: {"place": getattr(arguments, side), "step": each.read.step, "units": each.said}
            for side, each in zip(SIDES, models, strict=True)
        },
        "boxes": arguments.boxes,
        "temperature": arguments.temperature,
        "levels": levels,
        "images": [],
    }
    faults = []
    for number, item in enumerate(items):
        batch = next(iter(batched([ReadImage(number, item.image)], pipeline)))[0]
        about, fault = _image(arguments, item, batch, models, levels, relation, out)
        content["images"].append(about)
        write_json(out / "relations.json", content, indent=None, separators=(",", ":"))
        if fault:
            faults.append(fault)
            print(f"error: {fault}", file=sys.stderr)
        sys.stdout.flush()
    return EXIT_USER if faults else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("visualize", "Draws how two detectors relate the pixels and boxes of images.")
    parser.add_argument("--weights", required=True, help="a work folder or a file of weights")
    parser.add_argument("--against", required=True, help="the other one")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument(
        "--size", type=two_numbers, metavar="SxL", help="files of weights: 800x1333 by default"
    )
    parser.add_argument(
        "--image", action="append", required=True, help="a file or folder; several times"
    )
    parser.add_argument(
        "--boxes", default="detections", help="a COCO json; by default what --weights detects"
    )
    parser.add_argument("--score", type=score_limit, default=0.3, help="lowest score that counts")
    parser.add_argument("--max", type=positive, default=20, help="boxes of an image")
    parser.add_argument(
        "--pixel",
        action="append",
        type=_point,
        metavar="X,Y",
        help=f"of the image, to compare all others with; by default the centres of {MOST_PIXELS} "
        "boxes, of an image without boxes a grid",
    )
    parser.add_argument(
        "--level", action="append", help="P2, P3, ... or all; the finest that both have by default"
    )
    parser.add_argument(
        "--temperature",
        type=above_0,
        default=float(distill.InstanceRelationConfig().temperature),
        help="of the matrix's softmax",
    )
    add_depth(parser)
    parser.add_argument("--out", required=True, help="folder for the results")
    return parser.parse_args(list(argv))


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y in pixels, as 320,240 is") from None
    return x, y


def _items(
    arguments: argparse.Namespace, paths: Sequence[Path], out: Path, read: PipelineConfig
) -> list[Item]:
    """Reads all images as `read` says, so that a fault of one is said before the work."""
    depth = read.depth if arguments.depth is None else arguments.depth
    truths: list[ImageBoxes | None] = [None] * len(paths)
    if arguments.boxes != "detections":
        truths = list(boxes_of(Path(arguments.boxes), paths))
    items = []
    stems = [Path(name).stem for name in drawing_names(paths, out)]
    for path, stem, truth in zip(paths, stems, truths, strict=True):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        if truth is None:
            image = decode_image(data, str(path), exif="turned", depth=depth)
        else:  # the boxes may be those of the pixels as stored
            size = truth.height, truth.width
            image = decode_image(data, str(path), *size, exif=read.exif, depth=depth)
        height, width = image.shape[:2]
        for x, y in arguments.pixel or ():
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(
                    f"--pixel={x:g},{y:g} lies outside of {path}, which is {width} x {height} "
                    "pixels (width x height)"
                )
        items.append(Item(path, stem, image, truth))
    return items


def _levels(asked: list[str] | None, common: dict[str, int]) -> dict[str, int]:
    if asked is None:
        return dict(list(common.items())[:1])
    if "all" in asked:
        return common
    for name in asked:
        if name not in common:
            raise UserError(f"--level={name}: both models have {', '.join(common)}; or all")
    return {name: stride for name, stride in common.items() if name in asked}


def _image(
    arguments: argparse.Namespace,
    item: Item,
    batch: Batch,
    models: tuple[Side, Side],
    levels: dict[str, int],
    relation: BoxRelations,
    out: Path,
) -> tuple[dict[str, Any], str]:
    """Draws one image.

    Returns:
        Its entry of the json, and what is wrong with its boxes, or "".
    """
    detect = item.truth is None
    a = models[0].model.look(batch, detect=detect)
    b = models[1].model.look(batch, detect=False)
    scale = np.asarray(batch.scale)[0].astype(np.float64)
    height, width = a.sizes
    shown = np.rint(np.asarray(batch.images)[0, :height, :width]).astype(np.uint8)
    boxes = (
        given(item.truth, scale, arguments.max)
        if item.truth is not None
        else detected(a, models[0].read, arguments.score, arguments.max)
    )
    if arguments.pixel is not None:
        points = [(x * scale[0], y * scale[1]) for x, y in arguments.pixel]
    else:
        points = middles(boxes, height, width)
    enough = len(boxes.boxes) >= LEAST_BOXES
    own_levels: dict[str, Any] = {}
    for name, stride in levels.items():
        pixels = _pixels(a, b, points, stride)
        columns = [_titled(models, each) for each in pixels]
        rows = [((each.row, each.column), maps) for each, maps in zip(pixels, columns, strict=True)]
        drawing = out / f"{item.stem}_pixels_{name}.png"
        with as_user_error(drawing):
            draw_pixels(drawing, shown, stride, rows)
            mark(drawing)
        entry: dict[str, Any] = {"drawing": drawing.name, "stride": stride}
        entry["pixels"] = [_pixel_entry(each, stride, scale) for each in pixels]
        mean = float(np.mean([each.agreement for each in pixels]))
        line = f"{item.path}: {name}, {counted(len(pixels), 'pixel')}, correlation {mean:.2f}"
        if enough:
            psi = relation(a, b, boxes.boxes, stride)
            drawing = out / f"{item.stem}_boxes_{name}.png"
            with as_user_error(drawing):
                _draw_boxes(drawing, shown, boxes, psi, models)
                mark(drawing)
            entry["relation"] = {"drawing": drawing.name, **_relation_entry(psi)}
            of = " and ".join(f"{rows.mean():.2f}" for rows in psi.entropy)
            line += f"; {len(psi.a)} boxes, rows at {of} of log(n - 1), L_IR {psi.distance:.3g}"
        print(f"{line}, {entry['drawing']}")
        own_levels[name] = entry
    about = {
        "file_name": str(item.path),
        "height": item.image.shape[0],
        "width": item.image.shape[1],
        "boxes": boxes.entries(scale),
        "boxes_left_out": boxes.left_out,
        "levels": own_levels,
    }
    return about, "" if enough else _too_few(arguments, item, boxes)


def _pixels(
    a: Seen, b: Seen, points: Sequence[tuple[float, float]], stride: int
) -> list[PixelRelation]:
    """The relations of the map's pixels at some points, each pixel once."""
    maps = a.maps(stride), b.maps(stride)
    shape = maps[0].x.shape
    cells = dict.fromkeys(pixel_at(x, y, stride, shape) for x, y in points)
    return [relate_pixels(*maps, row, column) for row, column in cells]


def _titled(models: tuple[Side, Side], pixel: PixelRelation) -> dict[str, Any]:
    titled = {}
    for side, maps in zip(models, (pixel.a, pixel.b), strict=True):
        for what, values in zip(("x", "φ(x)"), maps, strict=True):
            if values is not None:
                titled[f"{side.model.name}, {what}"] = values
    return titled


def _draw_boxes(
    drawing: Path,
    shown: UInt8[np.ndarray, "H W 3"],
    boxes: Boxes,
    psi: BoxRelation,
    models: tuple[Side, Side],
) -> None:
    matrices = {
        f"{side.model.name}\nrows at {rows.mean():.2f} of log(n - 1)": matrix
        for side, matrix, rows in zip(models, (psi.a, psi.b), psi.entropy, strict=True)
    }
    draw_boxes(drawing, shown, boxes.boxes, boxes.labels, boxes.names, matrices, psi.b - psi.a)


def _too_few(arguments: argparse.Namespace, item: Item, boxes: Boxes) -> str:
    count = counted(len(boxes.boxes), "box") if len(boxes.boxes) else "no boxes"
    where = f"in {arguments.boxes}" if item.truth else f"of a score of {arguments.score:g} or more"
    cure = "name other images" if item.truth else "a lower --score, or --boxes=JSON, may help"
    return (
        f"{item.path}: {count} {where}, and a relation matrix needs {LEAST_BOXES}: only its "
        f"pixels are drawn; {cure}"
    )


def _pixel_entry(
    pixel: PixelRelation, stride: int, scale: Float[np.ndarray, "2"]
) -> dict[str, Any]:
    """One pixel's similarities to all others, and its centre in pixels of the image."""
    middle = np.array([pixel.column + 0.5, pixel.row + 0.5]) * stride / scale
    maps = {
        side: {"x": _rounded(own.x), "phi": _rounded(own.phi)}
        for side, own in zip(SIDES, (pixel.a, pixel.b), strict=True)
    }
    return {
        "row": pixel.row,
        "column": pixel.column,
        "middle": _rounded(middle),
        "correlation": round(pixel.agreement, 4),
        **maps,
    }


def _relation_entry(psi: BoxRelation) -> dict[str, Any]:
    """Both matrices, their difference, and the entropy of their rows as a share of log(n - 1)."""
    return {
        **{side: _rounded(own) for side, own in zip(SIDES, (psi.a, psi.b), strict=True)},
        "difference": _rounded(psi.b - psi.a),
        "row_entropy": {s: _rounded(rows) for s, rows in zip(SIDES, psi.entropy, strict=True)},
        "mean_row_entropy": {
            side: round(float(rows.mean()), 4)
            for side, rows in zip(SIDES, psi.entropy, strict=True)
        },
        "distance": psi.distance,
    }


def _rounded(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None else np.round(values.astype(np.float64), 4).tolist()
