"""Rewrites compute the same function: float64, so that only rounding is left."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from convert.rewrite import merge_affines
from galip_edge.models import GALIP, PRESETS

TINY = PRESETS["tiny"]


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, block_sizes=(6, 13, 21, 30)),  # no doublings
        replace(TINY, clip=replace(TINY.clip, image_size=48), block_sizes=(7, 16, 28, 49)),
        replace(TINY, prompt_blocks=()),
    ],
)
def test_merged_affines(config):
    torch.manual_seed(0)
    generator = GALIP(config).generator.double().eval()
    for name, parameter in generator.named_parameters():
        if "fusion" in name:
            nn.init.normal_(parameter, std=0.2)
    noise = torch.randn(2, config.noise_dim, dtype=torch.float64)
    sentence = torch.randn(2, config.clip.embedding_dim, dtype=torch.float64)
    names = list(generator.state_dict())
    with torch.no_grad():
        expected = generator(noise, sentence)
        torch.testing.assert_close(
            merge_affines(generator)(noise, sentence), expected, rtol=1e-10, atol=1e-10
        )
        # The original is untouched.
        assert list(generator.state_dict()) == names
        assert torch.equal(generator(noise, sentence), expected)
