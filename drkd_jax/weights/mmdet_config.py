"""The config that a checkpoint of mmdetection carries: its model and its classes.

Everything in it that changes what the network computes is used, or refused by name.

Source: open-mmlab/mmdetection v2.28 and v3.3.0: top-level `test_cfg` of 2.x.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from drkd_jax.errors import UserError
from drkd_jax.models.norm import EPSILON
from drkd_jax.weights.config_section import Section
from drkd_jax.weights.config_text import ConfigTextError, read_config_text
from drkd_jax.weights.config_values import HUGE, size_of
from drkd_jax.weights.mmdet_config_body import read_body
from drkd_jax.weights.mmdet_config_heads import read_heads

# Where training programs that hold more than one detector keep the one of the weights.
_INNER = ("detector", "architecture", "model")
_OF_MODEL = ("type", "train_cfg", "test_cfg", "pretrained", "init_cfg", "data_preprocessor")
_OTHER_HEADS = ("mask_head", "mask_iou_head", "semantic_head", "use_syncbn")


class FileConfig(NamedTuple):
    """What a config says; settings and claims by dotted key.

    Attributes:
        settings: what no array shows.
        claims: what shows in the arrays as well and has to agree.
        body: complaints about backbone and pyramid.
        heads: complaints about what comes after them.
        neck_eps: of the norms in the pyramid.
        style: "pytorch", "caffe", or "" where it is not said.
    """

    settings: Mapping[str, Any]
    claims: Mapping[str, Any]
    body: tuple[str, ...]
    heads: tuple[str, ...]
    neck_eps: float = EPSILON
    style: str = ""


def find_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The config among what a file holds beside its weights; {} where there is none.

    Raises:
        UserError: it is no text that can be read.
    """
    found = next((meta[key] for key in ("config", "cfg") if meta.get(key)), None)
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    if isinstance(found, str):
        try:
            return read_config_text(found)
        except ConfigTextError as error:
            raise UserError(
                f"the config text that it carries cannot be read ({error}), and what its network "
                "computes stands there; save the weights without that text, and give what is not "
                "the library's own as settings"
            ) from error
    if found is None:
        return {}
    if not isinstance(found, Mapping) or size_of(found)[0] > HUGE:
        what = (
            "larger than any" if isinstance(found, Mapping) else f"of type {type(found).__name__}"
        )
        raise UserError(
            f"the config that it carries is {what}, which cannot be read, and what its network "
            "computes stands there; save the weights without it, and give what is not the "
            "library's own as settings"
        )
    return dict(found)


def read_model(config: Mapping[str, Any], shown: Mapping[str, Any]) -> FileConfig:
    """What a config says of its model.

    Args:
        config: of `find_config`.
        shown: what the arrays show: `laterals`, `min_level`, `max_level`, `detector` ("" for a
            head that is not ours) and the settings of the backbone.
    """
    body_faults: list[str] = []
    head_faults: list[str] = []
    values, path = find_model(config)
    if config.get("_base_") and not (isinstance(values, Mapping) and "backbone" in values):
        base = Section(config, "", body_faults)
        base.refuse("_base_", config["_base_"], "a file that is not in it, and no backbone is")
        return FileConfig({}, {}, tuple(body_faults), ())
    if values is None:
        return FileConfig({}, {}, (), ())
    model = Section(values, path, body_faults)
    backbone = shown["backbone"]
    body = read_body(model, shown["laterals"], backbone["depth"], backbone["width"])
    settings, claims = body.settings, body.claims
    if shown["detector"]:
        heads = Section(values, path, head_faults)
        heads.ignore("backbone", "neck", "rpn_head", "roi_head", "bbox_head")
        heads.ignore(*_OF_MODEL, *_OTHER_HEADS)
        test = heads.values.get("test_cfg")
        where = heads.name("test_cfg")
        if test is None:  # beside the model in mmdetection 2.0
            test, where = config.get("test_cfg"), "test_cfg"
        top = settings.get("max_level", shown["max_level"])
        more, said = read_heads(
            heads,
            Section({} if test is None else test, where, head_faults),
            shown["detector"],
            shown["min_level"],
            top,
        )
        heads.close()
        settings, claims = settings | more, claims | said
    style = str(settings.get("backbone.style", "")) if "backbone" in model else ""
    return FileConfig(
        settings, claims, tuple(body_faults), tuple(head_faults), body.neck_eps, style
    )


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of the data, where a config names them; () elsewhere."""
    for place in _datasets(config):
        for key in ("classes", "CLASSES", "class_names", "class_name"):
            if found := as_names(place.get(key)):
                return found
    return ()


def as_names(value: Any) -> tuple[str, ...]:
    """A tuple of names from what a file has in its place; () for anything else."""
    if isinstance(value, str) and value[:1] in ("[", "("):  # the text fields of safetensors
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    if isinstance(value, str):  # ("nut") for ("nut",), or the path of a list
        return (value,) if value and not value.endswith(".txt") else ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        return ()
    return tuple(value)


def find_model(config: Mapping[str, Any]) -> tuple[Any, str]:
    """The dict that describes the detector, and its name."""
    value, path = config.get("model", config.get("algorithm")), "model"
    for _ in range(3):
        if not isinstance(value, Mapping) or "backbone" in value:
            break
        inner = next((key for key in _INNER if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value, path = value[inner], f"{path}.{inner}"
    return value, path


def _datasets(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Where the classes may stand, the data that is trained on first."""
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    loaders = [config.get(f"{name}_dataloader") for name in ("train", "val", "test")]
    todo = [data.get(name) for name in ("train", "val", "test")] + loaders
    seen = 0
    while todo and seen < 5000:
        item, seen = todo.pop(0), seen + 1
        if isinstance(item, (list, tuple)):
            todo[:0] = item
        elif isinstance(item, Mapping):
            yield item
            if isinstance(item.get("metainfo"), Mapping):
                yield item["metainfo"]
            todo[:0] = [item.get(key) for key in ("dataset", "datasets")]
    for value in (config.get("metainfo"), config):
        if isinstance(value, Mapping):
            yield value
