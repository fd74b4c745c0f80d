"""Features of EfficientNet-Lite1, for metrics whose names end in `lite1`.

Training may use Lite0 (`[projected]`), which would bias its metrics; no
training uses Lite1.
"""

from __future__ import annotations

import torch

from galip_edge.models.efficientnet import EfficientNetLite
from runtime.arrays import Floats, Images

VARIANT = 1
NAME = f"lite{VARIANT}"


class EfficientNetFeatures:
    """Pooled features before the classifier, of images resized to 224 pixels.

    Raises GalipEdgeError if its packages are missing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._network = EfficientNetLite(VARIANT).to(self._device)

    def __call__(self, pixels: Images) -> Floats:
        """uint8 images (N,H,W,3) -> (N,1280)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._network.pooled(images).cpu().numpy()
