"""The settings of a ResNet: a frozen dataclass, filled from a plain nested dict."""

from __future__ import annotations

import dataclasses

from drkd_jax.errors import UserError
from drkd_jax.models.value_checks import one_of, within

DEPTHS = (10, 14, 18, 26, 34, 50, 101, 152)
BASIC_DEPTHS = (10, 18, 34)  # all other depths use bottleneck blocks
NORMS = ("frozen_bn", "bn", "gn", "folded")
DCNS = ("", "v1", "v2")
STYLES = ("pytorch", "caffe")
POOLS = ("padded", "ceil")


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """A ResNet or ResNeXt.

    Attributes:
        depth: 10, 18 or 34 layers of basic blocks; 14, 26, 50, 101 or 152 of bottleneck ones.
        width: channels of the stem; stage i has ``width * 2**i``.
        groups: groups of the 3x3 convolution (ResNeXt; bottleneck depths only).
        group_width: base width of a group at stage 0 for ``width`` 64: the "4" of 32x4d. Used only
            if ``groups`` is more than 1.
        norm: "frozen_bn" (constant statistics, scale and bias trained; for pretrained weights); or,
            for training from scratch, "bn" (statistics over the global batch) or "gn". "folded":
            convolutions with a bias and no norm, as `models.folding.fold` makes them from the
            batch norms; not for training.
        frozen_stages: 0 trains everything; n >= 1 freezes the stem and the first n stages. None:
            1 with "frozen_bn", else 0, since an untrained stem should not be frozen.
        eps: what "frozen_bn" and "bn" add to the variance. torchvision's COCO_V1 weights need 0.
        norm_batch: for "bn" in training: how many neighbouring images of the global batch share
            statistics, whatever the devices; 0: the whole batch.
        dcn: deformable 3x3 convolutions in stages C3 to C5: "" for none, "v1", "v2" (modulated);
            bottleneck depths only.
        style: where a bottleneck block has its stride: "pytorch", in the 3x3 convolution; "caffe",
            in the first 1x1 convolution, as Caffe's and Detectron's networks do.
        stem: channels of the stem if they differ from ``width``; 0: ``width``.
        pool: the stem's 3x3 max pool: "padded" by a pixel on every side, or "ceil", without
            padding but with a last window that may be cut off, as in Caffe's own networks.
    """

    depth: int = 50
    width: int = 64
    groups: int = 1
    group_width: int = 64
    norm: str = "frozen_bn"
    frozen_stages: int | None = None
    eps: float = 1e-5
    norm_batch: int = 0
    dcn: str = ""
    style: str = "pytorch"
    stem: int = 0
    pool: str = "padded"

    def __post_init__(self) -> None:
        one_of("backbone.depth", self.depth, DEPTHS)
        one_of("backbone.norm", self.norm, NORMS)
        for name in ("width", "groups", "group_width"):
            within(f"backbone.{name}", getattr(self, name), 1)
        within("backbone.norm_batch", self.norm_batch, 0)
        one_of("backbone.dcn", self.dcn, DCNS)
        one_of("backbone.style", self.style, STYLES)
        one_of("backbone.pool", self.pool, POOLS)
        within("backbone.stem", self.stem, 0)
        if self.norm_batch and self.norm != "bn":
            raise UserError('backbone.norm_batch: only backbone.norm "bn" has batch statistics')
        if self.eps < 0 or (self.eps == 0 and self.norm == "bn"):
            raise UserError(f"backbone.eps is {self.eps}; above 0, or 0 with frozen statistics")
        if self.dcn and not self.bottleneck:
            raise UserError(f"backbone.dcn: not in the basic blocks of depth {self.depth}")
        if self.groups > 1 and not self.bottleneck:
            raise UserError(f"backbone.groups: only 1 in the basic blocks of depth {self.depth}")
        within("backbone.frozen_stages", self.num_frozen, 0, 4)

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1x1, 3x3, 1x1 convolutions instead of two 3x3 ones."""
        return self.depth not in BASIC_DEPTHS

    @property
    def stem_width(self) -> int:
        """Channels of the stem, with the default filled in."""
        return self.stem or self.width

    @property
    def num_frozen(self) -> int:
        """How many stages are frozen, with the default filled in."""
        if self.frozen_stages is None:
            return 1 if self.norm == "frozen_bn" else 0
        return self.frozen_stages
