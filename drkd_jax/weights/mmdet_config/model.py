"""Reads classes, backbone and pyramid from the config in a checkpoint of mmdetection.

Everything in it that affects the network's computation is either used or refused by name.

Source: open-mmlab/mmdetection v2.28 and v3.3.0: top-level `test_cfg` of 2.x,
mmdet/models/backbones/{resnet,resnext}.py, mmdet/models/necks/fpn.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drkd_jax.errors import UserError
from drkd_jax.models.norm import EPSILON, group_count
from drkd_jax.weights.libraries.checkpoint_spec import as_names
from drkd_jax.weights.mmdet_config.heads import BATCH_NORMS, read_heads
from drkd_jax.weights.mmdet_config.text import ConfigTextError, read_config_text
from drkd_jax.weights.mmdet_config.values import HUGE, FileConfig, Section, as_dict, size_of

# Keys under which training programs with more than one detector keep that of the weights.
_INNER = ("detector", "architecture", "model")
_BACKBONES = ("ResNet", "ResNeXt")
_OF_MODEL = ("train_cfg", "test_cfg", "pretrained", "init_cfg", "data_preprocessor")
# Classes whose boxes come from backbone, neck and heads alone, by what the arrays show.
_ONE_STAGE = ("RetinaNet", "SingleStageDetector", "KnowledgeDistillationSingleStageDetector")
_TWO_STAGE = (
    *("FasterRCNN", "TwoStageDetector", "MaskRCNN", "CascadeRCNN", "HybridTaskCascade"),
    *("MaskScoringRCNN", "PointRend", "PanopticFPN", "TwoStagePanopticSegmentor"),
)
_OTHER_HEADS = ("mask_head", "mask_iou_head", "semantic_head", "use_syncbn")
_LOST = (
    ", and what its network computes stands there; save the weights without it, and give what is "
    "not the library's own as settings"
)


def find_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the config in a file's metadata; {} if there is none.

    Raises:
        UserError: its text cannot be parsed.
    """
    found = next((meta[key] for key in ("config", "cfg") if meta.get(key)), None)
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    if isinstance(found, str):
        try:
            return read_config_text(found)
        except ConfigTextError as error:
            raise UserError(
                f"the config text that it carries cannot be read ({error}){_LOST}"
            ) from error
    if found is None:
        return {}
    what = "" if isinstance(found, Mapping) else f"of type {type(found).__name__}"
    if not what and size_of(found)[0] > HUGE:
        what = "larger than any"
    if what:
        raise UserError(f"the config that it carries is {what}, which cannot be read{_LOST}")
    return dict(found)


def read_model(config: Mapping[str, Any], shown: Mapping[str, Any]) -> FileConfig:
    """Reads the model from a config.

    Args:
        config: from `find_config`.
        shown: the settings that the arrays show, without "min_level" if there is no pyramid and
            without "detector" if the head is unsupported.
    """
    said = FileConfig()
    values, path = find_model(config)
    if config.get("_base_") and not (isinstance(values, Mapping) and "backbone" in values):
        base = Section(config, "", said.body)
        base.refuse("_base_", config["_base_"], "a file that is not in it, and no backbone is")
        return said
    if values is None:
        return said
    model = Section(values, path, said.body)
    stages: tuple[int, ...] = (0, 1, 2, 3)
    if "backbone" in model:
        stages = _backbone(model.sub("backbone"), said, shown["backbone"])
    if "neck" in model and "min_level" in shown:
        _neck(model.sub("neck"), said, shown["min_level"], stages)
    if "detector" in shown:
        heads = Section(values, path, said.heads)
        heads.kind(*(_ONE_STAGE if shown["detector"] == "retinanet" else _TWO_STAGE))
        heads.ignore("backbone", "neck", "rpn_head", "roi_head", "bbox_head")
        test, where = heads.values.get("test_cfg"), heads.name("test_cfg")
        if test is None:  # beside the model in mmdetection 2.0
            test, where = config.get("test_cfg"), "test_cfg"
        tests = Section({} if test is None else test, where, said.heads)
        top = said.settings.get("max_level", shown.get("max_level", 6))
        strides = [2**level for level in range(shown["min_level"], top + 1)]
        read_heads(heads, tests, said, shown["detector"], strides)
        heads.close(*_OF_MODEL, *_OTHER_HEADS)
    return said


