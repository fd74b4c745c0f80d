import math
from dataclasses import replace

import pytest
import torch
from published import in_published_order
from torch import nn

from galip_edge.models import GALIP, PRESETS, CLIPConfig, ModelConfig
from galip_edge.models.blocks import UpsamplingBlock
from galip_edge.models.clip import PIXEL_MEAN, PIXEL_STD, clip_pixels


def config_with_grid(grid: int, sizes: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(
        clip=CLIPConfig(
            embedding_dim=24,
            image_size=grid * 8,
            patch_size=8,
            vision_width=32,
            vision_layers=3,
            vision_heads=2,
            text_width=16,
            text_layers=2,
            text_heads=2,
            context_length=12,
            vocabulary_size=600,
        ),
        noise_dim=10,
        block_sizes=sizes,
        block_channels=(16, *(12 for _ in sizes)),
        bridge_channels=8,
        bridge_hidden=4,
        bridge_blocks=2,
        prompt_blocks=(0, 2),
        tap_blocks=(1, 2),
        discriminator_channels=16,
        score_channels=8,
    )


@pytest.mark.parametrize(
    ("grid", "sizes"), [(7, (8, 16)), (4, (6, 13, 20)), (3, (5,)), (8, (16, 32)), (1, (2, 4))]
)
def test_every_dimension_can_be_chosen(grid, sizes):
    config = config_with_grid(grid, sizes)
    model = GALIP(config).eval()
    tokens = torch.randint(1, 600, (2, 12))
    image = model(torch.randn(2, 10), tokens)
    assert image.shape == (2, 3, sizes[-1], sizes[-1])
    features, embedding = model.image_encoder(image)
    assert features.shape == (2, 2, 32, grid, grid)
    assert embedding.shape == (2, 24)
    assert model.discriminator(features, embedding).shape == (2, 1, 1, 1)


def test_published_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = GALIP(PRESETS["coco"])
    trainable = sum(p.numel() for p in model.generator.parameters() if p.requires_grad)
    assert trainable == 51_830_211
    # 30.81 M with the shortcuts that the original carries and never uses.
    unused = 2 * (768 * 768 + 768)
    assert sum(p.numel() for p in model.discriminator.parameters()) + unused == 30_806_021
    assert all(not p.requires_grad for p in model.clip.parameters())


def test_a_mapping_network_chooses_one_value_of_each_variable():
    torch.manual_seed(0)
    config = replace(config_with_grid(4, (8,)), mapping_width=16, categories=(3, 2, 7))
    generator = GALIP(config).generator
    mapping, noise, sentence = generator.mapping, torch.randn(5, 10), torch.randn(5, 24)
    with torch.no_grad():
        mapping.layers[-1].weight *= 100  # a trained one is sure
    choices = mapping(noise, sentence).split(config.categories, dim=1)
    scores = mapping.logits(noise, sentence)
    for chosen, score in zip(choices, scores, strict=True):
        assert torch.equal(chosen.argmax(1), score.argmax(1))
        torch.testing.assert_close(chosen.sum(1), torch.full((5,), 3.0))
    values = torch.stack([score.argmax(1) for score in scores], dim=1)
    given = mapping.given(values)
    assert given.unique().tolist() == [0, 3]
    assert (given - torch.cat(choices, dim=1)).abs().median() < 0.01


def test_text_acts_on_the_other_layers_through_the_choices():
    torch.manual_seed(0)
    config = replace(config_with_grid(4, (8,)), mapping_width=16, categories=(3, 2, 7))
    generator = GALIP(config).generator.eval()
    noise, sentence = torch.randn(5, 10), torch.randn(5, 24)
    condition = generator.condition(noise, sentence)
    assert condition.shape == (5, config.condition_dim) == (5, 10 + 12)
    assert torch.equal(condition[:, :10], noise)
    assert torch.equal(condition[:, 10:], generator.mapping(noise, sentence))
    image = generator.synthesize(noise, condition)
    torch.testing.assert_close(generator(noise, sentence), image)


@pytest.mark.parametrize(("before", "after"), [(7, 8), (8, 16), (5, 13), (16, 28), (4, 4)])
@pytest.mark.parametrize("channels", [(6, 6), (6, 4)])
def test_fusion_before_the_resize_is_the_same_function(before, after, channels):
    torch.manual_seed(0)
    block = UpsamplingBlock(9, *channels, after).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, channels[0], before, before, dtype=torch.float64)
    condition = torch.randn(2, 9, dtype=torch.float64)
    ours = block(x, condition)
    in_published_order(block)
    torch.testing.assert_close(ours, block(x, condition), rtol=1e-10, atol=1e-10)


def test_fusion_starts_as_identity_up_to_the_activation():
    block = UpsamplingBlock(9, 4, 4, 8)
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(block.fusion1(x, torch.randn(1, 9)), x)


def test_every_prompt_token_matters(tiny_model):
    vit = tiny_model.generator.vit
    bridge = torch.randn(1, 32, 4, 4)
    prompts = torch.randn(1, 2, 32)
    with torch.no_grad():
        base = vit(bridge, prompts)
        for k in range(2):
            changed = prompts.clone()
            changed[:, k] = torch.randn(32)
            assert not torch.allclose(vit(bridge, changed), base, atol=1e-5)


def test_original_clip_input_lands_in_the_upper_half():
    black, white = torch.full((1, 3, 8, 8), -1.0), torch.ones(1, 3, 8, 8)
    mean = torch.tensor(PIXEL_MEAN)[:, None, None]
    std = torch.tensor(PIXEL_STD)[:, None, None]
    for form, low in (("standard", 0.0), ("original", 0.5)):
        for image, expected in ((black, low), (white, 1.0)):
            pixels = clip_pixels(image, 16, form)[0] * std + mean
            torch.testing.assert_close(pixels, torch.full((3, 16, 16), expected), atol=1e-5, rtol=0)


def test_text_after_the_end_token_does_not_matter(tiny_model):
    tokens = torch.zeros(1, 77, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([49406, 320, 530, 49407])
    other = tokens.clone()
    other[0, 10:] = 77
    with torch.no_grad():
        torch.testing.assert_close(tiny_model.text_encoder(tokens), tiny_model.text_encoder(other))
    assert math.isfinite(tiny_model.text_encoder(tokens).norm().item())
