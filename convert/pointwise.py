"""Products with matrices as convolutions of one pixel: the same numbers, by faster kernels.

OpenVINO's INT8 convolutions come close to the machine's peak on every CPU; its INT8 products of
matrices do so only where there is VNNI (docs/performance.md has figures).
"""

from __future__ import annotations

import copy

from torch import Tensor, nn


class PointwiseConvolution(nn.Module):
    """What a linear layer computes. Made by `as_convolutions`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.conv = nn.Conv1d(weight.shape[1], weight.shape[0], 1, bias=linear.bias is not None)
        self.conv.to(weight)
        self.conv.weight.data.copy_(weight[:, :, None])
        if linear.bias is not None and self.conv.bias is not None:
            self.conv.bias.data.copy_(linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in) -> (B,C_out), or (B,L,C_in) -> (B,L,C_out)."""
        if x.dim() == 2:
            return self.conv(x[:, :, None])[:, :, 0]
        out: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return out


def as_convolutions(module: nn.Module) -> nn.Module:
    """A copy in which each linear layer is a `PointwiseConvolution`."""
    # Weights are not copied but once, into the convolutions: full size has hundreds of megabytes.
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    module = copy.deepcopy(module, shared)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Attention reads its output layer's weights itself.
            if isinstance(child, nn.Linear) and not isinstance(parent, nn.MultiheadAttention):
                setattr(parent, name, PointwiseConvolution(child))
    return module
