"""Rewrites for deployment: the same function, computed in another order.

Each takes a module and returns another one that computes the same function, exact up to
floating-point rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models import Generator
from galip_edge.models.blocks import Affine, UpsamplingBlock
from galip_edge.models.clip import CLIPTextEncoder, PromptedViT, embed_patches


class _Slice(nn.Module):
    """A module applied to some columns of the condition."""

    def __init__(self, first: int, last: int, module: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.module = module

    def forward(self, condition: Tensor) -> Tensor:
        out: Tensor = self.module(condition[:, self.first : self.last])
        return out


class MergedAffines(nn.Module):
    """A generator whose affine networks share one first layer; see `merge_affines`."""

    def __init__(self, generator: Generator, hidden: nn.Linear) -> None:
        super().__init__()
        self.generator = generator
        self.hidden = hidden

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """As `Generator.forward`."""
        condition = self.generator.condition(noise, sentence)
        extended = torch.cat([self.hidden(condition), condition], dim=1)
        image: Tensor = self.generator.synthesize(noise, extended)
        return image


def merge_affines(generator: Generator) -> MergedAffines:
    """Compute the first layers of all affine networks as one.

    They all read the same condition: 80 products of a vector and a small matrix become one with a
    large matrix, which reads memory at full speed. It also keeps OpenVINO from fusing each small
    network into one kernel. OpenVINO does so depending on the number of threads, on which images
    would depend, and the fused INT8 kernel of some widths is wrong (2026.4).
    """
    generator = _copy(generator)
    affines = [module for module in generator.modules() if isinstance(module, Affine)]
    predictors = [(affine, name) for affine in affines for name in ("gamma", "beta")]
    weights, biases, first = [], [], 0
    for affine, name in predictors:
        # The activation stays behind the slice: each network keeps its own quantizer.
        layer, activation, last = getattr(affine, name)
        weights.append(layer.weight)
        biases.append(layer.bias)
        rest = nn.Sequential(activation, last)
        setattr(affine, name, _Slice(first, first + len(layer.weight), rest))
        first += len(layer.weight)
    hidden = nn.Linear(generator.config.condition_dim, first).to(weights[0])
    with torch.no_grad():
        hidden.weight.copy_(torch.cat(weights))
        hidden.bias.copy_(torch.cat(biases))
    if generator.config.prompt_blocks:
        generator.prompt_predictor = _Slice(  # type: ignore[assignment]
            first, first + generator.config.condition_dim, generator.prompt_predictor
        )
    return MergedAffines(generator, hidden).eval()


class PhaseConvolution(nn.Module):
    """A 3x3 convolution of an image doubled by nearest resize, computed before the doubling.

    In a doubled image, three neighbors are two distinct pixels. So each of the four phases of the
    output is a 2x2 convolution of the small image, whose kernel holds sums of the original taps: 16
    products instead of 36. All four are computed as one convolution; with the phases in reverse
    order, depth to space and a crop of one pixel on each side arrange them.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        # Rows: taps of the small image, columns: taps of the doubled one. An output of phase 1 has
        # its last tap in the next small pixel, one of phase 0 its first in the one before.
        phase1 = weight.new_tensor([[1, 1, 0], [0, 0, 1]])
        phase0 = weight.new_tensor([[1, 0, 0], [0, 1, 1]])
        kernels = [
            torch.einsum("ya,xb,oiab->oiyx", rows, columns, weight)
            for rows in (phase1, phase0)
            for columns in (phase1, phase0)
        ]
        self.conv = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1).to(weight)
        with torch.no_grad():
            self.conv.weight.copy_(torch.stack(kernels, 1).flatten(0, 1))
            bias = conv.bias if conv.bias is not None else weight.new_zeros(conv.out_channels)
            self.conv.bias.copy_(bias.repeat_interleave(4))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,h,w) -> (B,C_out,2h,2w)."""
        return F.pixel_shuffle(self.conv(x), 2)[:, :, 1:-1, 1:-1]


class PhasedBlock(nn.Module):
    """An upsampling block that doubles the size; see `fold_upsample_into_conv`."""

    def __init__(self, block: UpsamplingBlock) -> None:
        super().__init__()
        self.block = block
        self.conv1 = PhaseConvolution(block.conv1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As `UpsamplingBlock.forward`."""
        block = self.block
        residual = self.conv1(block.fusion1(x, condition))
        residual = block.conv2(block.fusion2(residual, condition))
        return block.resize(block.shortcut(x)) + residual


