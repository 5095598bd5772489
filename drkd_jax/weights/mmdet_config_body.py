"""What a config of mmdetection says of a backbone and its pyramid.

Source: open-mmlab/mmdetection v2.28 and v3.3.0, mmdet/models/backbones/{resnet,resnext}.py,
mmdet/models/necks/fpn.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from drkd_jax.models.norm import EPSILON, group_count
from drkd_jax.weights.config_section import Section

BATCH_NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN", "NaiveSyncBatchNorm")


class Body(NamedTuple):
    """Settings by dotted key: those that no array shows, and those that have to agree with it."""

    settings: dict[str, Any]
    claims: dict[str, Any]
    neck_eps: float  # of the norms in the pyramid


def read_body(model: Section, laterals: int, depth: int, width: int) -> Body:
    """The backbone and the neck.

    Args:
        model: the part of the config; receives complaints.
        laterals: lateral convolutions that the arrays show; 0: no pyramid.
        depth: layers that the arrays show.
        width: `BackboneSettings.width` that the arrays show.
    """
    body = Body({}, {}, EPSILON)
    stages: tuple[int, ...] = (0, 1, 2, 3)
    if "backbone" in model:
        stages = _backbone(model.sub("backbone"), body, depth, width)
    if "neck" in model and laterals:
        body = _neck(model.sub("neck"), body, laterals, stages)
    model.ignore("backbone", "neck")
    return body


def _backbone(part: Section, body: Body, depth: int, width: int) -> tuple[int, ...]:
    """Fills in the backbone; returns the stages that it hands to the neck, 0 for C2."""
    settings, claims = body.settings, body.claims
    kind = part.kind("ResNet", "ResNeXt")
    for theirs, ours in (("depth", "depth"), ("base_channels", "width"), ("groups", "groups")):
        if theirs in part:
            claims[f"backbone.{ours}"] = part.whole(theirs)
    if kind == "ResNet":
        claims.pop("backbone.groups", None)
    if "stem_channels" in part:
        claims["backbone.stem"] = part.whole("stem_channels")
    style = part.get("style", "pytorch")
    if style not in ("pytorch", "caffe"):
        part.refuse("style", style, "pytorch or caffe can be built here")
    # Two 3x3 convolutions have their stride in the first of them in either style.
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
    norm.ignore("requires_grad", "momentum", "num_groups", "eps", "track_running_stats")
    norm.close()
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


def _neck(part: Section, body: Body, laterals: int, stages: tuple[int, ...]) -> Body:
    settings, claims = body.settings, body.claims
    part.kind("FPN")
    start, end = part.whole("start_level", 0), part.whole("end_level", -1)
    whole = end in (-1, len(stages) - 1, len(stages))
    used = stages[start:] if whole else stages[start:end]
    if used != tuple(range(4 - laterals, 4)):
        names = ", ".join(f"C{int(i) + 2}" for i in used) or "none"
        part.refuse("start_level", start, f"a pyramid on {names}; its last stage has to be C5")
    min_level = 6 - laterals
    if "num_outs" in part:
        outs = part.whole("num_outs", 5)
        top = min_level + outs - 1
        if not 5 <= top <= 8:
            part.refuse("num_outs", outs, f"P5 to P8 can be the last level here, not P{top}")
        settings["max_level"] = claims["max_level"] = top
    settings["extra"] = _extra(part, claims.get("max_level", 5) > 5)
    claims["extra"] = settings["extra"]
    settings["extra_relu"] = bool(part.get("relu_before_extra_convs", False))
    if "out_channels" in part:
        claims["channels"] = part.whole("out_channels")
    eps = body.neck_eps
    if part.values.get("norm_cfg"):
        norm = part.sub("norm_cfg")
        norm.kind(*BATCH_NORMS)
        eps = float(norm.number("eps", EPSILON))
        norm.ignore("requires_grad", "momentum", "track_running_stats")
        norm.close()
    for layer in ("conv_cfg", "act_cfg"):
        part.only(layer, None)
    upsample = part.sub("upsample_cfg")
    upsample.only("mode", "nearest")
    upsample.only("scale_factor", None, 2)
    upsample.close()
    part.ignore("type", "in_channels", "init_cfg", "no_norm_on_lateral", "norm_cfg")
    part.ignore("extra_convs_on_inputs")
    part.close()
    return body._replace(neck_eps=eps)


def _extra(part: Section, has_extra: bool) -> str:
    """How the levels above P5 are made; any way where there is none."""
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
