"""Reads the preprocessing of images from a config of mmdetection.

Source: open-mmlab/mmdetection v2.28 and v3.3.0: `img_norm_cfg` and `Normalize` of 2.x,
`data_preprocessor` of 3.x, `Resize` of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import Pixels
from drkd_jax.weights.libraries.checkpoint_spec import ImageSize
from drkd_jax.weights.mmdet_config.model import find_model
from drkd_jax.weights.mmdet_config.values import Section, Unread, as_dict

# Test steps that change the images in a way that is not supported here.
_CHANGING = re.compile(
    r"Resize|Crop|Normali[sz]e|Photo|Gray|Colou?r|Equali[sz]e|Albu|Rotate|Shear|Translate|Affine|"
    r"Warp|Perspective|Invert|Posteri[sz]e|Solari[sz]e|CLAHE|Expand|Mosaic|MixUp|AugMix|Cutout|Corrupt|"
    r"Blur|Contrast|Bright|Sharp|Channel|HSV"
)

_PREPROCESSORS = ("DetDataPreprocessor", "TrackDataPreprocessor")
_NO_PIXELS = (
    *("pad_size_divisor", "pad_value", "pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value"),
    *("boxtype2tensor", "non_blocking", "batch_augments"),  # the last one acts only in training
)
_PAD = 32  # images are padded with zeros to multiples of this
_PADS: Mapping[str, Any] = MappingProxyType(
    {
        "pad_size_divisor": _PAD,
        "size_divisor": _PAD,
        "pad_value": 0,
        "pad_val": 0,
        "size": None,
        "pad_to_square": False,
    }
)
_BUILT = ("Resize", "FixScaleResize", "Normalize")
_SIZES = (
    ("MultiScaleFlipAug", "img_scale"),
    ("Resize", "scale"),
    ("Resize", "img_scale"),
    ("FixScaleResize", "scale"),
)


def read_pixels(config: Mapping[str, Any]) -> Pixels | None:
    """The network's input format, if a config has it.

    Raises:
        UserError: it is not supported here; the message names the key.
    """
    faults: list[str] = []
    own, known = _preprocessor(config, faults)
    loaded = _check_loading(config, faults)
    found = own or _normalize(config, faults, loaded)
    _check_test(config, faults)
    if found is None and (known or loaded) and not faults:
        found = Pixels((0.0,) * 3, (1.0,) * 3, "bgr")  # images are not normalised
    if faults:
        raise UserError(f"its config says {'; '.join(faults)}")
    return found


def read_size(config: Mapping[str, Any]) -> ImageSize | None:
    """The image size of the test pipeline.

    Source: the default of `keep_ratio` of `Resize` is True in mmdetection 2.x, where the size is
    `img_scale`, and False in mmcv 2, where it is `scale`. Without `keep_ratio` the size is (width,
    height); with it the order is irrelevant.
    """
    data, loader = as_dict(config.get("data")), config.get("test_dataloader")
    for place in (data.get("test"), config.get("test_pipeline"), loader, data.get("val")):
        for kind, key in _SIZES:
            for step in _steps(place, kind):
                size = step.get(key)
                if isinstance(size, (list, tuple)) and len(size) == 2:
                    sides = [side for side in size if isinstance(side, int) and side >= 32]
                    if len(sides) == 2:
                        inner = next(_steps(step, "Resize"), {}) if "Aug" in kind else step
                        if not inner.get("keep_ratio", key == "img_scale"):
                            return ImageSize(sides[1], sides[0], stretch=True)
                        return ImageSize(min(sides), max(sides))
    return None


def image_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Messages about tests that pad their images in another way than here, or mirror them too."""
    model = as_dict(find_model(config)[0])
    key = "data_preprocessor"
    owner = as_dict(model.get(key, config.get(key)))
    owner = as_dict(owner.get(key)) or owner
    # Without this key the library pads only to the largest image of a batch.
    found: list[tuple[str, Mapping[str, Any]]] = [(key, {"pad_size_divisor": 1} | dict(owner))]
    found = found if owner else []
    found += [("Pad", step) for step in _steps(_testing(config), "Pad")]
    notes = []
    for where, part in found:
        for key, usual in _PADS.items():
            value = part.get(key)
            inner = value.get("img", 0) if isinstance(value, Mapping) else value
            if inner is not None and inner != usual:
                notes.append(
                    f"{where}.{key} = {repr(value)[:80]} in its config: here images are padded "
                    f"with zeros to multiples of {_PAD}; outputs near the lower and right border "
                    "can differ"
                )
    for step in _steps(_testing(config), "MultiScaleFlipAug"):
        if step.get("flip"):
            notes.append(
                f"MultiScaleFlipAug.flip = {repr(step['flip'])[:80]} in its config: its own test "
                "joins what is found in an image and in its mirror image; here an image is read "
                "once, as it is"
            )
    return tuple(dict.fromkeys(notes))


