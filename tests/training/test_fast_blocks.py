"""The networks as 16-bit training on a CPU computes them are the published ones up to rounding."""

import copy

import pytest
import torch

from galip_edge.training.fast_attention import use_training_copy
from galip_edge.training.fast_blocks import FastUpsamplingBlock, use_fast_blocks


def gradients(model, noise, sentence, dtype=torch.float32):
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        image = model.generator(noise, sentence)
    image.float().square().mean().backward()
    return image.detach(), {k: p.grad for k, p in model.generator.named_parameters()}


def test_fast_blocks_have_the_same_images_and_gradients(perturbed_model):
    fast = copy.deepcopy(perturbed_model).to(memory_format=torch.channels_last)
    use_fast_blocks(fast.generator)
    assert all(isinstance(b, FastUpsamplingBlock) for b in fast.generator.upsampling)
    noise, sentence = torch.randn(3, 16), torch.randn(3, 32)
    image, wanted = gradients(perturbed_model, noise, sentence)
    again, found = gradients(fast, noise, sentence)
    assert torch.allclose(again, image, rtol=1e-5, atol=1e-5 * image.abs().max())
    assert list(found) == list(wanted)
    for name, gradient in wanted.items():
        if gradient is not None:
            error = (found[name] - gradient).abs().max()
            assert error <= 1e-4 * gradient.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fast_blocks_are_as_exact_in_16_bits_as_the_originals(perturbed_model, dtype):
    """Under autocast activations have 16 bits, gradients of parameters 32."""
    noise, sentence = torch.randn(3, 16), torch.randn(3, 32)
    _, wanted = gradients(copy.deepcopy(perturbed_model), noise, sentence)
    names = [name for name, gradient in wanted.items() if gradient is not None]
    errors = []
    for fast in (False, True):
        network = copy.deepcopy(perturbed_model)
        if fast:
            use_fast_blocks(network.generator)
        image, found = gradients(network, noise, sentence, dtype)
        assert image.dtype == dtype
        assert {found[name].dtype for name in names} == {torch.float32}
        difference = torch.cat([(found[name] - wanted[name]).flatten() for name in names])
        errors.append(difference.norm().item())
    assert errors[1] < 1.1 * errors[0]


def test_names_and_parameters_stay(perturbed_model):
    before = dict(perturbed_model.generator.named_parameters())
    names = list(perturbed_model.state_dict())
    use_fast_blocks(perturbed_model.generator)
    assert list(perturbed_model.state_dict()) == names
    assert "FastConv2d(8, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))" in str(
        perturbed_model
    )
    assert all(p is before[name] for name, p in perturbed_model.generator.named_parameters())


def test_sizes_that_do_not_double_are_resized(perturbed_model):
    """The published model ends with a step from 128 to 224 pixels."""
    block = perturbed_model.generator.upsampling[0]
    block.size = 7
    x, condition = torch.randn(2, 32, 4, 4), torch.randn(2, 48)
    assert torch.allclose(
        FastUpsamplingBlock(block)(x, condition), block(x, condition), rtol=1e-4, atol=1e-4
    )


def test_frozen_clip_with_silu_has_the_features_of_quick_gelu(perturbed_model):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    wanted, embedding = perturbed_model.image_encoder(images)
    copied = copy.deepcopy(perturbed_model)
    use_training_copy(copied, "bfloat16")
    names = {type(m).__name__ for m in copied.image_encoder.visual.modules()}
    assert "QuickGELU" not in names
    copied.image_encoder.visual.float()
    found, again = copied.image_encoder(images)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert (again - embedding).abs().max() < 0.02 * embedding.abs().max()
    assert torch.equal(copied.clip.visual.proj, perturbed_model.clip.visual.proj)
    block = copied.clip.visual.transformer.resblocks[0].mlp.c_fc.weight
    assert torch.equal(block, perturbed_model.clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
