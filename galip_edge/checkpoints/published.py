"""The authors' checkpoints: dimensions, optimizer state, and export to their layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galip_edge.checkpoints.layouts import split_name
from galip_edge.checkpoints.names import indices, published_name, translate_name
from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS, CLIPConfig, ModelConfig
from runtime.files import atomic_path

_PUBLISHED = PRESETS["coco"]


def original_config(tensors: Mapping[str, Tensor], clip: CLIPConfig) -> ModelConfig:
    """The dimensions of an original checkpoint.

    Shapes do not show image sizes. They are those of the authors' code for this number of
    upsampling blocks: 8, 16, 32, ... and 224 for the last one.

    Args:
        tensors: of the generator and perhaps the discriminator, under our names.
        clip: dimensions of its CLIP.

    Raises:
        CheckpointError: it needs another CLIP, or dimensions that shapes do not determine differ
            from the authors' code.
    """
    needed = (
        "generator.noise_projection.weight",
        "generator.bridge.blocks.0.conv1.weight",
        "generator.prompt_predictor.weight",
        "generator.to_rgb.weight",
        "generator.upsampling.0.conv1.weight",
    )
    if any(name not in tensors or tensors[name].ndim < 2 for name in needed):
        return replace(_PUBLISHED, clip=clip)  # its check lists what is missing
    rows, noise_dim = tensors[needed[0]].shape[:2]
    bridge_hidden, bridge_channels = tensors[needed[1]].shape[:2]
    prompt_rows, condition = tensors[needed[2]].shape[:2]
    _check_clip(rows / max(bridge_channels, 1), condition - noise_dim, clip)
    if prompt_rows != 8 * clip.vision_width:
        raise CheckpointError(
            f"predicts {prompt_rows / clip.vision_width:g} prompt tokens where the authors' code "
            "predicts 8, and the file does not hold which blocks read them"
        )
    blocks = indices(tensors, "generator.upsampling.")
    channels = [
        tensors[name].shape[1]
        for i in range(blocks)
        if (name := f"generator.upsampling.{i}.conv1.weight") in tensors and tensors[name].ndim > 1
    ]
    values: dict[str, Any] = {
        "noise_dim": noise_dim,
        "bridge_channels": bridge_channels,
        "bridge_hidden": bridge_hidden,
        "bridge_blocks": indices(tensors, "generator.bridge.blocks."),
        "block_channels": (*channels, tensors[needed[3]].shape[1]),
        "block_sizes": _block_sizes(blocks),
        **_discriminator(tensors, clip),
    }
    try:
        return replace(_PUBLISHED, clip=clip, **values)
    except ValueError as error:
        raise CheckpointError(f"has invalid GALIP dimensions: {error}") from error


def _check_clip(grid_squared: float, embedding_dim: int, clip: CLIPConfig) -> None:
    if (grid_squared, embedding_dim) != (clip.grid**2, clip.embedding_dim):
        raise CheckpointError(
            f"was trained with a CLIP of embedding {embedding_dim} and {grid_squared:g} patches; "
            f"the given one has embedding {clip.embedding_dim} and {clip.grid**2} patches: use "
            "the CLIP that it was trained with"
        )


def _block_sizes(blocks: int) -> tuple[int, ...]:
    sizes = (*(8 * 2**i for i in range(blocks - 1)), 224)
    if not 2 <= blocks <= 6:
        raise CheckpointError(
            f"has {blocks} upsampling blocks: the authors' code has 6, for images of 224 pixels, "
            "and the file does not hold the image size of any other number above that; pass the "
            "dimensions in Python: load_checkpoint(..., config=ModelConfig(...))"
        )
    return sizes


def _discriminator(tensors: Mapping[str, Tensor], clip: CLIPConfig) -> dict[str, int]:
    joint = tensors.get("discriminator.joint.weight")
    if joint is None or joint.ndim < 2:
        return {}
    return {
        "discriminator_channels": joint.shape[1] - clip.embedding_dim,
        "score_channels": joint.shape[0],
    }


def published_state(
    tensors: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """`{"model": {"netG", "netD", "netC"}}` from tensors under our names.

    The generator's frozen copy of CLIP is in float16, as published. The unused shortcuts of the
    authors' first discriminator blocks are zero.
    """
    networks: dict[str, dict[str, Tensor]] = {"netG": {}, "netD": {}, "netC": {}}
    for name, tensor in tensors.items():
        if (found := published_name(name)) is not None:
            value = tensor.detach().cpu()
            value = value.half() if name.startswith("clip.") else value.float()
            networks[found[0]][found[1]] = value.contiguous().clone()
    if networks["netD"]:
        width = config.clip.vision_width
        for i in range(len(config.tap_blocks) - 1):
            networks["netD"][f"DBlocks.{i}.conv_s.weight"] = torch.zeros(width, width, 1, 1)
            networks["netD"][f"DBlocks.{i}.conv_s.bias"] = torch.zeros(width)
    return {"model": networks}


def unlike_published(config: ModelConfig) -> list[str]:
    """Settings that the authors' code does not support, such as `noise_dim 16 (theirs: 100)`.

    Their code has settings for base width (`nf`), noise length and number of blocks; the rest is
    fixed. `clip_input` affects only the discriminator, and is not compared.
    """
    free = {"noise_dim", "block_sizes", "block_channels", "clip_input"}
    mine, theirs = ({**asdict(c), **asdict(c.clip)} for c in (config, _PUBLISHED))
    found = [
        f"{name} {mine[name]} (theirs: {theirs[name]})"
        for name in theirs
        if name not in free | {"clip"} and mine[name] != theirs[name]
    ]
    blocks = len(config.block_sizes)
    sizes = (*(8 * 2**i for i in range(blocks - 1)), 224)
    if config.block_sizes != sizes:
        found.append(f"block_sizes {config.block_sizes} (theirs: {sizes})")
    nf = config.block_channels[-1]
    channels = tuple(nf * min(2**i, 8) for i in range(blocks, -1, -1))
    if config.block_channels != channels:
        found.append(f"block_channels {config.block_channels} (theirs: {channels})")
    return found


def save_published(
    model: GALIP, path: str | os.PathLike[str], *, discriminator: bool = True
) -> None:
    """Write a model as a `.pth` for the authors' code, atomically.

    Args:
        model: with the dimensions of the authors' code.
        path: of the file; replaced if it exists.
        discriminator: False writes empty `netD` and `netC`, for generation only.

    Raises:
        CheckpointError: the authors' code does not support this model; all differences are named.
        GalipEdgeError: the file cannot be written.
    """
    if differences := unlike_published(model.config):
        raise CheckpointError(
            f"the authors' code cannot load this model: it differs in {'; '.join(differences)}"
        )
    from galip_edge.checkpoints.format import model_tensors

    content = published_state(model_tensors(model, discriminator), model.config)
    with atomic_path(Path(path)) as temporary:
        torch.save(content, temporary)


# Each optimizer and its networks, in the order of their parameters.
_OPTIMIZERS = {"optimizer_G": ("netG",), "optimizer_D": ("netD", "netC")}


def original_moments(path: Path) -> dict[str, dict[str, Tensor]]:
    """Adam's moments in an original `.pth`, by our parameter names.

    torch stores it by a parameter's position in the module's state dict, which includes the
    generator's frozen CLIP and the shortcuts that the authors never used. Our parameters include
    neither.

    Raises:
        CheckpointError: the optimizers are missing, or do not fit the checkpoint's parameters.
    """
    content, _ = read_weights(path)
    try:
        optimizers = content.get("optimizers") or {}
        moments: dict[str, dict[str, Tensor]] = {}
        for optimizer, networks in _OPTIMIZERS.items():
            if optimizer not in optimizers:
                raise CheckpointError(f"{path} has no {optimizer}")
            tensors = [
                (translate_name(network, split_name(name)[2]), tensor)
                for network in networks
                for name, tensor in content["model"][network].items()
            ]
            moments |= _by_name(optimizers[optimizer], tensors, f"{path}: {optimizer}")
        return moments
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has optimizers in an unknown layout ({error!r})") from error


def _by_name(
    optimizer: Mapping[str, Any], tensors: list[tuple[str | None, Tensor]], what: str
) -> dict[str, dict[str, Tensor]]:
    numbers = [n for group in optimizer["param_groups"] for n in group["params"]]
    if len(numbers) != len(tensors):
        raise CheckpointError(f"{what} has {len(numbers)} parameters, the model {len(tensors)}")
    moments: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in zip(numbers, tensors, strict=True):
        if not name or name.startswith("clip."):
            continue
        state = optimizer["state"].get(number)
        if state is None:
            raise CheckpointError(f"{what} has nothing for {name}")
        if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            raise CheckpointError(f"{what} is not Adam's: for {name} it has {', '.join(state)}")
        if any(state[key].shape != tensor.shape for key in ("exp_avg", "exp_avg_sq")):
            raise CheckpointError(f"{what} has another shape for {name} than the model")
        moments[name] = {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return moments
