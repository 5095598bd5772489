"""``python -m drkd_jax prepare``: converts COCO folders to a TFDS data folder, or checks a set."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from drkd_jax.cli.arguments import Parser, depth
from drkd_jax.data.decode import EXIF
from drkd_jax.errors import EXIT_USER, UserError
from drkd_jax.fault_tolerance.writing import as_user_error, make_folder, make_place, write_json
from drkd_jax.words import counted

_LONGEST = 1600  # pixels of the longer side of a sample drawing
_TOLD = 20  # most errors on the terminal
_FLATTEST = 8.0  # longer divided by shorter side; flatter images are not drawn


def main(argv: Sequence[str]) -> int:
    """Writes one split of `coco/2017` and prints the source spec that reads it; or checks a set.

    Returns:
        0, or 2 if a check has found errors.

    Raises:
        UserError: wrong arguments, or data that cannot be prepared.
    """
    parser = Parser(
        "prepare",
        "Makes tfds:coco/2017 from unzipped COCO images and their instances file, without "
        "TensorFlow. With --check: reads a whole source, says what is wrong and what is in it.",
    )
    parser.add_argument("source", help="tfds:coco/2017; with --check any source of images")
    parser.add_argument("--check", action="store_true", help="read and report, write no data set")
    parser.add_argument("--out", help="--check: folder for sample drawings")
    parser.add_argument("--json", help="--check: file for the whole report")
    parser.add_argument("--images", help="folder of images, as train2017")
    parser.add_argument("--instances", help="instances_train2017.json")
    parser.add_argument("--split", help="train, validation or test")
    parser.add_argument("--data-dir", default="~/tensorflow_datasets", help="TFDS's data folder")
    parser.add_argument("--exif", choices=EXIF, default="auto", help="--check: as data.exif")
    parser.add_argument("--depth", type=depth, default=0, help="--check: as data.depth")
    arguments = parser.parse_args(list(argv))
    for name in ("images", "instances", "split") if arguments.check else ("out", "json"):
        if getattr(arguments, name):
            raise UserError(f"--{name} {'does not go' if arguments.check else 'goes'} with --check")
    if arguments.check and arguments.json:
        make_place(arguments.json, "--json")
    if arguments.check and arguments.out:
        make_folder(arguments.out, "--out")
    if arguments.check:
        return _check(arguments)
    if arguments.source != "tfds:coco/2017":
        raise UserError(f"prepare {arguments.source}: only tfds:coco/2017 can be prepared")
    missing = [f"--{n}" for n in ("images", "instances", "split") if not getattr(arguments, n)]
    if missing:
        raise UserError(f"{', '.join(missing)} missing (see python -m drkd_jax prepare --help)")

    from drkd_jax.data.sources.prepare import prepare_tfds  # needs a second to import

    folder = prepare_tfds(
        arguments.images, arguments.instances, arguments.split, arguments.data_dir
    )
    print(f"{folder}\nuse it as tfds:coco/2017:{arguments.split}@{arguments.data_dir}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from drkd_jax.data.checking.check import Report, check

    spec, out, json_file = arguments.source, arguments.out, arguments.json
    reading: dict[str, Any] = {"exif": arguments.exif, "depth": arguments.depth}

    with tqdm(unit="image", dynamic_ncols=True, disable=None) as bar:  # on terminals only

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report: Report = check(spec, progress=progress, **reading)
    found = dataclasses.asdict(report)
    for line in _lines(found):
        print(line)
    for kind, texts in (("warning", report.warnings), ("error", report.errors)):
        for text in texts[:_TOLD]:
            print(f"{kind}: {text}")
        if len(texts) > _TOLD:
            where = f"; all of them are in {json_file}" if json_file else "; --json=FILE lists all"
            print(f"{kind}: and {len(texts) - _TOLD} more{where}")
    # Everything is printed before anything is written, so that a full disk does not lose it.
    counts = (len(report.errors), "error"), (len(report.warnings), "warning")
    print(", ".join(counted(*each) for each in counts), flush=True)
    if json_file:
        write_json(Path(json_file), found, indent=1)
    if out:
        drawn = _draw(spec, reading, report.samples, Path(out))
        print(f"{counted(drawn, 'sample drawing')} in {out}")
    return EXIT_USER if report.errors else 0


def _lines(report: dict[str, Any]) -> list[str]:
    columns = ("images", "boxes", "small", "medium", "large", "crowd")
    total: dict[str, Any] = {c: sum(row[c] for row in report["classes"]) for c in columns}
    total |= {"name": "all", "images": report["images"] - report["empty"]}
    width = max(len(row["name"]) for row in [*report["classes"], total])
    lines = [f"{'class':{width}s} " + " ".join(f"{c:>8s}" for c in columns)]
    for row in [*report["classes"], total]:
        lines.append(f"{row['name']:{width}s} " + " ".join(f"{row[c]:8d}" for c in columns))
    low, middle, high = zip(report["shorter"], report["longer"], strict=True)
    return [
        f"{report['source']}: {report['readable']} of {report['images']} images can be read, "
        f"{report['empty']} without a box to train on",
        *lines,
        f"sides (shorter x longer): smallest {low[0]} x {low[1]}, median {middle[0]} x "
        f"{middle[1]}, largest {high[0]} x {high[1]} pixels; at most "
        f"{counted(report['most_boxes'], 'box')} in an image",
    ]


def _draw(spec: str, reading: dict[str, Any], samples: Sequence[int], folder: Path) -> int:
    """Draws the boxes of some images; crowd regions are named as such."""
    from drkd_jax.cli.inputs import shortened
    from drkd_jax.data.sources import open_source
    from drkd_jax.draw import draw_detections, scaled

    source = open_source(spec, "list", **reading)
    names = [category.name for category in source.categories]
    drawn = 0
    for index in samples:
        record = source.record(index)
        height, width = record.image.shape[:2]
        if max(height, width) > _FLATTEST * min(height, width):
            continue
        scale = min(1.0, _LONGEST / max(height, width))
        texts = [
            names[label] + (" (crowd)" if crowd else "")
            for label, crowd in zip(record.labels, record.crowd, strict=True)
        ]
        boxes = record.boxes * np.float32(scale)
        image = scaled(record.image, scale)
        drawing = draw_detections(image, boxes, record.labels, None, names, texts=texts)
        drawn += 1
        stem = shortened(f"sample_{drawn:02d}_{Path(record.name).stem}", 255 - len(".png"))
        path = folder / f"{stem}.png"
        done, data = cv2.imencode(".png", drawing[..., ::-1])
        assert done
        with as_user_error(path):
            path.write_bytes(data.tobytes())
    return drawn
