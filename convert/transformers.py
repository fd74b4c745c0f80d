"""CLIP's two transformers for deployment: the same function, with less to compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models.clip import CLIPTextEncoder, PromptedViT, embed_patches


class LeanAttention(nn.Module):
    """What some tokens take from all. Its matrices are layers of their own, not slices of one:
    NNCF leaves the product with a slice in floating point."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        self.query = _linear(weight[:width], bias[:width])
        self.key_value = _linear(weight[width:], bias[width:])
        self.out = attention.out_proj

    def forward(
        self, tokens: Tensor, first: int, end: int | None, mask: Tensor | None = None
    ) -> Tensor:
        """tokens (B,L,C) -> what those from `first` up to `end` take; mask (L,L) is added."""
        query = self.query(tokens[:, first:end])
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        query, key, value = (
            x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class LeanViT(nn.Module):
    """A prompted ViT that computes no token which nobody reads."""

    def __init__(self, vit: PromptedViT) -> None:
        super().__init__()
        self.vit = vit
        visual: Any = vit.visual
        self.attentions = _attentions(visual.transformer)

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
            # Nobody reads the prompt token again, nor, in the end, the class token, which is first.
            first = 1 if index == last else 0
            tokens = tokens[:, first:] + self.attentions[index](block.ln_1(seen), first, count)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        features = tokens.transpose(1, 2)
        return features.reshape(*features.shape[:2], *bridge.shape[2:])


class LeanTextEncoder(nn.Module):
    """A text encoder for as many tokens as there are: none sees those that come after it."""

    def __init__(self, text_encoder: CLIPTextEncoder) -> None:
        super().__init__()
        self.clip = text_encoder.clip
        self.attentions = _attentions(self.clip.transformer)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B,L) int64 up to the end of text or further, L at most 77 -> (B,E)."""
        clip: Any = self.clip
        length = tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        mask = clip.attn_mask[:length, :length].to(x)
        for attention, block in zip(self.attentions, clip.transformer.resblocks):
            x = x + attention(block.ln_1(x), 0, None, mask)
            x = x + block.mlp(block.ln_2(x))
        end = clip.ln_final(x)[torch.arange(x.shape[0]), tokens.argmax(dim=1)]
        sentence: Tensor = end @ clip.text_projection
        return sentence


def _attentions(transformer: Any) -> nn.ModuleList:
    return nn.ModuleList(LeanAttention(block.attn) for block in transformer.resblocks)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
