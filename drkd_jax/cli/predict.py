"""``python -m drkd_jax predict``: a trained detector on a person's own pictures.

Letters: H W pixels of a picture.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from drkd_jax.cli.arguments import Parser
from drkd_jax.cli.detector import Trained, load
from drkd_jax.data.decode import decode_picture, stored_size
from drkd_jax.data.pipeline import eval_batches
from drkd_jax.data.records import Category, Meta, Record
from drkd_jax.errors import UserError
from drkd_jax.evaluation import to_coco
from drkd_jax.report.draw import draw_detections
from drkd_jax.training.sharding import put_batch
from drkd_jax.types import Detections


class Pictures:
    """Files given by name, as a source without boxes; a picture's id is its place, from 1."""

    def __init__(self, paths: Sequence[Path], categories: tuple[Category, ...]):
        self.paths = tuple(paths)
        self.categories = categories
        self.spec = f"{len(self.paths)} pictures"
        sizes = [stored_size(_bytes(path), str(path)) for path in self.paths]
        self._metas = tuple(Meta(i + 1, int(h), int(w), 0) for i, (h, w) in enumerate(sizes))

    def __len__(self) -> int:
        return len(self.paths)

    def describe(self) -> dict[str, Any]:
        """Counts."""
        return {"pictures": len(self), "boxes": 0, "classes": len(self.categories)}

    def meta(self, index: int) -> Meta:
        """Id and size."""
        return self._metas[index]

    def record(self, index: int) -> Record:
        """The picture, without boxes.

        Raises:
            UserError: it is missing or not decodable.
        """
        path = self.paths[index]
        return Record(
            image=decode_picture(_bytes(path), str(path)),
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int32),
            crowd=np.zeros(0, bool),
            image_id=index + 1,
            name=path.name,
        )

    def coco_ground_truth(self) -> dict[str, Any]:
        """Pictures and classes; no annotations."""
        return {
            "images": [
                {"id": meta.image_id, "file_name": str(path), "height": meta.height}
                | {"width": meta.width}
                for path, meta in zip(self.paths, self._metas, strict=True)
            ],
            "categories": [category._asdict() for category in self.categories],
            "annotations": [],
        }


def main(argv: Sequence[str]) -> int:
    """Writes a drawn PNG for each picture, and `detections.json`.

    The JSON is COCO's instances form: `images`, `categories`, and `annotations` with `bbox`
    (x, y, width, height in the picture's own pixels), `category_id`, `area` and `score`.

    Raises:
        UserError: wrong arguments, no checkpoint, or a file that is no picture.
    """
    parser = Parser("predict", "Detects objects on pictures: drawn PNGs and COCO-style JSON.")
    parser.add_argument("--workdir", required=True, help="work folder of a training run")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score that is drawn")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    arguments = parser.parse_args(list(argv))

    trained = load(arguments.workdir, arguments.which)
    source = Pictures([Path(name) for name in arguments.images], trained.categories)
    out = Path(arguments.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be made ({error.strerror})") from error
    found = _detect(trained, source)
    for index, name in enumerate(_file_names(source.paths)):
        drawn = _draw(source, index, found, arguments.score)
        if not cv2.imwrite(str(out / name), drawn[..., ::-1]):
            raise UserError(f"{out / name}: cannot be written")
        kept = [item for item in found if item["image_id"] == index + 1]
        above = sum(item["score"] >= arguments.score for item in kept)
        print(f"{source.paths[index]}: {above} objects above {arguments.score:g}, {out / name}")
    result = source.coco_ground_truth()
    result["annotations"] = [
        {"id": number + 1, "iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3], **item}
        for number, item in enumerate(found)
    ]
    (out / "detections.json").write_text(json.dumps(result) + "\n")
    return 0


def _detect(trained: Trained, source: Pictures) -> list[dict[str, Any]]:
    devices = trained.mesh.size
    batch_size = -(-trained.pipeline.batch_size // devices) * devices
    pipeline = dataclasses.replace(trained.pipeline, batch_size=batch_size)
    found: list[dict[str, Any]] = []
    for batch in eval_batches(source, pipeline):
        detections = trained.predict(trained.arrays, put_batch(batch, trained.mesh))
        found += to_coco(Detections(*jax.device_get(tuple(detections))), batch, source)
    return found


def _draw(
    source: Pictures, index: int, found: Sequence[dict[str, Any]], lowest: float
) -> np.ndarray:
    labels = {category.id: label for label, category in enumerate(source.categories)}
    kept = [item for item in found if item["image_id"] == index + 1 and item["score"] >= lowest]
    boxes = np.array([item["bbox"] for item in kept], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return draw_detections(
        source.record(index).image,
        boxes,
        np.array([labels[item["category_id"]] for item in kept], np.int32),
        np.array([item["score"] for item in kept], np.float32),
        [category.name for category in source.categories],
    )


def _file_names(paths: Sequence[Path]) -> list[str]:
    """STEM.png each; where stems repeat, with the picture's number."""
    stems = [path.stem for path in paths]
    return [
        f"{stem}.png" if stems.count(stem) == 1 else f"{stem}_{number + 1}.png"
        for number, stem in enumerate(stems)
    ]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
