"""``tfds:coco/2017:SPLIT[@DATA_DIR]``: a prepared TFDS dataset, read without TensorFlow.

Images are read as the stored JPEG bytes. TFDS stores neither image sizes nor COCO's category
ids, and rounds areas: sizes are read once from the JPEG headers and cached beside the records, ids
come from COCO's own table, and areas from ``instances_SPLIT.json`` beside the records if that file
exists (``prepare_tfds`` writes it).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from drkd_jax.data.decode import decode_image, stored_size
from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.data.sources.coco import load_json
from drkd_jax.data.sources.instances import parse_instances
from drkd_jax.data.sources.records import AnnotationTable, Record, Source
from drkd_jax.errors import UserError, one_line

_log = logging.getLogger(__name__)

# The supported datasets, and how to make them.
_HOW = {
    "coco/2017": "python -m drkd_jax prepare tfds:coco/2017 --split=SPLIT --images=IMAGES_DIR "
    "--instances=INSTANCES_JSON --data-dir=DATA_DIR",
    "coco/2014": "by TFDS's own builder, file_format='array_record'",
}


class TfdsSource(Source):
    """A split of TFDS's ``coco``.

    Args:
        name: ``coco/2017`` or ``coco/2014``.
        split: ``train``, ``validation``, ``test``, or a slice of one, such as ``train[:1000]``.
        data_dir: TFDS's data folder; by default ``$TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``.

    Raises:
        UserError: it is not prepared, there is no such split, or records cannot be read.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None):
        self.spec = f"tfds:{name}:{split}" + (f"@{data_dir}" if data_dir else "")
        self._split = split
        self.folder = _dataset_folder(name, data_dir)
        self._data = _open_split(self.folder, split)
        self.table = _table(self.folder, split, self._data)
        # COCO's 80 classes by ascending id; TFDS's labels are their positions.
        self.categories = COCO_CATEGORIES

    def record(self, index: int) -> Record:
        """Reads image ``index``.

        Raises:
            UserError: the records are damaged, or its bytes are not an image.
        """
        meta, name = self.table.meta(index), self.table.names[index]
        data = _example(self._data, int(index), self.spec)["image"]
        image = decode_image(data, f"image {name} of {self.spec}", meta.height, meta.width)
        return Record(image, *self.table.boxes(index), meta.image_id, name)

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict; from the json beside the records if there is one.

        Without it boxes are rounded to float32 and areas to whole pixels, as TFDS stores them.

        Raises:
            UserError: the json is broken, or belongs to other images.
        """
        path = self.folder / f"instances_{self._split.partition('[')[0]}.json"
        if not path.is_file():
            return self.table.ground_truth()
        exact = parse_instances(load_json(path), str(path)).ground_truth()
        ids = {int(image_id) for image_id in self.table.image_ids}
        if ids - {image["id"] for image in exact["images"]}:
            raise UserError(f"{path} lacks images of {self.spec}; remove or replace it")
        exact["images"] = [image for image in exact["images"] if image["id"] in ids]
        exact["annotations"] = [a for a in exact["annotations"] if a["image_id"] in ids]
        return exact


def _dataset_folder(name: str, data_dir: str | None) -> Path:
    if name not in _HOW:
        raise UserError(f"tfds dataset '{name}': only {' and '.join(_HOW)} can be read")
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = Path(data_dir or default).expanduser() / name
    versions = sorted(path for path in folder.glob("*") if (path / "dataset_info.json").is_file())
    if not versions:
        raise UserError(
            f"no prepared dataset in {folder}; make it ({_HOW[name]}), or give its data folder as "
            "@DATA_DIR"
        )
    return versions[-1]


def _open_split(folder: Path, split: str) -> Sequence[dict[str, Any]]:
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # includes protobuf's, which has its own base class
        raise UserError(
            f"{folder / 'dataset_info.json'} cannot be read ({one_line(error)}); prepare the data "
            "set again"
        ) from error
    known = sorted(builder.info.splits)
    if split.partition("[")[0] not in known:
        raise UserError(f"{folder} has no split '{split}'; it has {', '.join(known)}")
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f"{folder}: split '{split}' cannot be read; it must be prepared with "
            "file_format='array_record'"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: split '{split}' cannot be read ({one_line(error)})") from error


def _example(data: Sequence[dict[str, Any]], index: int, where: str) -> dict[str, Any]:
    try:
        return data[index]
    except (RuntimeError, ValueError, OSError) as error:  # of array_record, and of TFDS for a slice
        raise UserError(
            f"{where}: record {index} cannot be read ({one_line(error)}); prepare or copy the data "
            "set again"
        ) from error


def _table(folder: Path, split: str, data: Sequence[dict[str, Any]]) -> AnnotationTable:
    """All annotations and image sizes, from an index file that is created on first use."""
    letters = "".join(c if c.isalnum() else "-" for c in split)
    path = folder / f"index_{letters}.npz"
    shards = sorted(folder.glob("*.array_record*"))
    stamp = [[p.name, str(p.stat().st_size), str(p.stat().st_mtime_ns)] for p in shards]
    stamp.append([split, str(len(data)), "1"])  # the last one is the index's own version
    # An index that a kill or crash left incomplete, or even empty, is created again.
    with contextlib.suppress(
        OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile
    ):
        return _load_index(path, np.array(stamp))
    _log.info("reading %d records of %s once, to index them", len(data), folder)
    table = _scan(data, f"{folder} ({split})")
    _save_index(path, table, np.array(stamp))
    return table


def _scan(data: Sequence[dict[str, Any]], where: str) -> AnnotationTable:
    names, ids, sizes, counts = [], [], [], []
    parts: dict[str, list] = {"id": [], "area": [], "label": [], "is_crowd": [], "bbox": []}
    for i in range(len(data)):
        example = _example(data, i, where)
        name = example["image/filename"]
        name = name.decode() if isinstance(name, bytes) else str(name)
        height, width = stored_size(example["image"], f"image {name} of {where}")
        names.append(name)
        ids.append(int(example["image/id"]))
        sizes.append((height, width))
        objects = example["objects"]
        counts.append(len(objects["id"]))
        for key in ("id", "area", "label", "is_crowd"):
            parts[key].append(np.asarray(objects[key]).reshape(-1))
        # Sequences are lists, even empty ones; boxes are y, x, y, x relative to the sides.
        boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        parts["bbox"].append(boxes * [height, width, height, width])
    ymin, xmin, ymax, xmax = _joined(parts["bbox"], np.float64).reshape(-1, 4).T
    # COCO's boxes have two decimals; relative float32 boxes are off by 1e-4 pixels at most.
    bbox = np.round(np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=1), 3)
    return AnnotationTable(
        categories=COCO_CATEGORIES,
        names=tuple(names),
        image_ids=np.array(ids, np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=_joined(parts["id"], np.int64),
        bbox=bbox,
        area=_joined(parts["area"], np.float64),
        labels=_joined(parts["label"], np.int32),
        crowd=_joined(parts["is_crowd"], np.bool_),
    )


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(part.reshape(-1) for part in parts)]).astype(dtype)


_ARRAYS = ("image_ids", "sizes", "starts", "ids", "bbox", "area", "labels", "crowd")


def _load_index(path: Path, stamp: np.ndarray) -> AnnotationTable:
    with np.load(path, allow_pickle=False) as stored:
        if not np.array_equal(stored["stamp"], stamp):
            raise ValueError("the records have changed")
        arrays = {key: stored[key] for key in _ARRAYS}
        names = tuple(str(name) for name in stored["names"])
    return AnnotationTable(categories=COCO_CATEGORIES, names=names, **arrays)


def _save_index(path: Path, table: AnnotationTable, stamp: np.ndarray) -> None:
    """Writes a temporary file and renames it, since several hosts may do this at once."""
    arrays = {key: getattr(table, key) for key in _ARRAYS}
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            np.savez_compressed(file, stamp=stamp, names=np.array(table.names), **arrays)
        os.replace(aside, path)
    except OSError as error:
        _log.warning("the index %s cannot be kept (%s); every start reads all", path, error)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
