"""``coco:IMAGES_DIR:INSTANCES_JSON``: a folder of pictures beside COCO's instances file."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from drkd_jax.data.decode import decode_picture
from drkd_jax.data.file_names import find_files
from drkd_jax.data.instances import Fault, parse_instances
from drkd_jax.data.json_file import load_json
from drkd_jax.data.records import Category, Meta, Record
from drkd_jax.data.scan import Scan, scan
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
        exif: "auto", "stored" or "turned", see ``decode_picture``. Where "turned" is asked for,
            a stated size may be that of the stored or of the turned picture.
        depth: bits that 16-bit pictures use, see ``decode_picture``.

    Attributes:
        faults: entries of the instances file that were left out.
        mended: what was read in another way than it stands, a line a kind.

    Raises:
        UserError: a missing folder or file, or a fault of the json (each is named).
    """

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
                f"picture folder {self.images_dir} {what}; the form is "
                "coco:IMAGES_DIR:INSTANCES_JSON"
            )
        self.spec = f"coco:{images_dir}:{instances_json}"
        content, name = load_json(self.instances_json), str(self.instances_json)
        self.faults: list[Fault] = []
        self._paths, self.mended = find_files(self.images_dir, _file_names(content))
        faults = None if on_error == "stop" else self.faults
        self.table = parse_instances(content, name, faults, self._paths, self.mended)
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
        """Gives pictures that lie on their side the size that they are shown in."""
        sizes = self.table.sizes.copy()
        lying = (self.scan.sizes == sizes).all(axis=1)
        sizes[lying] = sizes[lying, ::-1]
        self.table = dataclasses.replace(self.table, sizes=sizes)

    @functools.cached_property
    def scan(self) -> Scan:
        """What the picture files say of themselves."""
        return scan([self.path(index) for index in range(len(self))])

    def path(self, index: int) -> Path:
        """Where picture ``index`` lies."""
        name = self.table.names[index]
        return self.images_dir / self._paths.get(name, name)

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
        path = self.path(index)
        meta = self.table.meta(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"picture {path} (id {meta.image_id} in {self.instances_json}) cannot be read: "
                f"{error.strerror}"
            ) from error
        image = decode_picture(
            data, str(path), meta.height, meta.width, exif=self.exif, depth=self.depth
        )
        return Record(image, *self.table.boxes(index), meta.image_id, str(path))

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO's instances dict with the original ids, areas and crowd flags."""
        return self.table.ground_truth()


def _file_names(content: dict[str, Any]) -> list[str]:
    images = content.get("images")
    rows = images if isinstance(images, list) else []
    names = (row.get("file_name") for row in rows if isinstance(row, dict))
    return [name for name in names if isinstance(name, str) and name.strip()]
