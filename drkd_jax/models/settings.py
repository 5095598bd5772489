"""The settings of a detector: frozen dataclasses, filled from a plain nested dict.

The defaults are the full-size models of mmdetection. A small model uses the same class with
smaller numbers and, for small images, smaller anchors.
"""

from __future__ import annotations

import dataclasses

from drkd_jax.errors import UserError
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.value_checks import one_of, stds, within

HEAD_NORMS = ("", "gn")
BOX_LOSSES = ("smooth_l1", "giou")


@dataclasses.dataclass(frozen=True)
class AnchorSettings:
    """Anchors of one level: sides ``scale * stride * 2**(k / octaves)``, each at every ratio.

    Attributes:
        scale: side of the smallest anchor, in strides of its level.
        ratios: height divided by width.
        octaves: number of sizes per level.
        sides: explicit sides in strides, which replace ``scale`` and ``octaves``. (): use those.
    """

    scale: float
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    octaves: int = 1
    sides: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scale <= 0 or not self.ratios or min((*self.ratios, *self.sides)) <= 0:
            raise UserError("anchors.scale, anchors.ratios and anchors.sides must be above 0")
        within("anchors.octaves", self.octaves, 1)

    @property
    def scales(self) -> tuple[float, ...]:
        """Sides in strides, in the order of the head's outputs."""
        row = (self.scale * 2 ** (k / self.octaves) for k in range(self.octaves))
        return self.sides or tuple(row)

    @property
    def num_per_cell(self) -> int:
        """The number of anchors at each cell of the map."""
        return len(self.ratios) * len(self.scales)


@dataclasses.dataclass(frozen=True)
class TestSettings:
    """How raw outputs become detections.

    Attributes:
        score: pairs of (box, class) at or below this score are dropped.
        nms: overlap above which the lower-scored of two boxes of a class is dropped.
        max_out: the most detections per image.
        pre_nms: how many best pairs enter NMS, per level (RetinaNet) or image (Faster R-CNN).
    """

    __test__ = False  # a setting, not a test class for pytest

    score: float = 0.05
    nms: float = 0.5
    max_out: int = 100
    pre_nms: int = 1000

    def __post_init__(self) -> None:
        within("test.score", self.score, 0, 1)
        within("test.nms", self.nms, 0, 1)
        within("test.max_out", self.max_out, 1)
        within("test.pre_nms", self.pre_nms, 1)