def other_kinds(config: Mapping[str, Any]) -> list[str]:
    """Complaints about a backbone or neck that a config calls by a name not known here."""
    values, path = find_model(config)
    complaints: list[str] = []
    for key, known in (("backbone", _BACKBONES), ("neck", ("FPN",))):
        part = as_dict(values).get(key)
        if isinstance(part, Mapping):
            Section(part, f"{path}.{key}", complaints).kind(*known)
    return complaints


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of the data, if a config names them; else ()."""
    for place in _datasets(config):
        for key in ("classes", "CLASSES", "class_names", "class_name"):
            if found := as_names(place.get(key)):
                return found
    return ()


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
    """The sections that may name the classes, those of the training data first."""
    data = as_dict(config.get("data"))
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


def _backbone(part: Section, said: FileConfig, shown: Mapping[str, Any]) -> tuple[int, ...]:
    """Fills in the backbone; returns the stages that it passes to the neck, 0 for C2."""
    settings, claims = said.settings, said.claims
    depth, width = shown["depth"], shown["width"]
    kind = part.kind(*_BACKBONES)
    said.claim("backbone.depth", part, "depth")
    said.claim("backbone.width", part, "base_channels")
    said.claim("backbone.groups", part, "groups")
    if kind == "ResNet":
        claims.pop("backbone.groups", None)
    said.claim("backbone.stem", part, "stem_channels")
    style = part.get("style", "pytorch")
    if style not in ("pytorch", "caffe"):
        part.refuse("style", style, "pytorch or caffe can be built here")
    # Blocks of two 3x3 convolutions have the stride in the first one in either style.
    settings["backbone.style"] = "caffe" if style == "caffe" and depth >= 50 else "pytorch"
    norm = part.sub("norm_cfg")
    if norm.kind(*BATCH_NORMS, "GN") == "GN":
        claims["backbone.norm"] = "gn"
        widths = (width * 2**i for i in range(6))
        wrong = [n for n in widths if group_count(n) != norm.number("num_groups", 32)]
        if wrong:
            norm.refuse("num_groups", norm.get("num_groups"), f"{group_count(wrong[0])} here")
        norm.only("eps", EPSILON)
    else:
        claims["backbone.norm"] = "frozen_bn"
        settings["backbone.eps"] = float(norm.number("eps", EPSILON))
    norm.close("requires_grad", "momentum", "num_groups", "eps", "track_running_stats")
    if part.values.get("dcn"):
        _deformable(part.sub("dcn"), claims)
        part.only("stage_with_dcn", (False, True, True, True))
    part.only("num_stages", 4)
    part.only("strides", (1, 2, 2, 2))
    part.only("dilations", (1, 1, 1, 1))
    part.only("in_channels", 3)
    for switch in ("deep_stem", "avg_down"):
        part.only(switch, False)
    for block in ("conv_cfg", "plugins", "gcb", "gen_attention", "sac", "output_img"):
        part.only(block, None, False, ())
    part.ignore("frozen_stages", "norm_eval", "with_cp", "zero_init_residual", "init_cfg")
    part.ignore("pretrained", "base_width", "stage_with_dcn", "stage_with_gcb", "groups", "dcn")
    part.ignore("stage_with_gen_attention")
    stages = part.numbers("out_indices", (0, 1, 2, 3))
    part.close()
    return stages


def _deformable(part: Section, claims: dict[str, Any]) -> None:
    if "modulated" in part:  # mmdetection 1.x
        claims["backbone.dcn"] = "v2" if part.get("modulated") else "v1"
        part.ignore("type")
    else:
        kind = part.kind("DCN", "DCNv1", "DCNv2")
        claims["backbone.dcn"] = "v2" if kind == "DCNv2" else "v1"
    for groups in ("deform_groups", "deformable_groups"):
        part.only(groups, 1)
    part.only("fallback_on_stride", False)
    part.close()


def _neck(part: Section, said: FileConfig, min_level: int, stages: tuple[int, ...]) -> None:
    settings, claims = said.settings, said.claims
    part.kind("FPN")
    start, end = part.whole("start_level", 0), part.whole("end_level", -1)
    whole = end in (-1, len(stages) - 1, len(stages))
    used = stages[start:] if whole else stages[start:end]
    if used != tuple(range(min_level - 2, 4)):
        names = ", ".join(f"C{int(i) + 2}" for i in used) or "none"
        part.refuse("start_level", start, f"a pyramid on {names}; its last stage has to be C5")
    if "num_outs" in part:
        outs = part.whole("num_outs", 5)
        top = min_level + outs - 1
        if not 5 <= top <= 8:
            part.refuse("num_outs", outs, f"P5 to P8 can be the last level here, not P{top}")
        settings["max_level"] = claims["max_level"] = top
    settings["extra"] = _extra(part, claims.get("max_level", 5) > 5)
    claims["extra"] = settings["extra"]
    settings["extra_relu"] = bool(part.get("relu_before_extra_convs", False))
    said.claim("channels", part, "out_channels")
    if part.values.get("norm_cfg"):
        norm = part.sub("norm_cfg")
        norm.kind(*BATCH_NORMS)
        said.neck_eps = float(norm.number("eps", EPSILON))
        norm.close("requires_grad", "momentum", "track_running_stats")
    for layer in ("conv_cfg", "act_cfg"):
        part.only(layer, None)
    upsample = part.sub("upsample_cfg")
    upsample.only("mode", "nearest")
    upsample.only("scale_factor", None, 2)
    upsample.close()
    part.ignore("type", "in_channels", "init_cfg", "no_norm_on_lateral", "norm_cfg")
    part.close("extra_convs_on_inputs")


def _extra(part: Section, has_extra: bool) -> str:
    """How the levels above P5 are made; any value if there are none."""
    wanted = part.get("add_extra_convs", False)
    if wanted is True:
        on_input = part.get("extra_convs_on_inputs", True)
        wanted = "on_input" if on_input else "on_output"
    if wanted is False or not has_extra:
        return "pool"
    known = {"on_input": "conv_c5", "on_output": "conv_p5"}
    if wanted not in known:
        part.refuse("add_extra_convs", wanted, f"{' or '.join(known)} can be built here")
    return known.get(wanted, "pool")
