"""The answers of mmdetection's own detectors: all stages, losses, gradients, detections.

    python -m crosscheck.reference.mmdet FOLDER [THREADS]

reads FOLDER/request.json (a list of `Model` as plain values) and writes FOLDER/MODEL.npz. Needs
mmdetection 3.x with mmcv's operators, torch and NumPy, and nothing else. Models are built from
the library's shipped configs with random weights. Both sides draw weights, images and ground
truths by `seeded.py`. Only the last layers are scaled until there are detections to compare; the
answer contains their scales.

Every model runs from the padded tensor on, by the library's own functions.
"""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from functools import partial
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.models.dense_heads import base_dense_head, rpn_head
from mmdet.models.layers import bbox_nms
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from crosscheck.reference.mmdet_build import Model, build, liven, samples
from crosscheck.reference.probes import (
    GAP,
    gradients,
    nms_fault,
    recorded,
    replayed,
    serve,
    widened,
)
from crosscheck.reference.seeded import draw_batch, thin

SEEDS = 400  # batches to try
RPN_GAP = 2e-5  # the same for proposals, which have many more pairs


def predicted(
    net: nn.Module, model: Model, images: Tensor, given: list[DetDataSample]
) -> list[InstanceData]:
    """Detections of all images, in pixels of the canvas."""
    maps = net.extract_feat(images)
    if model.detector == "retinanet":
        return net.bbox_head.predict(maps, given, rescale=False)
    proposals = net.rpn_head.predict(maps, given, rescale=False)
    return net.roi_head.predict(maps, proposals, given, rescale=False)


def inference(
    net: nn.Module, model: Model, images: Tensor, given: list[DetDataSample]
) -> tuple[dict[str, np.ndarray], str]:
    """All stages of one batch in evaluation, and what is wrong with its detections."""
    tensors: dict[str, Any] = {}
    kept: dict[str, np.ndarray] = {}
    fault = ""
    body: list[Any] = []
    hook = net.backbone.register_forward_hook(lambda _module, _given, said: body.append(said))
    maps = net.extract_feat(images)
    hook.remove()
    for name, levels in (("body", body[0]), ("pyramid", maps)):
        tensors |= {f"{name}.{level}": value for level, value in enumerate(levels)}
    if model.detector == "retinanet":
        for name, levels in zip(("class logits", "class deltas"), net.bbox_head(maps), strict=True):
            tensors |= {f"{name}.{level}": value for level, value in enumerate(levels)}
        with recorded(base_dense_head, "batched_nms") as last:
            detections = net.bbox_head.predict(maps, given, rescale=False)
    elif model.detector != "pyramid":
        for name, levels in zip(("rpn logits", "rpn deltas"), net.rpn_head(maps), strict=True):
            tensors |= {f"{name}.{level}": value for level, value in enumerate(levels)}
        with recorded(rpn_head, "batched_nms") as first:
            proposals = net.rpn_head.predict(maps, given, rescale=False)
        for boxes, scores, groups, rule in first.given:
            fault = fault or nms_fault(boxes, scores, groups, rule["iou_threshold"], RPN_GAP)
        boxes = [found.bboxes for found in proposals]
        for b, found in enumerate(proposals):
            kept[f"proposals.{b}"] = found.bboxes.numpy()
            kept[f"proposal scores.{b}"] = found.scores.numpy()
        head = net.roi_head
        if model.detector == "faster_rcnn":
            stage = head._bbox_forward(maps, bbox2roi(boxes))
            tensors["regions"] = stage["bbox_feats"]
        else:
            stage = head._bbox_forward(0, maps, bbox2roi(boxes))
        tensors["class logits"], tensors["class deltas"] = stage["cls_score"], stage["bbox_pred"]
        with recorded(bbox_nms, "batched_nms") as last:
            detections = head.predict(maps, proposals, given, rescale=False)
    kept |= {name: thin(name, value.numpy(), model.keep) for name, value in tensors.items()}
    if model.detector == "pyramid":
        return kept, ""
    for b, found in enumerate(detections):
        kept[f"detections.boxes.{b}"] = found.bboxes.numpy()
        kept[f"detections.scores.{b}"] = found.scores.numpy()
        kept[f"detections.labels.{b}"] = found.labels.numpy()
    for b, (boxes, scores, groups, rule, *_) in enumerate(last.given):
        # The inputs of the last NMS, so that a test can check their distance from its threshold.
        kept[f"candidates.boxes.{b}"] = boxes.numpy()
        kept[f"candidates.scores.{b}"] = scores.numpy()
        kept[f"candidates.labels.{b}"] = groups.numpy()
        fault = fault or nms_fault(boxes, scores, groups, rule["iou_threshold"], GAP)
    return kept, fault or _scores_fault([found.scores for found in detections])


def _scores_fault(images_scores: list[Tensor]) -> str:
    for scores in images_scores:
        if len(scores) < 20:
            return f"{len(scores)} detections"
        if (scores[:-1] - scores[1:]).min() <= GAP or (scores[-1] - 0.05) <= GAP:
            return "scores too near to each other"
    return ""


