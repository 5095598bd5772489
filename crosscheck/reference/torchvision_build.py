"""torchvision's detectors with random weights, from the padded tensor on, narrow or full size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import (
    FasterRCNN,
    RetinaNet,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from crosscheck.reference.probes import outputs_of, spread
from crosscheck.reference.seeded import Drawn, Model, weight

DEPTHS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}
WANTED = 30  # target number of detections per image


class NarrowResNet(ResNet):
    """The library's ResNet with fewer channels in all layers."""

    def __init__(self, depth: int, width: int):
        self.narrow = width
        super().__init__(*DEPTHS[depth])

    def _make_layer(self, block: Any, planes: int, *rest: Any, **more: Any) -> nn.Sequential:
        if planes == 64:  # the first stage: the stem was made for 64 channels
            self.inplanes = self.narrow
            self.conv1 = nn.Conv2d(3, self.narrow, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.narrow)
        return super()._make_layer(block, planes * self.narrow // 64, *rest, **more)


class Given(nn.Module):
    """Replaces the library's transform: returns a given padded tensor."""

    def forward(self, images: Any, targets: Any = None) -> tuple[ImageList, Any]:
        """The tensor, the sizes of its images, and the unchanged targets."""
        return ImageList(self.tensor, self.sizes), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        """Detections stay in the tensor's pixels."""
        return result


def build(model: Model) -> nn.Module:
    """A detector of the library, from a padded tensor on."""
    faster = model.detector == "faster_rcnn"
    K = model.num_classes + faster
    second = model.version == 2
    if not model.width:
        make = (
            (retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2),
            (fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2),
        )[faster][second]
        net = make(weights=None, weights_backbone=None, num_classes=K)
    else:
        body = NarrowResNet(model.depth, model.width)
        first = 1 if faster else 2
        expansion = DEPTHS[model.depth][0].expansion
        C = model.channels
        backbone = BackboneWithFPN(
            body,
            {f"layer{i}": str(i - first) for i in range(first, 5)},
            [model.width * expansion * 2 ** (i - 1) for i in range(first, 5)],
            C,
            LastLevelMaxPool() if faster else LastLevelP6P7(body.inplanes if second else C, C),
            norm_layer=nn.BatchNorm2d if faster and second else None,
        )
        if faster:
            head = TwoMLPHead(C * 49, model.fc)
            if second:
                head = FastRCNNConvFCHead((C, 7, 7), [C] * 4, [model.fc], nn.BatchNorm2d)
            last = FastRCNNPredictor(model.fc, K)
            rpn = RPNHead(C, 3, conv_depth=2) if second else None
            net = FasterRCNN(backbone, rpn_head=rpn, box_head=head, box_predictor=last)
        elif second:
            head = RetinaNetHead(C, 9, K, norm_layer=partial(nn.GroupNorm, 32))
            head.regression_head._loss_type = "giou"
            net = RetinaNet(backbone, K, head=head)
        else:
            net = RetinaNet(backbone, K)
    net.transform = Given()
    return net


def draw_weights(net: nn.Module, seed: int) -> None:
    """Fills all arrays of a network with random numbers."""
    for name, value in net.state_dict().items():
        if value.dtype.is_floating_point:
            value.copy_(torch.from_numpy(weight(name, tuple(value.shape), seed)))


def liven(net: nn.Module, model: Model, drawn: Drawn, run: Callable[[], Any]) -> list[str]:
    """Scales the last layers until there are about `WANTED` detections per image.

    Returns:
        The scaled layers' names.
    """
    wanted = WANTED * len(drawn.images)
    # With many classes, scores crowd above the limit unless the logits are far apart.
    many_classes = model.num_classes > 20
    sharp = (2.0 if model.detector == "faster_rcnn" else 1.5) * (2 if many_classes else 1)
    if model.detector == "faster_rcnn":
        first = [net.rpn.head.cls_logits, net.rpn.head.bbox_pred]
        for layer, values, numbers in zip(
            first, outputs_of(first, run), ((-1.0, 1.5), (0.0, 0.3)), strict=True
        ):
            spread(layer, values, *numbers)
        second = net.roi_heads.box_predictor
        layers = [second.cls_score, second.bbox_pred]
        for layer, values, std in zip(layers, outputs_of(layers, run), (sharp, 0.7), strict=True):
            spread(layer, values, 0.0, std)
        bias, falls = second.cls_score.bias[:1], -1.0
        names = ["rpn.head.cls_logits", "rpn.head.bbox_pred"]
        names += [f"roi_heads.box_predictor.{leaf}" for leaf in ("cls_score", "bbox_pred")]
    else:
        layers = [net.head.classification_head.cls_logits, net.head.regression_head.bbox_reg]
        for layer, values, std in zip(layers, outputs_of(layers, run), (sharp, 0.3), strict=True):
            spread(layer, values, 0.0, std)
        bias, falls = layers[0].bias, 1.0
        names = ["head.classification_head.cls_logits", "head.regression_head.bbox_reg"]
    # Bisection: more background, or less of every class, gives fewer detections.
    reach = 48.0 if many_classes else 12.0
    low, high, start = -reach, reach, bias.clone()
    for _ in range(10):
        middle = (low + high) / 2
        bias.copy_(start + middle)
        many = sum(len(found["scores"]) for found in run()) > wanted
        if many == (falls > 0):
            high = middle
        else:
            low = middle
    return names
