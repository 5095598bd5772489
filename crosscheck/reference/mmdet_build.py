"""mmdetection's models from its shipped configs, with drawn weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from crosscheck.reference.probes import bisect, outputs_of, spread
from crosscheck.reference.seeded import Drawn, weight

WANTED = 40  # target number of detections per image


@dataclasses.dataclass
class Model:
    """One network and the batches it is run on.

    Attributes:
        name: name of the answer file.
        config: file in the library's own ``configs``.
        detector: "faster_rcnn", "cascade_rcnn", "retinanet", or "pyramid" for backbone and neck.
        num_classes: K, without the background.
        batches: (height, width) of the canvas and of each image, per batch.
        changes: dotted config keys and their new values.
        seed: seed of the weights.
        keep: how many numbers are kept of each feature tensor; of each gradient an eighth of this.
    """

    name: str
    config: str
    detector: str
    num_classes: int
    batches: list[tuple[tuple[int, int], list[tuple[int, int]]]]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    keep: int = 2**31


def build(model: Model) -> nn.Module:
    """A model of the library with drawn weights, in evaluation."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / model.config)
    config.merge_from_dict({"model.backbone.init_cfg": None, **model.changes})
    net = MODELS.build(config.model)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.dtype.is_floating_point and not name.startswith("data_preprocessor"):
                value.copy_(torch.from_numpy(weight(name, tuple(value.shape), model.seed)))
    return net.eval()


def samples(
    drawn: Drawn, canvas: tuple[int, int], sizes: list[tuple[int, int]]
) -> list[DetDataSample]:
    """The library's description of each image."""
    found = []
    for b, (h, w) in enumerate(sizes):
        sample = DetDataSample()
        sample.set_metainfo(
            {
                "img_id": b,
                "img_shape": (h, w),
                "ori_shape": (h, w),
                "pad_shape": (-(-h // 32) * 32, -(-w // 32) * 32),
                "batch_input_shape": tuple(canvas),
                "scale_factor": (1.0, 1.0),
            }
        )
        truths = InstanceData()
        truths.bboxes = torch.from_numpy(drawn.boxes[b])
        truths.labels = torch.from_numpy(drawn.labels[b]).long()
        sample.gt_instances = truths
        found.append(sample)
    return found


def liven(net: nn.Module, model: Model, run: Callable[[], list[Any]]) -> list[str]:
    """Scales the last layers until there are about `WANTED` detections per image.

    Returns:
        The scaled layers' names.
    """
    names: list[str] = []

    def scale(numbers: dict[str, tuple[float, float]]) -> list[nn.Module]:
        layers = [net.get_submodule(name) for name in numbers]
        for layer, values, (mean, std) in zip(
            layers, outputs_of(layers, run), numbers.values(), strict=True
        ):
            spread(layer, values, mean, std)
        names.extend(numbers)
        return layers

    if model.detector == "retinanet":
        layers = scale({"bbox_head.retina_cls": (0.0, 2.0), "bbox_head.retina_reg": (0.0, 0.3)})
        biases, sign = [layers[0].bias], 1
    else:
        scale({"rpn_head.rpn_cls": (-1.0, 1.5), "rpn_head.rpn_reg": (0.0, 0.3)})
        stages = ["0.", "1.", "2."] if model.detector == "cascade_rcnn" else [""]
        biases, sign = [], -1
        for stage in stages:  # earlier stages move the regions of later ones
            start = f"roi_head.bbox_head.{stage}"
            layers = scale({f"{start}fc_cls": (0.0, 2.0), f"{start}fc_reg": (0.0, 0.7)})
            biases.append(layers[0].bias[-1:])
    joint = torch.cat(biases)

    def count() -> int:
        for bias, values in zip(biases, joint.split([len(b) for b in biases]), strict=True):
            bias.copy_(values)
        return sum(len(found.scores) for found in run())

    images_of_run = len(run())
    bisect(count, joint, WANTED * images_of_run, sign)
    count()
    return names
