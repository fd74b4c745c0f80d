"""Inception v3 for FID and KID, in the two variants of published results.

Their values differ for the same images, so only values of the same name are comparable. GALIP's
published results use `torchvision`, most other papers `tf`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from platformdirs import user_cache_path
from torch.hub import download_url_to_file
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from galip_edge.errors import CheckpointError
from runtime.arrays import Floats, Images
from runtime.errors import GalipEdgeError

FEATURES = 2048
_INPUT_SIZE = 299
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class InceptionWeights:
    """Download location of weights.

    Attributes:
        url: of the file.
        sha256_start: first digits of its SHA-256, with which its name ends.
    """

    url: str
    sha256_start: str

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


WEIGHTS = {
    "torchvision": InceptionWeights(
        "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth", "0cc3c7bd"
    ),
    "tf": InceptionWeights(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
}


def fetch_weights(variant: str, folder: Path | None = None) -> Path:
    """The weights file in `folder`, by default the user's cache; downloaded if missing.

    Raises GalipEdgeError if the download fails; the message states how to supply the file manually.
    """
    weights = WEIGHTS[variant]
    path = (folder or user_cache_path("galip-edge") / "inception") / weights.file
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writes to a temporary name, checks the hash, then renames.
        download_url_to_file(weights.url, str(path), weights.sha256_start, progress=False)
    except (OSError, RuntimeError) as error:
        raise GalipEdgeError(
            f"cannot download the Inception weights from {weights.url} ({error}): "
            f"get the file on another machine, and pass it as --inception-{variant} FILE"
        ) from error
    return path


class InceptionTorchvision:
    """torchvision's Inception, trained on ImageNet.

    Images are preprocessed as in its training: bilinear resize to 299 pixels, values in [-1,1].
    Features are the output of the last average pooling.
    """

    def __init__(self, weights: Path, device: torch.device = _CPU) -> None:
        self._network = _torchvision_network(weights, device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, pixels: Images) -> Floats:
        """uint8 images (N,H,W,3) -> features (N,2048)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        size = (_INPUT_SIZE, _INPUT_SIZE)
        features: torch.Tensor = self._network(F.interpolate(images, size, mode="bilinear"))
        return features.cpu().numpy()


class InceptionPublished:
    """The same Inception with the preprocessing of GALIP's authors.

    Images in [0,1], not rounded to 8 bits, are resized to 299 pixels, and then go through
    torchvision's `transform_input`, which expects images normalized with ImageNet's mean and
    deviation; so the network receives red in [-0.03,0.43], green in [-0.09,0.36] and blue in
    [-0.19,0.26].
    """

    def __init__(self, weights: Path, device: torch.device = _CPU) -> None:
        self._network = _torchvision_network(weights, device, transform_input=True)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Floats:
        """Images (N,3,H,W) in [-1,1] -> features (N,2048)."""
        unit = (images.to(self._device).float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) / 2
        size = (_INPUT_SIZE, _INPUT_SIZE)
        features: torch.Tensor = self._network(F.interpolate(unit, size, mode="bilinear"))
        return features.cpu().numpy()


def _torchvision_network(
    weights: Path, device: torch.device, transform_input: bool = False
) -> torch.nn.Module:
    network: torch.nn.Module = torchvision.models.inception_v3(
        weights=None, init_weights=False, transform_input=transform_input
    )
    _fill(network, _read(weights), weights)
    network.fc = torch.nn.Identity()
    return network.eval().to(device)


class InceptionTF:
    """The Inception of the TensorFlow FID (Heusel et al. 2017), by torch-fidelity."""

    def __init__(self, weights: Path, device: torch.device = _CPU) -> None:
        self._device = device
        # torch-fidelity would unpickle the file, so it gets a copy of the safely loaded weights.
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "weights.pth"
            torch.save(_read(weights), copy)
            try:
                self._network = FeatureExtractorInceptionV3(
                    "inception", [str(FEATURES)], feature_extractor_weights_path=str(copy)
                )
            except RuntimeError as error:
                raise _does_not_fit(weights, error) from error
        self._network.to(device)

    @torch.inference_mode()
    def __call__(self, pixels: Images) -> Floats:
        """uint8 images (N,H,W,3) -> features (N,2048)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous()
        features: torch.Tensor = self._network(images)[0]
        return features.cpu().numpy()


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # from pickle, zipfile or torch, without a common base
        raise CheckpointError(
            f"{path} is not a file of Inception weights, or is damaged: download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} contains more than weights and is refused")
    return state


def _fill(network: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise _does_not_fit(path, error) from error


def _does_not_fit(path: Path, error: RuntimeError) -> CheckpointError:
    wanted = " or ".join(weights.file for weights in WEIGHTS.values())
    lines = str(error).splitlines()
    detail = lines[1].strip()[:120] if len(lines) > 1 else str(error)[:120]
    return CheckpointError(f"{path} does not fit this Inception ({detail}): expected {wanted}")
