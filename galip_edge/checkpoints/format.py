"""Our self-contained checkpoint format: safetensors with the configuration and the CLIP.

The authors' published `.pth` files and their variants are also read: `names.py` translates their
tensor names, `layouts.py` finds their networks.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from galip_edge.checkpoints.clip_weights import (
    Activation,
    CLIPWeights,
    architecture,
    differences,
    read_clip_weights,
)
from galip_edge.checkpoints.layouts import find_networks, flatten, looks_like_training_state
from galip_edge.checkpoints.names import indices, shortened
from galip_edge.checkpoints.published import original_config
from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.checkpoints.sharded import is_index, read_sharded, save_sharded
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, CLIPConfig, ModelConfig
from runtime.files import atomic_path, sha256_of

FORMAT = "galip-edge checkpoint"
FORMAT_VERSION = 1

# Default CLIP of published checkpoints.
OPENAI_CLIP = "ViT-B-32-quickgelu"
PathLike: TypeAlias = str | os.PathLike[str]
_log = logging.getLogger(__name__)

# CLIP was published in float16, so copies of it differ at most by its rounding.
_CLIP_TOLERANCE = 2e-3
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and its origin.

    Attributes:
        model: in evaluation mode, float32.
        has_discriminator: False if the file has only the generator.
        source: `galip-edge` or `original`.
        sha256: of the file, in hexadecimal.
        generator: location of the generator in an original file, such as `model.netG`, or
            `netG_ema` for a moving average.
    """

    model: GALIP
    has_discriminator: bool
    source: str
    sha256: str
    generator: str = "generator"


def model_tensors(model: GALIP, discriminator: bool = True) -> dict[str, Tensor]:
    """Tensors of a checkpoint without duplicates: `clip.*`, `generator.*`, `discriminator.*`."""
    parts = ("clip.", "generator.", "discriminator.")[: 3 if discriminator else 2]
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(parts) and not name.startswith("generator.vit.")
    }


