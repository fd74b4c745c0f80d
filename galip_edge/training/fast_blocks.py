"""The generator's blocks as a CPU trains them fastest in 16 bits; parameters and names are shared.

    use_fast_blocks(model.generator)

The functions are those of `galip_edge.models.blocks` up to rounding, with first derivatives only.
Checkpoints hold only tensors: a model loaded from one has the original blocks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models.blocks import (
    NEGATIVE_SLOPE,
    Affine,
    BridgeBlock,
    DeepFusion,
    UpsamplingBlock,
)
from galip_edge.models.generator import Generator

# Elements of the innermost loop of a broadcast product; below, loop overhead dominates.
_ROW = 384


def use_fast_blocks(generator: Generator) -> None:
    """Replace the blocks of `generator` by faster ones with the same parameters."""
    for bridge in cast("list[BridgeBlock]", list(generator.bridge.blocks)):
        bridge.fusion1 = FastDeepFusion(bridge.fusion1)
        bridge.fusion2 = FastDeepFusion(bridge.fusion2)
    generator.to_rgb = FastConv2d(generator.to_rgb)
    generator.upsampling = nn.ModuleList(
        FastUpsamplingBlock(cast(UpsamplingBlock, block)) for block in generator.upsampling
    )


class FastDeepFusion(DeepFusion):
    """`DeepFusion` with one fused operation for scale and shift, and LeakyReLU in place."""

    def __init__(self, fusion: DeepFusion) -> None:
        nn.Module.__init__(self)
        self.affine0, self.affine1 = fusion.affine0, fusion.affine1

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B,C,H,W), condition (B,D) -> (B,C,H,W)."""
        return _fuse(self.affine1, _fuse(self.affine0, x, condition), condition)


class FastConv2d(nn.Conv2d):
    """A convolution of stride 1 with the parameters of `conv`; see `convolve`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        assert conv.stride == (1, 1)
        assert conv.padding[0] == conv.padding[1]
        kernel, padding = (cast("tuple[int, int]", v) for v in (conv.kernel_size, conv.padding))
        super().__init__(
            conv.in_channels, conv.out_channels, kernel, padding=padding, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,H,W)."""
        assert self.bias is not None
        return convolve(x, self.weight, self.bias, padding=int(self.padding[0]))


class FastUpsamplingBlock(UpsamplingBlock):
    """`UpsamplingBlock` with resize and first convolution as one transposed convolution.

    Nearest resize by 2 and a 3x3 convolution equal a transposed 4x4 convolution with stride 2:
    4/9 of the products, and no enlarged input in memory.
    """

    def __init__(self, block: UpsamplingBlock) -> None:
        nn.Module.__init__(self)
        self.size = block.size
        self.fusion1 = FastDeepFusion(block.fusion1)
        self.conv1 = FastConv2d(block.conv1)
        self.fusion2 = FastDeepFusion(block.fusion2)
        self.conv2 = FastConv2d(block.conv2)
        shortcut = block.shortcut
        self.shortcut = FastConv2d(shortcut) if isinstance(shortcut, nn.Conv2d) else shortcut

    def forward(self, x: Tensor, condition: Tensor, size: int | None = None) -> Tensor:
        """x (B,C_in,h,w), condition (B,D) -> (B,C_out,size,size); without `size`, this block's."""
        size = size or self.size
        fused = self.fusion1(x, condition)
        if (size, size) == (2 * x.shape[2], 2 * x.shape[3]):
            assert self.conv1.bias is not None
            weight, bias = _with_resize(self.conv1.weight), self.conv1.bias
            residual = convolve(fused, weight, bias, stride=2, transposed=True)
        else:
            residual = self.conv1(self.resize(fused, size))
        residual = self.conv2(self.fusion2(residual, condition))
        return self.resize(self.shortcut(x), size) + residual


def _fuse(affine: Affine, x: Tensor, condition: Tensor) -> Tensor:
    """LeakyReLU of `affine`, computed on rows of several positions if channels come last."""
    gamma, beta = affine.gamma(condition), affine.beta(condition)
    batch, channels, height, width = x.shape
    positions = max(1, _ROW // channels)
    if (height * width) % positions:
        positions = 1
    rows = x.permute(0, 2, 3, 1).reshape(batch, -1, positions * channels)
    scale, shift = (v.to(x.dtype).repeat(1, positions)[:, None] for v in (gamma, beta))
    fused: Tensor = _ScaleShiftActivate.apply(rows, scale, shift)
    return fused.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _ScaleShiftActivate(torch.autograd.Function):
    """leaky_relu(x * scale + shift): x (B,N,C), scale and shift (B,1,C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        out = F.leaky_relu_(torch.addcmul(shift, x, scale), NEGATIVE_SLOPE)
        ctx.save_for_backward(x, scale, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, out = ctx.saved_tensors
        inner = torch.ops.aten.leaky_relu_backward(gradients[0], out, NEGATIVE_SLOPE, True)
        of_scale, of_shift = (inner * x).sum(1, keepdim=True), inner.sum(1, keepdim=True)
        return inner.mul_(scale), of_scale, of_shift


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding: int = 1,
    stride: int = 1,
    transposed: bool = False,
) -> Tensor:
    """A convolution in the autocast precision.

    oneDNN's 16-bit gradient of a bias takes longer than that of input and weight together; a sum
    over the output gradient does not.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    found: Tensor = _Convolution.apply(x, weight, bias, padding, stride, transposed)
    return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        padding: int,
        stride: int,
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = ([stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)
        out: Tensor = torch.ops.aten.convolution(x, weight, bias.to(x.dtype), *ctx.geometry)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *ctx.geometry, [needed[0], needed[1], False]
        )
        of_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if needed[2] else None
        return of_x, of_weight, of_bias, None, None, None


def _with_resize(weight: Tensor) -> Tensor:
    """3x3 weight (C_out,C_in,3,3) -> (C_in,C_out,4,4) of the transposed convolution."""
    flipped = weight.flip(2, 3).transpose(0, 1)
    tall = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return (F.pad(tall, (0, 1, 0, 0)) + F.pad(tall, (1, 0, 0, 0))).contiguous()
