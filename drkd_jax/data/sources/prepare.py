"""Converts unzipped COCO folders to TFDS's ``coco/2017``, without TensorFlow.

The stock builder downloads 25 GB of archives and needs TensorFlow; this one writes the same
features under the same name, version and paths from folders that the user has unzipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection.coco import Coco

from drkd_jax.data.decode import stored_size
from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def prepare_tfds(
    images_dir: str | Path, instances_json: str | Path, split: str, data_dir: str | Path
) -> Path:
    """Writes one split of ``coco/2017`` as array_record files; existing other splits are kept.

    The ground truth without its outlines is stored beside the records (``instances_SPLIT.json``)
    for evaluation, since TFDS rounds areas to whole pixels.

    Args:
        images_dir: folder of the images (``train2017``); they are copied unchanged.
        instances_json: COCO's instances file; its classes must be COCO's 80, or some of them.
        split: ``train``, ``validation`` or ``test``.
        data_dir: TFDS's data folder; ``coco/2017/1.1.0`` is created in it.

    Returns:
        The dataset's folder.

    Raises:
        UserError: a fault of the input (see ``CocoSource``), an image that is missing, has several
            entries or another stored size than stated, classes that COCO does not have, an
            unknown split, or one that already exists.
    """
    if split not in SPLITS:
        raise UserError(f"split '{split}': expected one of {', '.join(SPLITS)}")
    source = CocoSource(images_dir, instances_json)
    _check(source)
    data_dir = Path(data_dir).expanduser()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".prepare-", dir=data_dir))
    except OSError as error:
        raise UserError(f"cannot write to {data_dir}: {error.strerror}") from error
    try:
        builder = UnzippedCoco(config="2017", data_dir=scratch, file_format="array_record")
        target = data_dir / Path(builder.data_dir).relative_to(scratch)
        if (target / f"instances_{split}.json").exists() or split in _splits(target):
            raise UserError(
                f"{target} already has the split '{split}'; take another data folder or remove it"
            )
        builder.source, builder.split = source, split
        how = tfds.download.DownloadConfig(compute_stats="skip", try_download_gcs=False)
        with contextlib.redirect_stdout(io.StringIO()):  # its output would name the scratch folder
            builder.download_and_prepare(download_config=how)
        _merge(Path(builder.data_dir), target, source.coco_ground_truth(), split)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


class UnzippedCoco(Coco, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's ``coco`` with one split, from a folder of images and an instances file."""

    name = "coco"
    source: CocoSource
    split: str

    def _info(self) -> tfds.core.DatasetInfo:
        # As in the stock builder, except for tf.int64.
        objects = {
            "id": np.int64,
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=[c.name for c in COCO_CATEGORIES]),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="COCO 2017, prepared from unzipped folders.",
            features=tfds.features.FeaturesDict(features),
            homepage="http://cocodataset.org/#home",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, Any]]:
        table = self.source.table
        for index, (image_id, name) in enumerate(zip(table.image_ids, table.names, strict=True)):
            height, width = table.sizes[index].tolist()
            _check_size(self.source, index)
            objects = [
                {
                    "id": int(table.ids[row]),
                    # Whole pixels, as in the stock builder; 0 only for areas that are 0.
                    "area": int(np.ceil(table.area[row] - 0.5)) or int(table.area[row] > 0),
                    # Boxes of the file may extend outside; BBoxFeature only accepts 0..1.
                    "bbox": _shares(table.clipped[row], height, width),
                    "label": table.categories[table.labels[row]].name,
                    "is_crowd": bool(table.crowd[row]),
                }
                for row in range(table.starts[index], table.starts[index + 1])
            ]
            yield (
                name,
                {
                    "image": str(self.source.path(index)),
                    "image/filename": name,
                    "image/id": int(image_id),
                    "objects": objects,
                },
            )


def _shares(corners: np.ndarray, height: int, width: int) -> tfds.features.BBox:
    x1, y1, x2, y2 = corners.tolist()
    x2, y2 = max(x1, x2), max(y1, y2)  # a negative side becomes 0, as BBoxFeature requires
    return tfds.features.BBox(ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width)


def _check_size(source: CocoSource, index: int) -> None:
    """Checks the stored size: TFDS stores relative boxes, which another size would stretch."""
    path, (height, width) = source.path(index), source.table.sizes[index].tolist()
    stored = stored_size(path.read_bytes(), str(path))
    if stored == (height, width):
        return
    mend = "correct the one that is wrong"
    if stored == (width, height):
        mend += (
            ", or, where the file's EXIF turns it, read such a set with "
            f"coco:{source.images_dir}:{source.instances_json}"
        )
    raise UserError(
        f"{path}: the file is stored as {stored[1]}x{stored[0]} pixels (width x height), its "
        f"annotations say {width}x{height}; {mend}"
    )


def _check(source: CocoSource) -> None:
    strange = [c for c in source.categories if c not in COCO_CATEGORIES]
    if strange:
        shown = ", ".join(f"{c.id} '{c.name}'" for c in strange[:3])
        raise UserError(
            f"{source.instances_json}: coco/2017 has no class {shown}; read such a set with "
            f"coco:{source.images_dir}:{source.instances_json}, which needs no preparing"
        )
    if source.table.image_ids.dtype != np.int64 or source.table.ids.dtype != np.int64:
        raise UserError(
            f"{source.instances_json}: coco/2017 keeps ids as whole numbers under 2^63; read such "
            f"a set with coco:{source.images_dir}:{source.instances_json}"
        )
    for index, image_id in enumerate(source.table.image_ids):
        if not source.path(index).is_file():
            raise UserError(f"image {source.path(index)} (id {image_id}) does not exist")
    twice = [name for name, count in Counter(source.table.names).items() if count > 1]
    if twice:
        raise UserError(
            f"{source.instances_json}: {twice[0]} is the image of several entries, and TFDS "
            "tells images by their names; leave one of them out"
        )


def _splits(target: Path) -> dict[str, Any]:
    info = target / "dataset_info.json"
    if not info.is_file():
        return {}
    return {split["name"]: split for split in json.loads(info.read_text())["splits"]}


def _merge(made: Path, target: Path, ground_truth: dict[str, Any], split: str) -> None:
    """Moves a new split into the dataset's folder, which may have others."""
    target.mkdir(parents=True, exist_ok=True)
    splits = _splits(target) | _splits(made)
    info = json.loads((made / "dataset_info.json").read_text()) | {"splits": list(splits.values())}
    (made / "dataset_info.json").write_text(json.dumps(info, indent=2))
    (made / f"instances_{split}.json").write_text(json.dumps(ground_truth))
    # The list of splits comes last: until then the folder is effectively unchanged.
    for path in sorted(made.iterdir(), key=lambda path: path.name == "dataset_info.json"):
        os.replace(path, target / path.name)
