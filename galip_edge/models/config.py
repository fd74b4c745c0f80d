"""The dimensions of a GALIP model, stored with its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from galip_edge.config import build, check_integers

CLIPInput = Literal["standard", "original"]

# A larger side indicates a damaged file.
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True)
class CLIPConfig:
    """A CLIP with a vision transformer. The defaults are ViT-B/32 as OpenAI published it."""

    embedding_dim: int = 512
    image_size: int = 224
    patch_size: int = 32
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 77
    vocabulary_size: int = 49408
    quick_gelu: bool = True

    def __post_init__(self) -> None:
        check_integers(self, 1, *(f.name for f in fields(self) if f.name != "quick_gelu"))
        if not isinstance(self.quick_gelu, bool):
            raise ValueError(f"quick_gelu must be true or false, got {self.quick_gelu!r}")
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(
                    f"{tower}_width {width} is not a multiple of {tower}_heads {heads}"
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ModelConfig:
    """Every dimension of the generator and discriminator.

    The defaults are the model that the authors published for CUB, COCO and CC12M.

    Attributes:
        noise_dim: length of the noise vector z.
        block_sizes: output side in pixels of each upsampling block; the last is the image's.
        block_channels: channels entering the first block, then leaving each block.
        bridge_channels, bridge_hidden, bridge_blocks: the bridge feature predictor; with 0 blocks
            it is replaced by a convolution of the projected noise (ablation).
        visual_concept_scale: weight of the visual concept in its sum with the bridge feature; 0
            removes the ViT from the generator (ablation).
        mapping_width, categories: width of the mapping network, and the number of values of each
            categorical variable that it chooses; 0 and empty, as published, for none. The
            condition then consists of noise and choices (see `MappingNetwork`).
        prompt_blocks: ViT blocks (from 0) with one predicted prompt token each; may be empty
            (ablation).
        tap_blocks: ViT blocks (from 0) whose patch tokens are inputs of the discriminator; if
            empty, a convolutional discriminator reads pixels (ablation).
        discriminator_channels, score_channels: widths after the last tap and before the score.
        clip_input: preprocessing for CLIP in training; `original` is that of the published code
            (range [0.5, 1]), with which the published checkpoints were trained.
    """

    clip: CLIPConfig = field(default_factory=CLIPConfig)
    noise_dim: int = 100
    block_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 224)
    block_channels: tuple[int, ...] = (512, 512, 512, 512, 256, 128, 64)
    bridge_channels: int = 64
    bridge_hidden: int = 32
    bridge_blocks: int = 4
    visual_concept_scale: float = 0.1
    mapping_width: int = 0
    categories: tuple[int, ...] = ()
    prompt_blocks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    tap_blocks: tuple[int, ...] = (1, 4, 8)
    discriminator_channels: int = 512
    score_channels: int = 128
    clip_input: CLIPInput = "standard"

    def __post_init__(self) -> None:
        check_integers(self, 1, "noise_dim", "bridge_channels", "bridge_hidden")
        check_integers(self, 1, "discriminator_channels", "score_channels")
        check_integers(self, 0, "bridge_blocks", "mapping_width")
        for name in ("block_sizes", "block_channels", "categories", "prompt_blocks", "tap_blocks"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(type(value) is int for value in values):
                raise ValueError(f"{name} must be a list of integers, got {values!r}")
        scale = self.visual_concept_scale
        if type(scale) not in (int, float) or not math.isfinite(scale):
            raise ValueError(f"visual_concept_scale must be a number, got {scale!r}")
        if not self.block_sizes or any(
            a >= b for a, b in zip((self.clip.grid, *self.block_sizes), self.block_sizes)
        ):
            raise ValueError(
                f"block_sizes must grow from above the CLIP grid {self.clip.grid}, "
                f"got {self.block_sizes}"
            )
        if max(self.block_sizes) > MAX_IMAGE_SIZE:
            raise ValueError(
                f"block_sizes must be at most {MAX_IMAGE_SIZE} pixels, got {self.block_sizes}"
            )
        if len(self.block_channels) != len(self.block_sizes) + 1 or min(self.block_channels) < 1:
            raise ValueError(
                f"block_channels needs {len(self.block_sizes) + 1} positive values, one before "
                f"the first block and one after each, got {self.block_channels}"
            )
        for name in ("prompt_blocks", "tap_blocks"):
            blocks = getattr(self, name)
            if list(blocks) != sorted(set(blocks)) or any(
                not 0 <= b < self.clip.vision_layers for b in blocks
            ):
                raise ValueError(
                    f"{name} must be distinct, rising, and in 0..{self.clip.vision_layers - 1}, "
                    f"got {blocks}"
                )
        if bool(self.mapping_width) != bool(self.categories) or min(self.categories, default=2) < 2:
            raise ValueError(
                "a mapping network needs mapping_width and categories of at least 2 values, got "
                f"{self.mapping_width} and {self.categories}: set both, or neither"
            )
        if self.prompt_blocks and not self.visual_concept_scale:
            raise ValueError(
                f"prompt_blocks {self.prompt_blocks} have no effect with visual_concept_scale 0, "
                "which omits the ViT: make them empty"
            )
        if self.clip_input not in ("standard", "original"):
            raise ValueError(f"clip_input must be standard or original, got {self.clip_input!r}")

    @property
    def image_size(self) -> int:
        """Side of the generated image in pixels."""
        return self.block_sizes[-1]

    @property
    def condition_dim(self) -> int:
        """Length of the condition c: noise, and the sentence embedding or the mapping's choices."""
        return self.noise_dim + (sum(self.categories) or self.clip.embedding_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from plain values. Raises ValueError naming the setting."""
        return build(cls, values)


_PUBLISHED = ModelConfig(clip_input="original")

PRESETS: dict[str, ModelConfig] = {
    # The authors' three checkpoints share one architecture.
    "cub": _PUBLISHED,
    "coco": _PUBLISHED,
    "cc12m": _PUBLISHED,
    # All parts of the published model at a hundredth of the work, for tests and first trials.
    "small": ModelConfig(
        clip=CLIPConfig(
            embedding_dim=128,
            vision_width=128,
            vision_heads=4,
            text_width=128,
            text_heads=4,
        ),
        block_channels=(128, 128, 128, 128, 64, 32, 16),
        bridge_channels=32,
        bridge_hidden=16,
        discriminator_channels=128,
        score_channels=32,
    ),
    "tiny": ModelConfig(
        clip=CLIPConfig(
            embedding_dim=32,
            image_size=64,
            patch_size=16,
            vision_width=32,
            vision_layers=4,
            vision_heads=2,
            text_width=32,
            text_layers=2,
            text_heads=2,
        ),
        noise_dim=16,
        block_sizes=(8, 16, 32, 64),
        block_channels=(32, 32, 32, 16, 8),
        bridge_channels=16,
        bridge_hidden=8,
        bridge_blocks=2,
        prompt_blocks=(1, 2),
        tap_blocks=(0, 1, 3),
        discriminator_channels=32,
        score_channels=16,
    ),
}
