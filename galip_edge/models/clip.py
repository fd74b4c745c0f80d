"""CLIP through open_clip, with the three uses of GALIP: text, images, and prompted ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models.config import CLIPConfig, CLIPInput

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def build_clip(config: CLIPConfig) -> open_clip.CLIP:
    """An `open_clip.CLIP` with fresh weights, frozen, in evaluation mode.

    Its parameters have the names of OpenAI's own state dict.
    """
    clip = open_clip.CLIP(
        embed_dim=config.embedding_dim,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=config.vision_layers,
            width=config.vision_width,
            head_width=config.vision_width // config.vision_heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
        ),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=config.context_length,
            vocab_size=config.vocabulary_size,
            width=config.text_width,
            heads=config.text_heads,
            layers=config.text_layers,
        ),
        quick_gelu=config.quick_gelu,
    )
    return clip.requires_grad_(False).eval()


def clip_pixels(images: Tensor, size: int, form: CLIPInput = "standard") -> Tensor:
    """Resize and normalise images for CLIP.

    Args:
        images: (B,3,H,W) in [-1, 1].
        size: side that CLIP expects.
        form: `standard` resizes with antialiased bicubic and maps to [0, 1] before normalising,
            as CLIP was trained; `original` does what the published GALIP code does: nearest
            resize and a range of [0.5, 1].

    Returns:
        (B,3,size,size), normalised.
    """
    images = images * 0.5 + 0.5
    if form == "original":
        images = F.interpolate(images, size=(size, size))
        images = (images + 1) * 0.5
    elif images.shape[-2:] != (size, size):
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        images = images.clamp(0, 1)
    return (images - per_channel(PIXEL_MEAN, images)) / per_channel(PIXEL_STD, images)


def per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """`values` (C,1,1) for `images` (B,C,H,W), without a copy from the CPU to a GPU."""
    return torch.stack([images.new_full((), value) for value in values])[:, None, None]


def _patch_tokens_as_feature(tokens: Tensor, grid: int) -> Tensor:
    """(B,1+grid²,C) with the class token first -> (B,C,grid,grid)."""
    patches = tokens[:, 1 : 1 + grid * grid].transpose(1, 2)
    return patches.reshape(patches.shape[0], patches.shape[1], grid, grid)


def embed_patches(visual: Any, patches: Tensor) -> Tensor:
    """Patch embeddings (B,grid²,C) -> input of the first block (B,1+grid²,C)."""
    class_token = visual.class_embedding.expand(patches.shape[0], 1, -1).to(patches.dtype)
    tokens = torch.cat([class_token, patches], dim=1)
    out: Tensor = visual.ln_pre(tokens + visual.positional_embedding.to(tokens.dtype))
    return out


class CLIPTextEncoder(nn.Module):
    """Prompt tokens to the sentence embedding, which is not normalised."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B,77) int64, the end-of-text token being the highest id -> (B,E)."""
        clip: Any = self.clip
        sentence: Tensor = clip.encode_text(tokens)
        return sentence


class CLIPImageEncoder(nn.Module):
    """Images to CLIP features for the discriminator, and the image embedding."""

    def __init__(
        self, visual: nn.Module, config: CLIPConfig, taps: tuple[int, ...], form: CLIPInput
    ) -> None:
        super().__init__()
        self.visual = visual
        self.config = config
        self.taps = taps
        self.form = form

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features for the discriminator, and the image embedding.

        Args:
            images: (B,3,H,W) in [-1,1].

        Returns:
            Features (B,taps,C,grid,grid), or `images` themselves if there are no taps; embedding
            (B,E), not normalised.
        """
        visual: Any = self.visual
        pixels = clip_pixels(images, self.config.image_size, self.form)
        tokens = embed_patches(visual, visual.conv1(pixels).flatten(2).transpose(1, 2))
        features = []
        for index, block in enumerate(visual.transformer.resblocks):
            tokens = block(tokens)
            if index in self.taps:
                features.append(tokens[:, 1:])
        embedding = visual.ln_post(tokens[:, 0]) @ visual.proj
        if not features:
            return images, embedding
        # Channels stay innermost, so that convolutions read each tap as it is.
        grid = self.config.grid
        taps = torch.stack(features).reshape(len(features), len(images), grid, grid, -1)
        return taps.permute(1, 0, 4, 2, 3), embedding


class PromptedViT(nn.Module):
    """The frozen ViT inside the generator: bridge feature and prompt tokens to visual concept.

    Prompt token k joins the sequence for one block only (paper, section 3.3).
    """

    def __init__(self, visual: nn.Module, prompt_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.visual = visual
        self.prompt_blocks = prompt_blocks

    def forward(self, bridge: Tensor, prompts: Tensor) -> Tensor:
        """Bridge (B,C,grid,grid), prompts (B,len(prompt_blocks),C) -> (B,C,grid,grid)."""
        visual: Any = self.visual
        tokens = embed_patches(visual, bridge.flatten(2).transpose(1, 2))
        length = tokens.shape[1]
        for index, block in enumerate(visual.transformer.resblocks):
            if index in self.prompt_blocks:
                k = self.prompt_blocks.index(index)
                tokens = block(torch.cat([tokens, prompts[:, k : k + 1]], dim=1))[:, :length]
            else:
                tokens = block(tokens)
        return _patch_tokens_as_feature(tokens, bridge.shape[-1])