def save_checkpoint(
    model: GALIP,
    path: PathLike,
    *,
    discriminator: bool = True,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `model` with its configuration and its CLIP, atomically.

    Args:
        model: to save.
        path: a `.safetensors` file; replaced if it exists.
        discriminator: False for a smaller file, for conversion but not for further training.
        dtype: float16 halves the size; the frozen CLIP was published in it.
        extra: further metadata.
    """
    tensors, metadata = _content(model, discriminator, dtype, extra)
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def save_sharded_checkpoint(
    model: GALIP,
    folder: Path,
    most: int,
    *,
    discriminator: bool = True,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """As `save_checkpoint`, in files of at most `most` bytes; returns the index to load."""
    return save_sharded(*_content(model, discriminator, dtype, extra), folder, most)


def _content(
    model: GALIP, discriminator: bool, dtype: torch.dtype, extra: Mapping[str, str] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
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
    return tensors, metadata


def is_ours(path: Path) -> bool:
    """True if `path` is a checkpoint of ours. Raises CheckpointError if it cannot be read."""
    return _read(path)[1].get("format") == FORMAT


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    return read_sharded(path) if is_index(path) else read_weights(path)


def load_checkpoint(
    path: PathLike,
    clip: PathLike | None = None,
    config: ModelConfig | None = None,
    *,
    clip_activation: Activation | None = None,
) -> Checkpoint:
    """Load a checkpoint of ours, or of the authors' code in any layout (see `layouts.py`).

    Args:
        path: our `.safetensors` or `.safetensors.index.json`, or the original's tensors as `.pth`,
            `.ckpt` or safetensors.
        clip: CLIP weights (see `read_clip_weights`) for an original checkpoint, which lacks the
            text transformer. Default: open_clip's cache, or its download.
        config: dimensions of an original checkpoint. Default: inferred from its shapes.
        clip_activation: of the CLIP, if neither its file nor its folder states it.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of another kind, or a tensor is
            missing, unexpected or of a wrong shape; all such tensors are named.
    """
    path = Path(path)
    content, metadata = _read(path)
    if metadata.get("format") == FORMAT:
        if clip is not None:
            raise CheckpointError(f"{path} contains its own CLIP: omit --clip")
        config, source, generator = _stored_config(path, metadata), "galip-edge", "generator"
        tensors = content
    else:
        tensors, generator = _original_tensors(path, content)
        tensors, config = _with_clip(path, tensors, clip, config, clip_activation)
        source = "original"
    has_discriminator = any(name.startswith("discriminator.") for name in tensors)
    _check_tensors(path, config, tensors, has_discriminator)
    model = GALIP(config)
    model.load_state_dict(dict(tensors), strict=False)
    return Checkpoint(model.eval(), has_discriminator, source, sha256_of(path), generator)


def _original_tensors(path: Path, content: object) -> tuple[dict[str, Tensor], str]:
    try:
        networks = find_networks(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    if networks is None:
        raise CheckpointError(f"{path} is not a GALIP checkpoint: {_found_instead(content)}")
    return dict(networks.tensors), networks.generator


def _found_instead(content: object) -> str:
    """Description of a file without a generator, and the file to use instead."""
    if looks_like_training_state(content):
        return "it is the training state of a run: use model.safetensors in the run's folder"
    tensors = flatten(content)
    if any(name.startswith("generator.") for name in tensors):
        return (
            "its tensors are those of one, but the configuration in its metadata is missing: pass "
            "the file that galip-edge wrote"
        )
    clips = {name.rpartition("visual.")[1] + name.rpartition("visual.")[2] for name in tensors}
    if {"visual.conv1.weight", "visual.proj"} <= clips or "logit_scale" in tensors:
        return "it is a CLIP: pass it as --clip, and the GALIP checkpoint as the argument"
    if not tensors:
        return "it holds no named tensors"
    return (
        "expected a galip-edge .safetensors or the original's netG, found "
        f"{shortened(sorted(tensors), 3)}"
    )


def _check_tensors(
    path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], discriminator: bool
) -> None:
    """Compare names and shapes with the model of `config`, before it is built.

    A damaged or hostile configuration may require excessive layers or memory.
    """
    for what, count, before in (
        ("vision_layers", config.clip.vision_layers, "clip.visual.transformer.resblocks."),
        ("text_layers", config.clip.text_layers, "clip.transformer.resblocks."),
        ("bridge_blocks", config.bridge_blocks, "generator.bridge.blocks."),
        ("block_sizes", len(config.block_sizes), "generator.upsampling."),
        ("tap_blocks", len(config.tap_blocks), "discriminator.taps."),
    ):
        if count > len(tensors):
            raise CheckpointError(
                f"{path} does not fit its own configuration: {count} {what} are configured, "
                f"{indices(tensors, before)} are in the file"
            )
    try:
        with torch.device("meta"):
            expected = model_tensors(GALIP(config), discriminator)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} does not fit its own configuration: {str(error).splitlines()[0][:200]}"
        ) from error
    check_fit(expected, tensors, str(path))


def fill(
    model: torch.nn.Module, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str
) -> None:
    """Copy `tensors` into `model` after `check_fit`."""
    check_fit(expected, tensors, what)
    model.load_state_dict(dict(tensors), strict=False)


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Compare all names and shapes with `expected`.

    Raises CheckpointError that lists missing and unexpected tensors, and those of a wrong shape or
    type, or with non-finite values.
    """
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing: {shortened(missing)}")
    if unexpected := sorted(tensors.keys() - expected.keys()):
        problems.append(f"unexpected: {shortened(unexpected)}")
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        problems.append(f"wrong shape: {shortened(wrong)}")
    if odd := [f"{n} is {_kind(t)}" for n, t in tensors.items() if not _is_plain(t)]:
        problems.append(f"not numbers in memory: {shortened(odd)}")
    if not problems and (bad := [n for n, t in tensors.items() if not t.isfinite().all()]):
        problems.append(f"NaN or infinite values in: {shortened(bad)}")
    if problems:
        raise CheckpointError(f"{what} does not fit the model; {'; '.join(problems)}")


def _is_plain(tensor: Tensor) -> bool:
    """True for a dense floating-point tensor on the CPU."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    return dense and tensor.device.type == "cpu" and tensor.dtype in _FLOATS


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} on {tensor.device.type}".removeprefix("torch.")


def _stored_config(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}: "
            "use the version of galip-edge that wrote it, or a newer one"
        )
    try:
        return ModelConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} contains no valid configuration: {error}") from error


def _with_clip(
    path: Path,
    tensors: dict[str, Tensor],
    clip: PathLike | None,
    config: ModelConfig | None,
    activation: Activation | None,
) -> tuple[dict[str, Tensor], ModelConfig]:
    """Add CLIP's tensors to those of an original checkpoint, whose frozen copy must agree.

    Returns:
        All tensors, and the dimensions.
    """
    weights = read_clip_weights(_cached_or_downloaded_clip() if clip is None else clip)
    visual = {n.removeprefix("clip."): t for n, t in tensors.items() if n.startswith("clip.")}
    _check_same_clip(visual, weights)
    if config is None:
        stated = activation or weights.activation
        if stated is None and visual and weights.has_half_values():
            stated = "quick_gelu"  # the authors' code always uses OpenAI's CLIP
        try:
            config = original_config(tensors, weights.infer_config(stated))
        except CheckpointError as error:
            prefix = "" if str(error).startswith(str(weights.path)) else f"{path} "
            raise CheckpointError(f"{prefix}{error}") from error
    elif differing := differences(config.clip, weights.tensors, weights.path):
        raise CheckpointError(
            f"{weights.path} ({weights.architecture}) is not the CLIP of this configuration: "
            f"{', '.join(differing)}"
        )
    return tensors | {f"clip.{name}": t for name, t in weights.tensors.items()}, config


def _check_same_clip(visual: Mapping[str, Tensor], weights: CLIPWeights) -> None:
    """Compare the image transformer in a checkpoint with that of the given CLIP."""
    for name, mine in visual.items():
        tensor = weights.tensors.get(name)
        if tensor is not None and mine.shape == tensor.shape:
            same = torch.allclose(
                mine.float(), tensor.float(), rtol=_CLIP_TOLERANCE, atol=_CLIP_TOLERANCE
            )
            if same:
                continue
        trained = architecture(visual)
        other = "" if trained == weights.architecture else f" ({trained})"
        raise CheckpointError(
            f"the given CLIP, {weights.path} ({weights.architecture}), is not the one{other} this "
            f"checkpoint was trained with: {name} differs"
        )


def read_clip(
    path: PathLike | None, config: CLIPConfig, activation: Activation | None = None
) -> dict[str, Tensor]:
    """CLIP's state dict, under OpenAI's names.

    Args:
        path: see `read_clip_weights`; None uses open_clip's cache or its download.
        config: expected dimensions and activation.
        activation: stated by the user, if the file does not state it.

    Raises:
        CheckpointError: the file is invalid or another CLIP, or missing and the download fails.
    """
    weights = read_clip_weights(_cached_or_downloaded_clip() if path is None else path)
    if differing := differences(config, weights.tensors, weights.path):
        raise CheckpointError(
            f"{weights.path} is a {weights.architecture}, not the CLIP that model.clip "
            f"configures: {', '.join(differing)}"
        )
    wanted = "quick_gelu" if config.quick_gelu else "gelu"
    if activation is None and weights.activation is None and not config.quick_gelu:
        activation = "gelu"  # not the default, so set explicitly
    if (found := weights.resolve_activation(activation)) != wanted:
        raise CheckpointError(
            f"{weights.path} was trained with the activation {found}, and model.clip configures "
            f"{wanted}: set model.clip.quick_gelu = {str(found == 'quick_gelu').lower()}"
        )
    return weights.tensors


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
        socket.getaddrinfo(
            "huggingface.co", 443
        )  # offline: fail now, not after a minute of retries
        return Path(pretrained.download_pretrained(settings))
    except OSError as error:
        raise CheckpointError(
            "CLIP's text transformer is needed, is not in open_clip's cache, and could not be "
            f"downloaded; get ViT-B/32 by OpenAI from {hub} or {settings['url']} on a machine "
            "with a network, and pass it as --clip PATH, in training as "
            "--set clip=PATH; galip-edge train-clip own trains a small CLIP without a network"
        ) from error
