"""ResNet and ResNeXt, with the stride in the 3x3 convolution or the 1x1 one before it.

Letters: B images, H W pixels, h w C one feature map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.conv_norm import conv_norm
from drkd_jax.models.initializers import Initializer, constant, filled, kaiming_normal
from drkd_jax.models.norm import make_norm
from drkd_jax.ops.conv import convolve
from drkd_jax.ops.deform_conv import deform_conv
from drkd_jax.ops.pool import max_pool
from drkd_jax.ops.relu import relu

BLOCKS = {
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
EXPANSION = 4  # of a bottleneck block


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> nnx.Conv:
    """A square convolution, padded by half its size on every side, as in PyTorch models."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or kaiming_normal(),
        bias_init=bias_init or constant(0.0),
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class DeformConv(nnx.Module):
    """A 3x3 deformable convolution, and the plain convolution that predicts its tap offsets.

    The offsets start at 0, so that a new layer equals a plain convolution (halved in version 2,
    whose factors start at 0.5).

    Source: open-mmlab/mmcv ``mmcv/ops/deform_conv.py`` and ``modulated_deform_conv.py``: version 2
    predicts 18 offsets, then 9 factors before their sigmoid.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = False,
    ):
        shape = (3, 3, inputs // groups, outputs)
        self.kernel = nnx.Param(kaiming_normal()(rngs.params(), shape))
        self.bias = nnx.Param(filled(outputs, 0.0)) if bias else None
        self.offset = conv(
            inputs,
            27 if modulated else 18,
            3,
            stride=stride,
            bias=True,
            kernel_init=constant(0.0),
            rngs=rngs,
            dtype=dtype,
        )
        self.stride = stride
        self.modulated = modulated
        self.dtype = dtype

    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B p q D"]:
        """Shift the taps by the offsets that the plain convolution predicts, then convolve."""
        moves = self.offset(x)
        factors = jax.nn.sigmoid(moves[..., 18:]) if self.modulated else None
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        out = deform_conv(x, kernel, moves[..., :18], factors, stride=self.stride)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)


class Stem(nnx.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pool of stride 2."""

    def __init__(self, settings: BackboneSettings, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        width = settings.stem_width
        self.ceil = settings.pool == "ceil"
        self.conv = conv(
            3, width, 7, stride=2, bias=settings.norm == "folded", rngs=rngs, dtype=dtype
        )
        self.norm = make_norm(settings, width)

    def __call__(
        self, images: Float[jax.Array, "B H W 3"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Map images to the first features, stride 4."""
        x = relu(conv_norm(self.conv, self.norm, images, image_valid))
        around = ((1, 1), (1, 1))
        if self.ceil:  # the last window begins inside the map and may end a pixel outside of it
            around = ((0, 1 - x.shape[1] % 2), (0, 1 - x.shape[2] % 2))
        return max_pool(x, 3, 2, around)


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1, one of the first two with stride.

    The last norm starts with scale 0, so that a new block starts as its shortcut.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        settings: BackboneSettings,
        *,
        deformable: bool,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        bottleneck = settings.bottleneck
        if bottleneck:
            inner = planes
            if settings.groups > 1:
                inner = max(planes * settings.group_width // 64, 1) * settings.groups
            outputs = planes * EXPANSION
            first, second = (stride, 1) if settings.style == "caffe" else (1, stride)
            shapes = [(inputs, inner, 1, first, 1), (inner, inner, 3, second, settings.groups)]
            shapes.append((inner, outputs, 1, 1, 1))
        else:
            outputs = planes
            shapes = [(inputs, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
        bias = settings.norm == "folded"

        def layer(a: int, b: int, size: int, stride: int, groups: int) -> nnx.Conv | DeformConv:
            if size == 3 and deformable:
                return DeformConv(
                    a,
                    b,
                    stride=stride,
                    groups=groups,
                    bias=bias,
                    modulated=settings.dcn == "v2",
                    rngs=rngs,
                    dtype=dtype,
                )
            return conv(a, b, size, stride=stride, groups=groups, bias=bias, rngs=rngs, dtype=dtype)

        self.convs = nnx.List(layer(*shape) for shape in shapes)
        self.norms = nnx.List(
            make_norm(settings, shape[1], zero_scale=i == len(shapes) - 1)
            for i, shape in enumerate(shapes)
        )
        projects = stride != 1 or inputs != outputs
        self.shortcut = layer(inputs, outputs, 1, stride, 1) if projects else None
        self.shortcut_norm = make_norm(settings, outputs) if projects else None

    def __call__(
        self, x: Float[jax.Array, "B h w C"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B p q D"]:
        """Add the residual branch to the shortcut."""
        short = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            short = conv_norm(self.shortcut, self.shortcut_norm, x, image_valid)
        last = len(self.convs) - 1
        for i, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv_norm(layer, norm, x, image_valid)
            if i < last:
                x = relu(x)
        return relu(x + short)


class ResNet(nnx.Module):
    """The four stages C2..C5, strides 4 to 32.

    Source: kaiming initialisation and zero-initialised residual branches as in
    open-mmlab/mmdetection mmdet/models/backbones/resnet.py; ResNeXt's inner width as in its
    resnext.py.
    """

    def __init__(self, settings: BackboneSettings, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.num_frozen = settings.num_frozen
        self.stem = Stem(settings, rngs=rngs, dtype=dtype)
        stages, channels, inputs = [], [], settings.stem_width
        for i, num_blocks in enumerate(BLOCKS[settings.depth]):
            planes = settings.width * 2**i
            outputs = planes * (EXPANSION if settings.bottleneck else 1)
            blocks = []
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    Block(
                        inputs,
                        planes,
                        stride,
                        settings,
                        deformable=bool(settings.dcn) and i > 0,
                        rngs=rngs,
                        dtype=dtype,
                    )
                )
                inputs = outputs
            stages.append(nnx.List(blocks))
            channels.append(outputs)
        self.stages = nnx.List(stages)
        self.channels = tuple(channels)

    def __call__(
        self, images: Float[jax.Array, "B H W 3"], image_valid: Bool[jax.Array, "B"] | None
    ) -> tuple[Float[jax.Array, "B _h _w _C"], ...]:
        """Compute C2..C5; nothing is differentiated through the frozen stages.

        Args:
            images: normalised images.
            image_valid: the images that contribute to batch statistics; None in evaluation.
                A frozen stage always normalises as in evaluation.
        """
        frozen_mode = None if self.num_frozen else image_valid
        x = self.stem(images, frozen_mode)
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            if number == self.num_frozen + 1 and self.num_frozen:
                x = jax.lax.stop_gradient(x)  # no backward pass is computed below this
            mode = None if number <= self.num_frozen else image_valid
            for block in stage:
                x = block(x, mode)
            maps.append(x)
        if self.num_frozen:
            maps[: self.num_frozen] = [jax.lax.stop_gradient(m) for m in maps[: self.num_frozen]]
        return tuple(maps)

    def is_frozen(self, path: tuple[str | int, ...]) -> bool:
        """Whether the variable at this path (from the backbone on) lies in a frozen stage."""
        if not self.num_frozen:
            return False
        return path[0] == "stem" or (path[0] == "stages" and int(path[1]) < self.num_frozen)
