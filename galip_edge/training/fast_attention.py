"""Faster attention for the frozen transformers of CLIP."""

from __future__ import annotations

import copy
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models import GALIP
from galip_edge.training.precision import Precision


class SelfAttention(nn.Module):
    """Self-attention as `nn.MultiheadAttention`, several times faster on a CPU.

    torch's module transposes the tokens, and linear layers of transposed tokens become batched
    products that copy the weights once per token. Also, on a CPU the backward pass of torch's fused
    attention takes most of a training step with sequences as short as CLIP's; plain products take a
    fifth of its time.
    """

    def __init__(self, attention: nn.MultiheadAttention, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.heads = attention.num_heads
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, query: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """query (B,L,C); key, value, mask and options are ignored."""
        batch, length, width = query.shape
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        fused = query.device.type != "cpu"
        attend = F.scaled_dot_product_attention if fused else _attend_by_products
        attended = attend(q, k, v, is_causal=self.causal).transpose(1, 2)
        return self.out_proj(attended.reshape(batch, length, width)), None


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        length = scores.shape[-1]
        scores = scores + scores.new_full((length, length), -torch.inf).triu_(1)
    attended: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return attended


def use_fast_attention(transformer: Any, causal: bool = False) -> None:
    """Replace the attention in every block of an open_clip transformer, with the same weights."""
    for block in transformer.resblocks:
        block.attn = SelfAttention(block.attn, causal)


def with_fast_attention(clip: Any) -> Any:
    """A copy of an open_clip CLIP that shares all parameters, and is faster on a CPU."""
    towers = copy.deepcopy(clip, {id(p): p for p in clip.parameters()})
    use_fast_attention(towers.visual.transformer)
    use_fast_attention(towers.transformer, causal=True)
    return towers


def use_training_copy(model: GALIP, precision: Precision) -> None:
    """Give generator and image encoder a copy of CLIP's image transformer for training.

    Its attention is faster. In 16-bit precision its matrices are converted once: autocast caches
    conversions only of trained weights, and would convert these in every forward pass. In float32
    the copy shares its weights. `model.clip`, which is saved, is unchanged.
    """
    visual = model.clip.visual
    shared = {} if precision != "float32" else {id(p): p for p in visual.parameters()}
    frozen = copy.deepcopy(visual, shared)
    use_fast_attention(frozen.transformer)
    if precision != "float32":
        _use_silu(frozen.transformer)
        for parameter in frozen.parameters():
            if parameter.ndim > 1:  # layer norms and biases stay exact
                parameter.data = parameter.data.to(getattr(torch, precision))
    model.generator.vit.visual = frozen
    model.image_encoder.visual = frozen


def _use_silu(transformer: Any) -> None:
    """Replace QuickGELU by SiLU, one operation instead of three, between rescaled weights.

    x sigmoid(1.702 x) is silu(1.702 x) / 1.702, and both factors belong to the frozen linear
    layers around it. Other activations stay.
    """
    for block in transformer.resblocks:
        if isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.c_fc.weight.data *= _QUICK_GELU
            block.mlp.c_fc.bias.data *= _QUICK_GELU
            block.mlp.c_proj.weight.data /= _QUICK_GELU
            block.mlp.gelu = nn.SiLU()


_QUICK_GELU = 1.702
