"""Our self-describing checkpoint: safetensors with the configuration and the CLIP inside.

Also the way in for the authors' published `.pth` files (`original.py` has their names).
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from galip_edge import original
from galip_edge.models import GALIP, PRESETS, CLIPConfig, ModelConfig
from galip_edge.weights import read_weights
from runtime.errors import CheckpointError
from runtime.files import atomic_path, sha256_of

FORMAT = "galip-edge checkpoint"
FORMAT_VERSION = 1

# Where the CLIP of a published checkpoint is looked for when no --clip is given.
OPENAI_CLIP = "ViT-B-32-quickgelu"
_log = logging.getLogger(__name__)

# CLIP was published in float16, so two honest copies of it differ by no more than its rounding.
_CLIP_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory and where it came from.

    Attributes:
        model: in evaluation mode, float32.
        has_discriminator: False if the file held the generator alone.
        source: `galip-edge` or `original`.
        sha256: of the file, in hexadecimal.
    """

    model: GALIP
    has_discriminator: bool
    source: str
    sha256: str


def model_tensors(model: GALIP, discriminator: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each once, named `clip.*`, `generator.*`, `discriminator.*`."""
    parts = ("clip.", "generator.", "discriminator.")[: 3 if discriminator else 2]
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(parts) and not name.startswith("generator.vit.")
    }


def save_checkpoint(
    model: GALIP,
    path: Path,
    *,
    discriminator: bool = True,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `model` with its configuration and its CLIP, whole or not at all.

    Args:
        model: what to save.
        path: a `.safetensors` file; replaced if it exists.
        discriminator: False for a smaller file that can be converted but not trained on.
        dtype: float16 halves the size; the frozen CLIP was published in it anyway.
        extra: more metadata, as strings.
    """
    tensors = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in model_tensors(model, discriminator).items()
    }
    metadata = {
        **(extra or {}),
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(model.config.to_dict()),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: Path, clip: Path | None = None, config: ModelConfig | None = None
) -> Checkpoint:
    """Load our own checkpoint or one that the authors published.

    Args:
        path: `.safetensors` of ours, or an original `.pth`.
        clip: CLIP weights, for an original checkpoint, which has no text transformer inside:
            OpenAI's TorchScript archive, a state dict, or an open_clip checkpoint. Without it,
            open_clip's cache is used, or its download.
        config: dimensions of an original checkpoint; the published ones by default.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or a tensor is missing,
            unexpected or of a wrong shape; every such tensor is named.
    """
    content, metadata = read_weights(path)
    if metadata.get("format") == FORMAT:
        if clip is not None:
            raise CheckpointError(f"{path} has its own CLIP inside: leave --clip out")
        tensors, config, source = content, _stored_config(path, metadata), "galip-edge"
    elif original.is_original(content):
        config, source = config or PRESETS["coco"], "original"
        tensors = original.translate(content)
        tensors = _with_clip(tensors, read_clip(clip, config.clip))
    else:
        raise CheckpointError(
            f"{path} is not a GALIP checkpoint: expected a galip-edge .safetensors or an original "
            ".pth with model/netG inside"
        )
    model = GALIP(config)
    has_discriminator = any(name.startswith("discriminator.") for name in tensors)
    expected = model_tensors(model, has_discriminator)
    fill(model, expected, tensors, str(path))
    return Checkpoint(model.eval(), has_discriminator, source, sha256_of(path))


def fill(
    model: torch.nn.Module, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str
) -> None:
    """Copy `tensors` into `model` after every name and shape of `expected` was accounted for.

    Raises CheckpointError that lists what is missing, unexpected, of a wrong shape or not finite.
    """
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing: {original.shortened(missing)}")
    if unexpected := sorted(tensors.keys() - expected.keys()):
        problems.append(f"unexpected: {original.shortened(unexpected)}")
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        problems.append(f"wrong shape: {original.shortened(wrong)}")
    if not problems and (
        bad := [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    ):
        problems.append(f"NaN or infinite values in: {original.shortened(bad)}")
    if problems:
        raise CheckpointError(f"{what} does not fit the model; {'; '.join(problems)}")
    model.load_state_dict(dict(tensors), strict=False)


def _stored_config(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}: "
            "use the galip-edge that wrote it, or a newer one"
        )
    try:
        return ModelConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no valid configuration inside: {error}") from error


def _with_clip(tensors: dict[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add CLIP's tensors to an original checkpoint's, whose frozen copies must agree."""
    for name, tensor in clip.items():
        ours = f"clip.{name}"
        mine = tensors.setdefault(ours, tensor)
        if mine.shape != tensor.shape or not torch.allclose(
            mine.float(), tensor.float(), rtol=_CLIP_TOLERANCE, atol=_CLIP_TOLERANCE
        ):
            raise CheckpointError(
                f"the given CLIP is not the one this checkpoint was trained with: {name} differs"
            )
    return tensors


def read_clip(path: Path | None, config: CLIPConfig) -> dict[str, Tensor]:
    """CLIP's state dict, under OpenAI's names.

    Args:
        path: a weights file in any of the layouts CLIP is published in, or None to use
            open_clip's cache or download.
        config: only for the message when the weights cannot be had.

    Raises:
        CheckpointError: the file cannot be used, or there is none and no network.
    """
    if path is None:
        path = _cached_or_downloaded_clip()
    content, _ = read_weights(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # open_clip's training checkpoints
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(tensor, Tensor)
    }
    # OpenAI's files also carry three numbers that describe the model, and open_clip's a mask.
    for name in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        tensors.pop(name, None)
    if "visual.conv1.weight" not in tensors or "token_embedding.weight" not in tensors:
        raise CheckpointError(
            f"{path} is not a CLIP with a vision transformer: it has no visual.conv1.weight or "
            f"token_embedding.weight; for the published checkpoints give OpenAI's ViT-B/32 "
            f"(embedding {config.embedding_dim}, width {config.vision_width})"
        )
    if "logit_scale" in tensors:  # a scalar, which some open_clip checkpoints store as (1,)
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    return tensors


def _cached_or_downloaded_clip() -> Path:
    from huggingface_hub import try_to_load_from_cache
    from open_clip import pretrained

    settings: dict[str, Any] = pretrained.get_pretrained_cfg(OPENAI_CLIP, "openai")
    repository = settings["hf_hub"].rstrip("/")
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    hub = f"https://huggingface.co/{repository}"
    _log.warning("downloading CLIP ViT-B/32 by OpenAI (about 600 MB) from %s", hub)
    try:
        socket.getaddrinfo("huggingface.co", 443)  # offline: fail now, not after a minute of tries
        return Path(pretrained.download_pretrained(settings))
    except OSError as error:
        raise CheckpointError(
            "CLIP's text transformer is needed, is not in open_clip's cache, and could not be "
            f"downloaded; get ViT-B/32 by OpenAI from {hub} or {settings['url']} on a machine "
            "with a network, and give the file with --clip PATH"
        ) from error