def fold_upsample_into_conv(generator: Generator) -> Generator:
    """Use `PhaseConvolution` in each block that doubles the size; others are unchanged."""
    generator = _copy(generator)
    sizes = (generator.config.clip.grid, *generator.config.block_sizes)
    for index, block in enumerate(generator.upsampling):
        if isinstance(block, UpsamplingBlock) and block.size == 2 * sizes[index]:
            generator.upsampling[index] = PhasedBlock(block)
    return generator


class PrunedViT(nn.Module):
    """A prompted ViT without unused tokens; see `prune_unused_tokens`."""

    def __init__(self, vit: PromptedViT) -> None:
        super().__init__()
        self.vit = vit
        visual: Any = vit.visual
        blocks = visual.transformer.resblocks
        # Outputs of prompt tokens are never read, nor that of the last class token, which is first.
        self.attentions = nn.ModuleList(
            PrunedAttention(block.attn, first=1 if block is blocks[-1] else 0) for block in blocks
        )

    def forward(self, bridge: Tensor, prompts: Tensor) -> Tensor:
        """As `PromptedViT.forward`."""
        visual: Any = self.vit.visual
        tokens = embed_patches(visual, bridge.flatten(2).transpose(1, 2))
        last, count = len(self.attentions) - 1, tokens.shape[1]
        for index, block in enumerate(visual.transformer.resblocks):
            seen = tokens
            if index in self.vit.prompt_blocks:
                k = self.vit.prompt_blocks.index(index)
                seen = torch.cat([tokens, prompts[:, k : k + 1]], dim=1)
            attended = self.attentions[index](block.ln_1(seen), count)
            if index == last:
                tokens = tokens[:, 1:]
            tokens = tokens + attended
            tokens = tokens + block.mlp(block.ln_2(tokens))
        features = tokens.transpose(1, 2)
        return features.reshape(*features.shape[:2], *bridge.shape[2:])


class PrunedAttention(nn.Module):
    """Attention of some tokens to all. Its matrices are separate layers, not slices of one, because
    NNCF keeps products with a slice in floating point."""

    def __init__(self, attention: nn.MultiheadAttention, first: int) -> None:
        super().__init__()
        self.heads, self.first = attention.num_heads, first
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        self.query = _linear(weight[:width], bias[:width])
        self.key_value = _linear(weight[width:], bias[width:])
        self.out = attention.out_proj

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """tokens (B,L,C) -> (B,count-first,C): attention output of tokens `first` to `count`."""
        query = self.query(tokens[:, self.first : count])
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        query, key, value = (
            x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def prune_unused_tokens(generator: Generator) -> Generator:
    """Compute only the tokens of the ViT that are used."""
    generator = _copy(generator)
    generator.vit = PrunedViT(generator.vit)  # type: ignore[assignment]
    return generator


class DynamicLengthTextEncoder(nn.Module):
    """A text encoder for any number of tokens; see `dynamic_text_length`."""

    def __init__(self, text_encoder: CLIPTextEncoder) -> None:
        super().__init__()
        self.clip = text_encoder.clip

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B,L) int64 up to the end of text or further, L at most 77 -> (B,E)."""
        clip: Any = self.clip
        length = tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        end = tokens.argmax(dim=1)
        sentence: Tensor = x[torch.arange(x.shape[0]), end] @ clip.text_projection
        return sentence


def dynamic_text_length(text_encoder: CLIPTextEncoder) -> DynamicLengthTextEncoder:
    """Let the text encoder read fewer than 77 tokens; attention is causal, so padding is inert."""
    return DynamicLengthTextEncoder(text_encoder).eval()


def deployed(generator: Generator) -> nn.Module:
    """The generator with all rewrites: noise (B,Z), sentence (B,E) -> images (B,3,H,W)."""
    return merge_affines(prune_unused_tokens(fold_upsample_into_conv(generator)))


def _copy(generator: Generator) -> Generator:
    """A copy that shares the ViT, which is large and stays unchanged."""
    return copy.deepcopy(generator, {id(generator.vit): generator.vit})