def _preprocessor(config: Mapping[str, Any], faults: list[str]) -> tuple[Pixels | None, bool]:
    """What the model's own preprocessor does, and whether a config of 3.x has one."""
    model, path = find_model(config)
    key = "data_preprocessor"
    found = [
        (as_dict(model).get(key), f"{path}.{key}"),
        (as_dict(config.get("model")).get(key), f"model.{key}"),
        (config.get(key), key),
    ]
    for value, where in found:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]  # of a semi-supervised training
        if isinstance(value, Mapping) and ("mean" in value or "bgr_to_rgb" in value):
            part = Section(value, where, faults)
            part.kind(*_PREPROCESSORS)
            turned = bool(part.get("bgr_to_rgb", False)) | bool(part.get("rgb_to_bgr", False))
            pixels = _pixels(part, turned)
            part.close(*_NO_PIXELS)
            if "mean" in part and any(_steps(_testing(config), "Normalize")):
                part.refuse("mean", part.get("mean"), "its test pipeline has a Normalize as well")
            return pixels, True
        if isinstance(value, Unread):
            faults.append(f"{where} = {value.text} (not a plain value)")
    return None, any(isinstance(value, Mapping) and value for value, _ in found)


def _normalize(config: Mapping[str, Any], faults: list[str], whole: bool) -> Pixels | None:
    """The `Normalize` of the test pipeline, or `img_norm_cfg` if there is no pipeline.

    Args:
        config: config of a file.
        faults: receives complaints.
        whole: the config has a pipeline, so a `Normalize` can only be in it.
    """
    for place in _pipelines(config):
        for step in _steps(place, "Normalize"):
            part = Section(step, "Normalize", faults)
            return _pixels(part, bool(part.get("to_rgb", True)))
    own = config.get("img_norm_cfg")
    if own and whole:
        faults.append("img_norm_cfg, but no Normalize among its pipelines' steps that would use it")
    elif isinstance(own, Mapping):
        part = Section(own, "img_norm_cfg", faults)
        return _pixels(part, bool(part.get("to_rgb", True)))
    if isinstance(own, Unread):
        faults.append(f"img_norm_cfg = {own.text} (not a plain value)")
    return None


def _testing(config: Mapping[str, Any]) -> list[Any]:
    """The sections that may contain the test pipeline."""
    data = as_dict(config.get("data"))
    beside = ("test_dataloader", "test_pipeline", "val_dataloader", "val_pipeline")
    return [data.get("test"), data.get("val"), *(config.get(key) for key in beside)]


def _pipelines(config: Mapping[str, Any]) -> list[Any]:
    """The sections that may contain pipelines, the test's first."""
    train = as_dict(config.get("data")).get("train")
    return [*_testing(config), train, config.get("train_dataloader"), config.get("train_pipeline")]


def _check_loading(config: Mapping[str, Any], faults: list[str]) -> bool:
    """Refuses images that are not loaded as three colours, blue first.

    Returns:
        Whether the config says at all how they are loaded.
    """
    for place in _pipelines(config):
        for step in _steps(place, "LoadImageFromFile"):
            load = Section(step, "LoadImageFromFile", faults)
            load.only("channel_order", "bgr")
            load.only("color_type", "color", "color_ignore_orientation")
            return True
    return False


def _check_test(config: Mapping[str, Any], faults: list[str]) -> None:
    """Refuses a test pipeline that changes images other than by size, mean and std.

    Source: inside `MultiScaleFlipAug`, which decides itself, `RandomFlip` ignores its own chance.
    """
    for place in _testing(config):
        types = [str(step["type"]).rpartition(".")[2] for step in _steps(place, None)]
        wrong = [name for name in types if _CHANGING.search(name) and name not in _BUILT]
        if wrong:
            faults.append(f"{wrong[0]} among the steps of its test, which is not built here")
        if "MultiScaleFlipAug" not in types:
            for step in _steps(place, "RandomFlip"):
                flip = Section(step, "RandomFlip", faults)
                for chance in ("prob", "flip_ratio"):
                    flip.only(chance, None, 0)
        if types:
            return


def _pixels(part: Section, turned: bool) -> Pixels:
    mean, std = part.numbers("mean", (0.0,) * 3), part.numbers("std", (1.0,) * 3)
    for key, row in (("mean", mean), ("std", std)):
        if len(row) != 3:
            part.refuse(key, row, "three numbers, one per colour, can be built here")
            return Pixels()
    if min(std) <= 0:
        part.refuse("std", std, "numbers above 0 can be built here")
        return Pixels()
    channels = "rgb" if turned else "bgr"
    return Pixels(tuple(map(float, mean)), tuple(map(float, std)), channels)  # type: ignore[arg-type]


def _steps(place: Any, kind: str | None) -> Iterator[Mapping[str, Any]]:
    """Every step of one kind, or of any kind, in a nested pipeline, in order.

    Steps of Albumentations are left out: they have the same names but other numbers.
    """
    todo, seen = [place], 0
    while todo and seen < 5000:
        item, seen = todo.pop(), seen + 1
        if isinstance(item, Mapping):
            name = str(item.get("type", "")).rpartition(".")[2]
            if name and name == (kind or name):
                yield item
            if name == "Albu":
                continue
            todo += reversed(list(item.values()))
        elif isinstance(item, (list, tuple)):
            todo += reversed(item)
