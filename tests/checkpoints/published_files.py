"""The tiny model in the layout of the published files, for tests of how it may be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from galip_edge.checkpoint import model_tensors
from galip_edge.checkpoints.published import published_state
from galip_edge.models import GALIP

Networks = dict[str, dict[str, torch.Tensor]]


def published_networks(model: GALIP) -> Networks:
    return published_state(model_tensors(model), model.config)["model"]


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def shifted(tensors: Mapping[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    """Other weights of the same shapes; the frozen CLIP stays as it is."""
    return {n: t if "CLIP_ViT" in n else t + by for n, t in tensors.items()}


def nested(content: Any, levels: int) -> Any:
    for _ in range(levels):
        content = {"model": content}
    return content
