"""Dimensions of the authors' model by the shapes of its tensors, and export to its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galip_edge.models import GALIP, PRESETS, CLIPConfig, ModelConfig
from runtime.errors import CheckpointError
from runtime.files import atomic_path

_PUBLISHED = PRESETS["coco"]


def indices(names: Iterable[str], before: str) -> int:
    """How many layers there are, numbered from 0, by the names that start with `before`."""
    pattern = re.compile(re.escape(before) + r"(\d{1,9})\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    return len(found)


def original_config(tensors: Mapping[str, Tensor], clip: CLIPConfig) -> ModelConfig:
    """The dimensions of an original checkpoint.

    Image sizes are not visible in shapes: they are those of the authors' code for this number of
    upsampling blocks, 8, 16, 32, ... and 224 for the last one.

    Args:
        tensors: of the generator and perhaps the discriminator, under our names.
        clip: dimensions of the CLIP that it was trained with.

    Raises:
        CheckpointError: another CLIP is needed, or something that shapes do not show differs from
            the authors' code.
    """
    needed = (
        "generator.noise_projection.weight",
        "generator.bridge.blocks.0.conv1.weight",
        "generator.prompt_predictor.weight",
        "generator.to_rgb.weight",
        "generator.upsampling.0.conv1.weight",
    )
    if any(name not in tensors or tensors[name].ndim < 2 for name in needed):
        return replace(_PUBLISHED, clip=clip)  # which then lists what is missing
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
        raise CheckpointError(f"has dimensions that no GALIP has: {error}") from error


def _check_clip(grid_squared: float, embedding_dim: int, clip: CLIPConfig) -> None:
    if (grid_squared, embedding_dim) != (clip.grid**2, clip.embedding_dim):
        raise CheckpointError(
            f"was trained with a CLIP of embedding {embedding_dim} and {grid_squared:g} patches; "
            f"the given one has embedding {clip.embedding_dim} and {clip.grid**2} patches: give "
            "the CLIP that it was trained with"
        )


def _block_sizes(blocks: int) -> tuple[int, ...]:
    sizes = (*(8 * 2**i for i in range(blocks - 1)), 224)
    if not 2 <= blocks <= 6:
        raise CheckpointError(
            f"has {blocks} upsampling blocks: the authors' code has 6, for images of 224 pixels, "
            "and the file does not hold the image size of any other number above that; give the "
            "dimensions as load_checkpoint(..., config=ModelConfig(...)) in Python"
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


_FUSION = r"fusion([12])\.affine([01])\.(gamma|beta)\.([02])\.(\w+)"

# (our name, network, original name): the inverse of the rules in `original.py`.
_EXPORT_RULES: tuple[tuple[str, str, str], ...] = (
    (r"generator\.noise_projection\.(\w+)", "netG", r"fc_code.\1"),
    (r"generator\.bridge\.blocks\.(\d+\..+)", "netG", r"mapping.FBlocks.\1"),
    (r"generator\.bridge\.to_feature\.(\w+)", "netG", r"mapping.conv_fuse.\1"),
    (r"generator\.prompt_predictor\.(\w+)", "netG", r"mapping.fc_prompt.\1"),
    (r"generator\.visual_projection\.(\w+)", "netG", r"mapping.conv.\1"),
    (r"clip\.visual\.(?!ln_post|proj)(.+)", "netG", r"mapping.CLIP_ViT.\1"),
    (r"generator\.upsampling\.(\d+)\.conv([12])\.(\w+)", "netG", r"GBlocks.\1.c\2.\3"),
    (r"generator\.upsampling\.(\d+)\.shortcut\.(\w+)", "netG", r"GBlocks.\1.c_sc.\2"),
    (r"generator\.upsampling\.(\d+\..+)", "netG", r"GBlocks.\1"),
    (r"generator\.to_rgb\.(\w+)", "netG", r"to_rgb.1.\1"),
    (r"discriminator\.taps\.(\d+)\.(gamma|beta)", "netD", r"DBlocks.\1.\2"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv1\.(\w+)", "netD", r"DBlocks.\1.conv_r.0.\2"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv2\.(\w+)", "netD", r"DBlocks.\1.conv_r.2.\2"),
    (r"discriminator\.reduction\.gamma", "netD", r"main.gamma"),
    (r"discriminator\.reduction\.residual\.conv1\.(\w+)", "netD", r"main.conv_r.0.\1"),
    (r"discriminator\.reduction\.residual\.conv2\.(\w+)", "netD", r"main.conv_r.2.\1"),
    (r"discriminator\.reduction\.shortcut\.(\w+)", "netD", r"main.conv_s.\1"),
    (r"discriminator\.joint\.(\w+)", "netC", r"joint_conv.0.\1"),
    (r"discriminator\.to_score\.(\w+)", "netC", r"joint_conv.2.\1"),
)


def published_name(name: str) -> tuple[str, str] | None:
    """The original's (network, name) for a tensor of ours; None for CLIP's other tensors."""

    def fusion(match: re.Match[str]) -> str:
        number, affine, kind, linear, tensor = match.groups()
        return f"fuse{number}.affine{affine}.fc_{kind}.linear{int(linear) // 2 + 1}.{tensor}"

    for pattern, network, original in _EXPORT_RULES:
        if match := re.fullmatch(pattern, name):
            return network, re.sub(_FUSION, fusion, match.expand(original))
    return None


def published_state(
    tensors: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """`{"model": {"netG", "netD", "netC"}}` from tensors under our names.

    The generator's frozen copy of CLIP is in float16, as published. The shortcuts that the
    authors' first discriminator blocks have and never use are zero.
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
    """Settings that the authors' code cannot have, such as `noise_dim 16 (theirs: 100)`.

    Their code takes another base width (`nf`), noise length and number of blocks; all else is
    written into it. How pixels reach CLIP matters to the discriminator alone, and is not listed.
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
    """Write a model as a `.pth` that the authors' code loads, whole or not at all.

    Args:
        model: with the dimensions of the authors' code.
        path: of the new file; replaced if it exists.
        discriminator: False writes empty `netD` and `netC`, for generation only.

    Raises:
        CheckpointError: the authors' code cannot have this model; each difference is named.
        GalipEdgeError: the file cannot be written.
    """
    if differences := unlike_published(model.config):
        raise CheckpointError(
            f"the authors' code cannot load this model: it differs in {'; '.join(differences)}"
        )
    from galip_edge.checkpoint import model_tensors

    content = published_state(model_tensors(model, discriminator), model.config)
    with atomic_path(Path(path)) as temporary:
        torch.save(content, temporary)