@dataclasses.dataclass(frozen=True)
class ProposalSettings:
    """How the RPN's outputs become regions, in training and in evaluation.

    Attributes:
        pre_nms: how many best anchors per level enter NMS, in training.
        max_out: regions per image, in training.
        pre_nms_test: how many best anchors per level enter NMS, in evaluation.
        max_out_test: regions per image, in evaluation.
        nms: overlap above which the lower-scored of two regions of a level is dropped.
    """

    pre_nms: int = 2000
    max_out: int = 1000
    pre_nms_test: int = 1000
    max_out_test: int = 1000
    nms: float = 0.7

    def __post_init__(self) -> None:
        for name in ("pre_nms", "max_out", "pre_nms_test", "max_out_test"):
            within(f"proposals.{name}", getattr(self, name), 1)
        within("proposals.nms", self.nms, 0, 1)


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How many anchors and regions of an image the losses use.

    Attributes:
        rpn: anchors per image.
        rpn_positive: the largest fraction of positives among them.
        roi: regions per image.
        roi_positive: the largest fraction of positives among them.
    """

    rpn: int = 256
    rpn_positive: float = 0.5
    roi: int = 512
    roi_positive: float = 0.25

    def __post_init__(self) -> None:
        within("sampler.rpn", self.rpn, 1)
        within("sampler.roi", self.roi, 1)
        within("sampler.rpn_positive", self.rpn_positive, 0, 1)
        within("sampler.roi_positive", self.roi_positive, 0, 1)


@dataclasses.dataclass(frozen=True)
class PyramidSettings:
    """The settings common to all detectors.

    Attributes:
        backbone: the ResNet.
        channels: channels of every pyramid level.
        extra: how levels above P5 are made: "pool" (every second pixel), "conv_c5" (from C5) or
            "conv_p5" (from P5), both by 3x3 convolutions of stride 2.
        extra_relu: whether a ReLU precedes P7.
        min_level: finest level; its stride is ``2**min_level``.
        max_level: coarsest level.
        head_std: initial standard deviation of the dense head's convolutions.
        convention: the library whose conventions are used; see `conventions.CONVENTIONS`.
        head_classes: number of classes of the head; 0: those of the data.
        class_ids: the head's class for each class of the data, if they are numbered differently:
            torchvision's COCO models have an output for every number up to 90, of which 80 are
            classes. Detections of other classes are dropped. (): the same numbers.
        delta_stds: standard deviations of the deltas (x, y, w, h) of the RPN or of RetinaNet. ():
            the convention's.
    """

    backbone: BackboneSettings = BackboneSettings()
    channels: int = 256
    extra: str = "pool"
    extra_relu: bool = False
    min_level: int = 2
    max_level: int = 6
    head_std: float = 0.01
    convention: str = "mmdet"
    head_classes: int = 0
    class_ids: tuple[int, ...] = ()
    delta_stds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        within("channels", self.channels, 1)
        stds("delta_stds", self.delta_stds)
        one_of("extra", self.extra, ("pool", "conv_c5", "conv_p5"))
        within("head_classes", self.head_classes, 0)
        if len(set(self.class_ids)) < len(self.class_ids) or min((*self.class_ids, 0)) < 0:
            raise UserError("class_ids must be different numbers from 0 on")
        if not 2 <= self.min_level <= 5 <= self.max_level <= 8:
            raise UserError(
                f"min_level {self.min_level} and max_level {self.max_level}: "
                "must hold 2 <= min_level <= 5 <= max_level <= 8"
            )


@dataclasses.dataclass(frozen=True)
class RetinaNetSettings(PyramidSettings):
    """RetinaNet: P3..P7, two towers of convolutions, 9 anchors per cell.

    Attributes:
        anchors: see `AnchorSettings`.
        head_convs: convolutions of each tower.
        head_norm: "" for none, or "gn": group normalisation, for each level separately, between a
            tower's convolution and its ReLU. From scratch a head learns much faster with it.
        box_loss: "smooth_l1" of the deltas, with the convention's beta (0: L1), or "giou", 1 minus
            the generalised IoU of the decoded boxes.
        test: see `TestSettings`; ``pre_nms`` is per level.
    """

    extra: str = "conv_c5"
    min_level: int = 3
    max_level: int = 7
    anchors: AnchorSettings = AnchorSettings(scale=4.0, octaves=3)
    head_convs: int = 4
    head_norm: str = ""
    box_loss: str = "smooth_l1"
    test: TestSettings = TestSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        within("head_convs", self.head_convs, 0)
        one_of("head_norm", self.head_norm, HEAD_NORMS)
        one_of("box_loss", self.box_loss, BOX_LOSSES)


@dataclasses.dataclass(frozen=True)
class FasterRCNNSettings(PyramidSettings):
    """Faster R-CNN: P2..P6, an RPN, and (convolutions and) fully connected layers on the regions.

    Attributes:
        anchors: see `AnchorSettings`.
        rpn_convs: 3x3 convolutions of the RPN.
        roi_convs: 3x3 convolutions of a region's bins before the fully connected layers.
        roi_fcs: fully connected layers, 1 or 2.
        fc: their width.
        class_agnostic: whether a region has one box for all classes, or one for each.
        roi_sampling: samples per bin and axis in RoIAlign; 0 for as many as a bin has pixels, which
            matches mmdetection exactly but is slower. None: the convention's.
        roi_aligned: whether pixel centres are at half pixels in RoIAlign. None: the convention's.
        roi_max_level: coarsest level that regions are cropped from. 0: the convention's.
        roi_stds: standard deviations of the regions' deltas (x, y, w, h). (): the convention's.
        proposals: see `ProposalSettings`.
        sampler: see `SamplerSettings`.
        test: see `TestSettings`; ``pre_nms`` is per image. It does not change the result if
            ``max_out`` boxes are kept or if fewer than ``pre_nms`` pairs pass the score.
    """

    anchors: AnchorSettings = AnchorSettings(scale=8.0)
    rpn_convs: int = 1
    roi_convs: int = 0
    roi_fcs: int = 2
    fc: int = 1024
    class_agnostic: bool = False
    roi_sampling: int | None = None
    roi_aligned: bool | None = None
    roi_max_level: int = 0
    roi_stds: tuple[float, ...] = ()
    proposals: ProposalSettings = ProposalSettings()
    sampler: SamplerSettings = SamplerSettings()
    test: TestSettings = TestSettings(pre_nms=2000)

    def __post_init__(self) -> None:
        super().__post_init__()
        within("fc", self.fc, 1)
        within("rpn_convs", self.rpn_convs, 1)
        within("roi_convs", self.roi_convs, 0)
        within("roi_fcs", self.roi_fcs, 1, 2)
        within("roi_sampling", self.roi_sampling or 0, 0)
        stds("roi_stds", self.roi_stds)
        if self.roi_max_level and not self.min_level <= self.roi_max_level <= self.max_level:
            raise UserError(f"roi_max_level is {self.roi_max_level}; there is no such level")


@dataclasses.dataclass(frozen=True)
class CascadeRCNNSettings(FasterRCNNSettings):
    """Cascade R-CNN: as Faster R-CNN, with three box heads; a region has one box for all classes.

    Attributes:
        class_agnostic: must be True.
    """

    class_agnostic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.class_agnostic:
            raise UserError("class_agnostic: cascade_rcnn has one box per region for all classes")
        if self.roi_stds:
            raise UserError("roi_stds: those of cascade_rcnn's three stages are fixed")
