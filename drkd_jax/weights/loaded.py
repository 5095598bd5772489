"""The result of `load`: a model's arrays, its settings, and the format of its input.

Letters: H W pixels of an image, n objects.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float64, Int, UInt8

from drkd_jax.data.batch import image_batch
from drkd_jax.data.config import PipelineConfig, read_pipeline
from drkd_jax.data.sources.records import Category
from drkd_jax.errors import UserError
from drkd_jax.evaluation import found_in
from drkd_jax.models.arrays import fill
from drkd_jax.models.conventions import conventions
from drkd_jax.models.filling import as_tuples
from drkd_jax.models.folding import fold
from drkd_jax.models.pixels import Pixels, read_pixels
from drkd_jax.types import Batch, Detections
from drkd_jax.values import typed
from drkd_jax.weights.fetch.by_name import is_name
from drkd_jax.weights.libraries.key_report import KeyReport
from drkd_jax.weights.libraries.understanding import abstract
from drkd_jax.weights.ours import About


class Objects(NamedTuple):
    """The detections on an image, best first."""

    boxes: Float64[np.ndarray, "n 4"]  # xyxy, pixels of the image
    scores: Float64[np.ndarray, "n"]  # 0..1
    labels: Int[np.ndarray, "n"]  # 0..K-1, indices into `Weights.categories`


@dataclasses.dataclass(frozen=True)
class Weights:
    """Arrays by our names, and the model that they fill completely.

    Attributes:
        path: path of the file or folder on this machine.
        name: what `load` was called with: the path, or a name (`by_name.py`).
        arrays: by flat name, on the host.
        about: settings, classes, origin.
        report: the use of every key of another library's file; else None.
        lines: messages about a file.
        config: config of the run, for a work folder; {} for files and exports.
    """

    path: Path
    name: str
    arrays: dict[str, np.ndarray]
    about: About
    report: KeyReport | None = None
    lines: tuple[str, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def origin(self) -> str:
        """One line: the work folder and step, or the file and how many of its keys were used."""
        source = self.about.source
        if self.config:
            return f"{self.name}, step {self.step}"
        place = f"{self.name} ({self.path})" if is_name(self.name) else str(self.path)
        words = f"{place}, {self.about.part}"
        if "library" in source:
            words += f" of {source['library']}"
        if self.report is None:
            return f"{words}, {len(self.arrays)} arrays"
        reasons = {
            reason.split(":")[0]: list(self.report.skipped.values()).count(reason)
            for reason in dict.fromkeys(self.report.skipped.values())
        }
        skipped = "".join(f", {count} of {reason} skipped" for reason, count in reasons.items())
        head = f"; its head is {source['head']}" if "head" in source else ""
        return f"{words}, all {len(self.arrays)} arrays{skipped}{head}{self._eps()}"

    def _eps(self) -> str:
        """The assumed eps of a torchvision detector, since its file does not show it."""
        if self.about.source.get("library") != "torchvision" or self.about.part == "backbone":
            return ""
        eps = self.about.settings["backbone"]["eps"]
        other = " (what was trained on from a COCO_V1 file needs backbone.eps=0)" if eps else ""
        return f"; its batch norms compute with an eps of {eps:g}{other}"

    @property
    def step(self) -> int:
        """The step of its training, if known; else 0."""
        return int(self.about.source.get("step", 0))

    @property
    def categories(self) -> tuple[Category, ...]:
        """Id and name of each class; () if a file does not name them."""
        return tuple(Category(number, name) for number, name in self.about.categories)

    @property
    def dtype(self) -> str:
        """The dtype of the computation: the precision of its run, else "float32"."""
        return self.config.get("train", {}).get("precision", "float32")

    def model(self, dtype: Any = None) -> Any:
        """The model without values: a detector, a feature extractor or a backbone."""
        about = self.about
        return abstract(about.part, about.settings, about.num_classes, dtype or self.dtype)

    def detector(self, dtype: Any = None) -> Any:
        """The model with its arrays.

        Args:
            dtype: of the computation; None: `dtype`.

        Raises:
            UserError: the arrays of a work folder are not those of its config.
        """
        return fill(self.model(dtype), self.arrays, self.name)

    def as_config(self, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """The run's own config; for a file, the part that describes how to prepare images.

        Args:
            size: for a file: pixels of the shorter side after resizing, and at most of the longer
                one. None: as the file says, or 800 and 1333.
        """
        if self.config:
            return self.config
        about = self.about
        library = conventions(about.settings.get("convention", "mmdet"))
        data = dict(about.data) if "mean" in about.data else dataclasses.asdict(library.pixels)
        data.pop("val", None)
        if size or "canvases" not in data:
            said = {"shorter": data.get("shorter", 800), "longer": data.get("longer", 1333)}
            shorter, longer = size or (typed(f"data.{k}", v, int) for k, v in said.items())
            sides = tuple(-(-side // 32) * 32 for side in (shorter, longer))
            data |= {"canvases": (sides, sides[::-1]), "shorter": shorter, "longer": longer}
            if data.get("resize") == "stretch":
                if size:  # a shorter side and a limit for the longer one: aspect ratios are kept
                    data["resize"] = "mmdet"
                else:
                    data["canvases"] = (sides,)
        return as_tuples({"seed": 0, "data": {"max_boxes": 100} | data})

    @property
    def pixels(self) -> Pixels:
        """The network's input format."""
        return read_pixels(self.as_config()["data"], self.dtype)

    def pipeline(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> PipelineConfig:
        """How images are resized and placed on canvases; for `size` see `as_config`."""
        return read_pipeline(self.as_config(size), batch_size)

    def check_detector(self) -> None:
        """Refuses a model without a head.

        Raises:
            UserError: names it.
        """
        if self.about.part != "detector":
            raise UserError(f"{self.name}: it has no detection head of ours, so it detects nothing")

    @functools.cached_property
    def _run(self) -> Any:
        self.check_detector()
        graph, state = nnx.split(fold(self.detector()))
        pixels = self.pixels

        def run(arrays: Any, batch: Batch) -> Detections:
            detector = nnx.merge(graph, arrays, copy=True)
            images, targets = pixels.prepare(batch)
            return detector.predict(detector.features(images), targets.sizes)

        return functools.partial(jax.jit(run), nnx.as_pure(state))

    def predict(self, image: UInt8[np.ndarray, "H W 3"], lowest: float = 0.0) -> Objects:
        """The objects on one image; compiles for the first image of each canvas size.

        Args:
            image: RGB.
            lowest: least score of a returned object.

        Raises:
            UserError: the model has no head, or `check_image` refuses the image.
        """
        check_image(image)
        batch = image_batch([image], self.pipeline(), 1)
        detections = Detections(*jax.device_get(tuple(self._run(batch))))
        boxes, scores, labels = found_in(detections, batch, 0)
        most = int((scores >= lowest).sum())
        return Objects(boxes[:most], scores[:most], labels[:most])


def check_image(image: Any) -> None:
    """Refuses anything but uint8 images: floats from 0 to 1, say, would be almost black.

    Raises:
        UserError: it is not a uint8 array [H, W, 3].
    """
    kind, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise UserError(f"an image is an RGB array [H, W, 3] of uint8, not {shape} of {kind}")