def training(
    net: nn.Module,
    model: Model,
    images: Tensor,
    given: list[DetDataSample],
    with_gradients: bool,
) -> dict[str, np.ndarray]:
    """The matches and samples, the losses, and the gradient of their sum in float64."""
    net.train()  # the backbone keeps statistics and frozen stages as its config sets them
    torch.manual_seed(model.seed)
    head = net.bbox_head if model.detector == "retinanet" else net.rpn_head
    found: dict[str, Any] = {}
    draws: list[Any] = []  # the second stage's
    with recorded(head, "get_targets") as targets:
        if model.detector == "retinanet":
            losses = net.loss(images, given)
        else:
            with recorded(net.roi_head, "bbox_loss") as second:
                losses = net.loss(images, given)
            draws = second.given[0][1]
            for b, sampled in enumerate(draws):
                found[f"sampled.boxes.{b}"] = sampled.priors
                found[f"sampled.labels.{b}"] = sampled.pos_gt_labels.int()
                found[f"sampled.truths.{b}"] = sampled.pos_assigned_gt_inds.int()
    _, weights, _, box_weights, _ = targets.said[0]
    counted, positive = torch.cat(weights, 1) > 0, torch.cat(box_weights, 1)[..., 0] > 0
    for b in range(len(images)):
        found[f"anchors.positive.{b}"] = torch.where(positive[b])[0].int()
        negative = torch.where(counted[b] & ~positive[b])[0].int()
        if model.detector != "retinanet":
            found[f"anchors.negative.{b}"] = negative
        found[f"anchors.negatives.{b}"] = torch.tensor(len(negative))
    found |= {f"losses.{name}": value for name, value in sums(losses).items()}
    answers = {name: value.detach().numpy() for name, value in found.items()}
    if with_gradients:

        def total() -> Tensor:
            """The losses again, with the same samples."""
            maps = net.extract_feat(images.double())
            truths = [sample.gt_instances for sample in given]
            metas = [sample.metainfo for sample in given]
            with replayed(head, "get_targets", widened(targets.said)):
                again = sums(head.loss_by_feat(*head(maps), truths, metas))
            if draws:
                again |= sums(net.roi_head.bbox_loss(maps, [wide_draw(one) for one in draws]))
            assert len(again) == sum(name.startswith("losses.") for name in answers)
            return sum(again.values())

        for name, pulled in gradients(net, total).items():
            values = pulled.numpy().astype(np.float32)
            answers[f"gradients.{name}"] = thin(name, values, model.keep // 8)
            answers[f"norms.{name}"] = np.float32(pulled.norm())
    net.eval()
    return answers


def wide_draw(sampled: Any) -> Any:
    """Sampled regions with their boxes in float64."""
    wide = copy.copy(sampled)
    for name, value in vars(sampled).items():
        setattr(wide, name, widened(value))
    return wide


def sums(losses: dict[str, Any]) -> dict[str, Any]:
    """The losses in a head's output, summed over levels."""
    flat: dict[str, Any] = {}
    for name, value in losses.items():
        if isinstance(value, dict):
            flat |= sums(value)
        elif "loss" in name:
            flat[name] = sum(value) if isinstance(value, (list, tuple)) else value
    return flat


def answer(model: Model) -> dict[str, Any]:
    """All tensors of a model: "weights|...", and "BATCH|TENSOR" for each batch.

    Draws images until each one of a batch has 20 detections that rounding alone cannot change.
    """
    net = build(model)
    names = [(k, list(v.shape)) for k, v in net.state_dict().items() if v.is_floating_point()]
    if model.detector == "pyramid":
        names = [(name, shape) for name, shape in names if name.startswith(("backbone", "neck"))]
    tensors: dict[str, Any] = {"shapes": np.array(json.dumps(names))}
    for i, (canvas, sizes) in enumerate(model.batches):
        faults: Counter[str] = Counter()
        for seed in range(SEEDS * i, SEEDS * (i + 1)):
            drawn = draw_batch(seed, canvas, sizes, model.num_classes)
            images, given = torch.from_numpy(drawn.images), samples(drawn, canvas, sizes)
            with torch.no_grad():
                if seed == 0 and model.detector != "pyramid":
                    run = partial(predicted, net, model, images, given)
                    for name in liven(net, model, run):
                        layer = net.get_submodule(name)
                        tensors[f"weights|gain|{name}"] = layer.gain.numpy()
                        tensors[f"weights|bias|{name}"] = layer.bias.detach().numpy().copy()
                found, fault = inference(net, model, images, given)
            if not fault:
                break
            faults[fault] += 1
        else:
            raise SystemExit(f"{model.name}, batch {i}: nothing to compare in {dict(faults)}")
        if model.detector in ("faster_rcnn", "retinanet"):
            found |= training(net, model, images, given, with_gradients=i == 0)
        tensors |= {f"{i}|{name}": value for name, value in found.items()}
        tensors[f"{i}|seed"] = np.int64(seed)
    return tensors


if __name__ == "__main__":
    serve(sys.argv[1:], Model, answer, f"mmdetection {mmdet.__version__}")
