"""``coco:IMAGES_DIR:INSTANCES_JSON``: a folder of pictures beside COCO's instances file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drkd_jax.data.decode import decode_picture
from drkd_jax.data.instances import Fault, load_json, parse_instances
from drkd_jax.data.records import Category, Meta, Record
from drkd_jax.errors import UserError

_SHARE = 0.01  # of the entries that may have a fault where they are left out


class CocoSource:
    """Pictures of a folder, boxes of an instances file.

    Args:
        images_dir: folder of the pictures; ``file_name`` of the json is relative to it.
        instances_json: COCO's instances file.
        on_error: "stop" refuses a file with a fault. "skip" leaves entries with a fault out (see
            ``faults``), up to 1 % of all entries; but a class must never be left out. "list" is
            "skip" without these two limits, for those who want to see all that is wrong.

    Attributes:
        faults: entries of the instances file that were left out.

    Raises:
        UserError: a missing folder or file, or a fault of the json (each is named).
    """

    def __init__(self, images_dir: str | Path, instances_json: str | Path, on_error: str = "stop"):
        self.images_dir, self.instances_json = Path(images_dir), Path(instances_json)
        if not self.images_dir.is_dir():
            what = "is a file" if self.images_dir.exists() else "does not exist"
            raise UserError(
                f"picture folder {self.images_dir} {what}; the form is "
                "coco:IMAGES_DIR:INSTANCES_JSON"
            )
        self.spec = f"coco:{images_dir}:{instances_json}"
        content, name = load_json(self.instances_json), str(self.instances_json)
        self.faults: list[Fault] = []
        self.table = parse_instances(content, name, None if on_error == "stop" else self.faults)
        if on_error == "skip":
            self._check_faults(len(content["images"]) + len(content["annotations"]))

    def _check_faults(self, entries: int) -> None:
        classes = [fault for fault in self.faults if fault.kind == "category"]
        if classes:
            raise UserError(f"{self.instances_json}: {classes[0]}; a class cannot be skipped")
        if len(self.faults) > _SHARE * entries:
            raise UserError(
                f"{self.instances_json}: {len(self.faults)} of {entries} entries have a fault, "
                f"more than {_SHARE:.0%}; the first: {self.faults[0]} (`prepare --check "
                "SOURCE` lists all faults)"
            )

    @property
    def categories(self) -> tuple[Category, ...]:
        """Classes by rising id."""
        return self.table.categories

    def __len__(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        """Counts of pictures, boxes, classes, crowd regions, empty pictures, dropped boxes."""
        return self.table.describe(self.spec)

    def meta(self, index: int) -> Meta:
        """Id, size and number of training boxes of picture ``index``."""
        return self.table.meta(index)

    def record(self, index: int) -> Record:
        """Reads picture ``index``.

        Raises:
            UserError: the file is missing, no picture, or of another size than the json says.
        """
        path = self.images_dir / self.table.names[index]
        meta = self.table.meta(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"picture {path} (id {meta.image_id} in {self.instances_json}) cannot be read: "
                f"{error.strerror}"
            ) from error
        image = decode_picture(data, str(path), meta.height, meta.width)
        return Record(image, *self.table.boxes(index), meta.image_id, str(path))

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict with the original ids, areas and crowd flags."""
        return self.table.ground_truth()
