"""Rewrites compute the same function: float64, so that only rounding is left."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from convert import rewrite
from convert.rewrite import PhaseConvolution, PhasedBlock, dynamic_text_length
from galip_edge.models import GALIP, PRESETS

TINY = PRESETS["tiny"]
CONFIGS = [
    TINY,
    replace(TINY, block_sizes=(6, 13, 21, 30)),  # no doublings
    replace(TINY, block_sizes=(8, 14, 28, 49)),  # the published one's kinds: 2, 7/4
    replace(TINY, clip=replace(TINY.clip, image_size=48), block_sizes=(7, 16, 28, 49)),
    replace(TINY, prompt_blocks=()),
    replace(TINY, mapping_width=12, categories=(3, 2, 7)),
    replace(TINY, prompt_blocks=(0, 3)),  # the last of four blocks has one too
]


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def random_generator(config):
    """With affine networks that do something, which those of a new one do not."""
    torch.manual_seed(0)
    generator = GALIP(config).generator.double().eval()
    for name, parameter in generator.named_parameters():
        if "fusion" in name:
            nn.init.normal_(parameter, std=0.2)
    return generator


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "name", ["merge_affines", "fold_upsample_into_conv", "prune_unused_tokens", "deployed"]
)
def test_the_generator_computes_the_same(config, name):
    generator = random_generator(config)
    noise = torch.randn(2, config.noise_dim, dtype=torch.float64)
    sentence = torch.randn(2, config.clip.embedding_dim, dtype=torch.float64)
    names = list(generator.state_dict())
    with torch.no_grad():
        expected = generator(noise, sentence)
        same(getattr(rewrite, name)(generator)(noise, sentence), expected)
        # The original is untouched.
        assert list(generator.state_dict()) == names
        assert torch.equal(generator(noise, sentence), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (9, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_by_phases(size, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        same(PhaseConvolution(conv)(x), conv(F.interpolate(x, scale_factor=2)))


def test_only_blocks_that_double_change():
    blocks = rewrite.fold_upsample_into_conv(random_generator(CONFIGS[2])).upsampling
    assert [isinstance(block, PhasedBlock) for block in blocks] == [True, False, True, False]


def test_products_are_saved():
    counted = {}
    for name in ("fold_upsample_into_conv", "prune_unused_tokens"):
        generator = random_generator(TINY)
        for which, module in (("before", generator), ("after", getattr(rewrite, name)(generator))):
            with FlopCounterMode(display=False) as counter:
                module(torch.zeros(1, 16).double(), torch.zeros(1, 32).double())
            counted[name, which] = counter.get_total_flops()
    assert (
        counted["fold_upsample_into_conv", "after"]
        < 0.8 * counted["fold_upsample_into_conv", "before"]
    )
    assert counted["prune_unused_tokens", "after"] < counted["prune_unused_tokens", "before"]


@pytest.mark.parametrize("length", [3, 9, 40, 77])
def test_text_may_be_short(length):
    torch.manual_seed(0)
    encoder = GALIP(TINY).text_encoder.double()
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    for row, end in enumerate((2, length // 2 + 1, length - 1)):
        tokens[row, : end + 1] = torch.arange(1, end + 2)
        tokens[row, end] = 49407
    with torch.no_grad():
        same(dynamic_text_length(encoder)(tokens[:, :length]), encoder(tokens))
